"""Token merging: blocks that merge their most similar tokens between attention and MLP."""
