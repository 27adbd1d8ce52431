"""What a unit costs: one file a kind of budget."""
