"""Many tasks trained at once: their jobs, state, schedules, checkpoints."""
