"""Accuracy, FLOPs, latency."""
