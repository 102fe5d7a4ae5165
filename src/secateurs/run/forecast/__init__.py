"""How fast a model would be, before it is pruned and after."""
