"""Decoders: prompts in pieces, single tokens, and what is kept of the ones before."""
