"""What an adapter is, and what methods cost on a base: answered from files and configs, without running a model."""
