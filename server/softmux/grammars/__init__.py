"""What a reply has to look like: grammars, compiled on a model's tokenizer by llguidance. No torch, no HTTP."""
