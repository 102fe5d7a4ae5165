"""What a model computes, recorded from one call."""
