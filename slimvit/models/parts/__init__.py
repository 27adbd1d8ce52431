"""What can be cut out of a block: one file a part."""
