"""What a compiled model is made of, and how torch runs it."""
