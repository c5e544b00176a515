"""The engine beside its service and beside the other ways to answer the same requests."""
