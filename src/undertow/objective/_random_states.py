"""The random states of Python and of NumPy, which models and data sets may draw from.

Torch's own are cheap to put back each time; these are looked after where they are drawn from.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

States = tuple[Any, Any]


def states() -> States:
    """Both as they are now; NumPy's is None if it has not been loaded."""
    numpy = sys.modules.get("numpy")
    return random.getstate(), None if numpy is None else numpy.random.get_state()


def set_states(found: States) -> None:
    """Put both back."""
    python, numpys = found
    random.setstate(python)
    if numpys is not None:
        sys.modules["numpy"].random.set_state(numpys)


def fresh_states() -> States:
    """Both as of the seed 0."""
    numpy = sys.modules.get("numpy")
    numpys = None if numpy is None else numpy.random.RandomState(0).get_state()
    return random.Random(0).getstate(), numpys


@contextmanager
def kept_states() -> Iterator[None]:
    """Put both back at the end."""
    found = states()
    try:
        yield
    finally:
        set_states(found)


def moved(found: States) -> bool:
    """Whether one of them is no longer what it was."""
    python, numpys = states()
    if python != found[0]:
        return True
    both = numpys is not None and found[1] is not None
    return both and any(
        (one != other).any() if hasattr(one, "any") else one != other
        for one, other in zip(numpys, found[1], strict=True)
    )
