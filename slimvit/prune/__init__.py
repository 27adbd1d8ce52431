"""Scores, costs, plan, cut, refit."""
