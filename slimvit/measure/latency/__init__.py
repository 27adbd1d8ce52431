"""Time and memory of a model."""
