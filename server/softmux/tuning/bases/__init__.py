"""A base model as it is loaded to be tuned over, of each kind."""
