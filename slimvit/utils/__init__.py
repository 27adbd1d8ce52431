"""What every package may use: errors, files, locks, seeds, progress, devices, processes."""
