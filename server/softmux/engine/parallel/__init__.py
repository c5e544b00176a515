"""One model over several processes of a host, each with a part of every layer (tensor parallelism)."""
