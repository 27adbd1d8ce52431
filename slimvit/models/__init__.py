"""What a ViT is here: families, the plan, dense attention, building with timm."""
