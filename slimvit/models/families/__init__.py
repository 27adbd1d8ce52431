"""The families of models: one file per family."""
