"""Undertow: measure, predict, use and reproduce the implicit bias of gradient-based training.

`import undertow as ut` loads nothing heavy: every name below resolves on first use.
"""

from typing import Any as _Any

import lazy_loader as _lazy

from undertow._quietly import quietly as _quietly

__version__ = "0.1.0"

_load, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)


def __getattr__(name: str) -> _Any:
    """What a public name stands for; what it needs is loaded then."""
    with _quietly():
        return _load(name)
