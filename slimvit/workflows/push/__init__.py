"""Upload to the Hub."""
