"""How much memory a computation takes by the number of its rows, found on a few of them.

Every tensor that is made is counted while it is alive, graphs included; what a kernel needs within
itself is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MEMORY = 2**28
"""Bytes that a block of rows may take, if the caller does not say; more is hardly faster."""
_KERNELS = 1.1  # what kernels take within themselves


@dataclass(frozen=True)
class Need:
    """Bytes by rows: `fixed + rows * per_row`."""

    fixed: float
    per_row: float

    def of(self, rows: int) -> int:
        """Bytes that so many rows take."""
        return round(self.fixed + rows * self.per_row)

    def rows(self, memory: int, what: str) -> int:
        """How many fit.

        Raises:
            ValueError: not even one does.
        """
        rows = int((memory - self.fixed) / max(self.per_row, 1.0))
        if rows < 1:
            raise ValueError(
                f"memory must hold at least one {what}, which takes about {self.of(1):,} bytes, "
                f"got {memory:,}"
            )
        return rows


def need(run: Callable[[int], object], most: int) -> Need:
    """What `run(rows)` takes, from one and a few rows; run once before, for what is made once."""
    few = min(4, most)
    run(1)
    one = peak_bytes(lambda: run(1))
    if few == 1:
        return Need(0.0, one * _KERNELS)
    per_row = max(0.0, (peak_bytes(lambda: run(few)) - one) / (few - 1))
    return Need(max(0.0, one - per_row) * _KERNELS, per_row * _KERNELS)


def peak_bytes(function: Callable[[], object]) -> int:
    """The most that tensors made by a function take at a time."""
    with _Alive() as alive:
        function()
    return alive.peak


def blocks(count: int, size: int) -> Iterator[slice]:
    """Slices of so many rows that cover all of them."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are made, while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for given in tree_leaves((args, kwargs)):
            self._see(given, made=False)
        found = func(*args, **(kwargs or {}))
        for made in tree_leaves(found):
            self._see(made, made=True)
        return found

    def _see(self, value: Any, *, made: bool) -> None:
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001 (no public identity)
        if key in self._known or not size:
            return
        size *= made

        def gone(_: object) -> None:
            self._known.pop(key, None)
            self._now -= size

        self._known[key] = weakref.ref(storage, gone)
        self._now += size
        self.peak = max(self.peak, self._now)
