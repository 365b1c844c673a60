"""Undertow: measure, predict, use and reproduce the implicit bias of gradient-based training.

`import undertow as ut` loads nothing heavy: every name below resolves on first use.
"""

import lazy_loader as _lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
