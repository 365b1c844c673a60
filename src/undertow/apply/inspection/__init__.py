"""Read a checkpoint: what each weight matrix is, and what became of it."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
