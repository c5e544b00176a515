"""Tasks from Python: what a run needs to know of each, whether it generates or classifies."""
