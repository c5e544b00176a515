"""Moving the tasks of one base to another ([docs](docs/tuning.md#to-a-new-base))."""
