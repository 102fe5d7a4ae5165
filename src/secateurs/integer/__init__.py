"""A network in int8 (or int16, or float32) as small machines run it, and what it answers, to the bit."""
