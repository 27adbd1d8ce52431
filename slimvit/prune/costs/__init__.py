"""Costs of units: one file per kind of budget."""
