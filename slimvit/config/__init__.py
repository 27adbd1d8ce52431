"""Recipes, sweeps and options: typed and checked, without torch."""
