"""Running pruned models fast on a CPU: kernels for sparse weights, chosen layer by layer by timing them on this machine."""

import lazy_loader

# The names are those of __init__.pyi; each is imported when somebody asks for it (PEP 562).
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
