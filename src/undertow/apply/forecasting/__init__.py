"""What a run will forget, where it settles, and what it needs, before it starts."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
