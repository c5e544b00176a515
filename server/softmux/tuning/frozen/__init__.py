"""The frozen base over packed rows of many tasks, each with its own learned vectors."""
