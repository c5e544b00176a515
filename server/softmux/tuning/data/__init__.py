"""Rows: examples read and checked, split, and laid out as tokens."""
