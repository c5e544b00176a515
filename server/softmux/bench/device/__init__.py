"""The engine's steps, copies and numbers, held against what the device can do."""
