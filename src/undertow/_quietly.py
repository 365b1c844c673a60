"""Other packages loaded without a trace in the process but for themselves.

On their first import some draw from Python's random state or set environment variables.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """Put Python's random state and the environment back at the end."""
    random = sys.modules.get("random")  # nobody's, if it has not been loaded
    state = random.getstate() if random is not None else None
    environment = dict(os.environ)
    try:
        yield
    finally:
        if random is not None:
            random.setstate(state)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(
            {name: value for name, value in environment.items() if os.environ.get(name) != value}
        )
