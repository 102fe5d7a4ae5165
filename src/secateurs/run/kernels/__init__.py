"""Sparse kernels: packing of weights, and which ones this machine can run."""
