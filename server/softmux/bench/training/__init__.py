"""Tuning, held against PEFT's and against the clock."""
