"""Secateurs: finds what a trained network does not need, removes it, recovers the accuracy, and proves what that bought.

>>> import secateurs as sc
>>> sc.NofM(2, 4)
NofM(2, 4)
"""

import lazy_loader

__version__ = "0.1.0"

# The names are those of __init__.pyi; each is imported when somebody asks for it (PEP 562).
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
