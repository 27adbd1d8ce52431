"""Models in and out: folders, the Hub, export formats."""
