"""A network as C for a microcontroller: kernels, formats of weights, one arena, and what it costs there."""
