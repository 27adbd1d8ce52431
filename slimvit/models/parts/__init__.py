"""The parts of a block that can be cut: one file per part."""
