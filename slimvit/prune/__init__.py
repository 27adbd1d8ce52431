"""Pruning: scores, costs, plan, cut, refit."""
