"""Measured time and memory of a model."""
