"""From recorded operations of torch to the layers that kernels know."""
