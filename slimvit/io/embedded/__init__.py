"""Small pretrained models that come with the package, as run folders. For demos and tests."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
EMBEDDED = {folder.name: folder for folder in sorted(HERE.iterdir()) if (folder / "slim.json").is_file()}
"""Name -> folder of each embedded model."""
