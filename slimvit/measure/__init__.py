"""What a model costs (MACs, parameters, time) and what it can do (accuracy, agreement with the original)."""
