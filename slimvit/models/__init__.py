"""Models: families, parts, the pruning plan, dense attention, building with timm."""
