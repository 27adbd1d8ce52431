"""Tables, pictures and model cards."""
