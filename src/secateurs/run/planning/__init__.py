"""From layers to a program: memory, layouts, and the steps that kernels run."""
