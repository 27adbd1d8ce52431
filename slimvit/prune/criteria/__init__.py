"""Scores of units: one file a criterion."""
