"""Models timed side by side."""
