"""A load sent over HTTP, and what the sender itself can do."""
