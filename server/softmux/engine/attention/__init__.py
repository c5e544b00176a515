"""Attention backends: how a packed step's queries read the paged KV pool."""
