"""Images: where they come from (sources), what a model needs of them (preprocessing), how they arrive (loaders)."""
