"""The frozen model and one step of it: KV pool, virtual vocabulary, attention, sampling, adapter tiers."""
