"""Use it: read a checkpoint, move hyperparameters to another batch size, forecast a run.

Names resolve on first use, so that what needs no torch does not load it.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
