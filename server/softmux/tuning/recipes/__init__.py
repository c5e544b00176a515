"""What a person writes down: recipes of tasks, methods and distillations, as pydantic models."""
