"""timm models as slimvit sees them: building, families, and the plan a model carries."""
