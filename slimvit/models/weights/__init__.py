"""Weight files as people have them: read without running code, and what they say of a model."""
