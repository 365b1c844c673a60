"""A model's operations one by one, as its code has them.

Compiled code cannot be differentiated twice, nor seen by what watches operations. Checkpointed
code runs again in the backward pass, at the parameters that the module holds by then, and has no
gradient of torch.func's. Inside, both are run plainly; numbers are the same.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.utils import checkpoint

_here = threading.local()
_lock = threading.Lock()
_inside: set[object] = set()
# PyTorch has no switch for checkpointing; what its function looks up by name when called can be
# replaced for a while, for this thread only.
_NAMES = ("_checkpoint_without_reentrant_generator", "CheckpointFunction")
_originals: dict[str, Any] = {name: getattr(checkpoint, name, None) for name in _NAMES}


@contextmanager
def as_written() -> Iterator[None]:
    """Neither compiled nor checkpointed inside, in this thread."""
    outer, mine = getattr(_here, "depth", 0), object()
    stance: AbstractContextManager[Any] | None = None
    try:
        stance = _uncompiled()
        if stance is not None:
            stance.__enter__()
        _here.depth = outer + 1
        if not outer and None not in _originals.values():
            with _lock:
                _inside.add(mine)
                setattr(checkpoint, _NAMES[0], _generator)
                setattr(checkpoint, _NAMES[1], _Reentrant)
        yield
    finally:
        _here.depth = outer
        if not outer and None not in _originals.values():
            with _lock:
                _inside.discard(mine)
                if not _inside:
                    for name, original in _originals.items():
                        setattr(checkpoint, name, original)
        if stance is not None:
            stance.__exit__(None, None, None)


def _uncompiled() -> AbstractContextManager[Any] | None:
    if "torch._dynamo" not in sys.modules:  # loading it takes a second, and nothing is compiled
        return None
    stance: Callable[[str], AbstractContextManager[Any]] | None
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is not None:
        return stance("force_eager")
    found: AbstractContextManager[Any] = sys.modules["torch._dynamo"].config.patch(disable=True)
    return found


def _generator(*args: Any, **options: Any) -> Generator[None, None, None]:
    """Around the call of a checkpointed function: nothing, or what PyTorch does there."""
    if getattr(_here, "depth", 0):
        yield
    else:
        yield from _originals[_NAMES[0]](*args, **options)


class _Reentrant:
    """In place of PyTorch's autograd function for the older kind of checkpointing."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        """The function's own result, in this thread."""
        if getattr(_here, "depth", 0):
            return function(*args)
        return _originals[_NAMES[1]].apply(function, preserve, *args)
