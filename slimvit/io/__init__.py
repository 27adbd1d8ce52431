"""Reading and writing models: saved models, the Hub, export formats."""
