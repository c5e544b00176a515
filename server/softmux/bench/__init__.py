"""`softmux bench`: figures anyone can make again, peers measured in the same run, taking turns."""
