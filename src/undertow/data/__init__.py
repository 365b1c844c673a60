"""The few real datasets that claims train on: images and text in seeded subsets, and tables."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
