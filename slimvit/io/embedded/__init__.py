"""Small pretrained models that ship with the package as run folders, for demos and tests."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
EMBEDDED = {folder.name: folder for folder in sorted(HERE.iterdir()) if (folder / "slim.json").is_file()}
"""Folder of each embedded model, by name."""
