"""Weight files: safetensors files and checkpoints, read without running code, and the architecture they imply."""
