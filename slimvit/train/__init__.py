"""Training: loop, loss, optimizer, checkpoints."""
