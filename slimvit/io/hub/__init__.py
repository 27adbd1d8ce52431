"""Models on the Hugging Face Hub: names, listing, fetching."""
