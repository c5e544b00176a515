"""A long prompt into a short one."""
