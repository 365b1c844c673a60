"""How much memory the graph of a backward pass keeps alive.

By the tensors that it saves; where these cannot be seen, as under the transforms of `torch.func`,
by all that is computed while it is built, which is no less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Hooks on tensors that are larger on average do not slow a graph down.
_HOOK_BYTES = 2**16


def graph_bytes(build: Callable[[], object], leaves: Iterable[Tensor]) -> tuple[int, bool]:
    """Memory that a graph keeps alive beside the parameters, and whether to build it anew.

    The hooks that count it stay in the graph and would slow one of small tensors down.
    """
    known = {place for leaf in leaves for place, _ in _memory(leaf)}
    sizes: dict[Any, int] = {}
    hooks = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal hooks
        hooks += 1
        sizes.update(_memory(tensor))
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            build()
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        return _computed_bytes(build), False
    total = sum(size for place, size in sizes.items() if place not in known)
    return total, total < hooks * _HOOK_BYTES


def _computed_bytes(build: Callable[[], object]) -> int:
    with _Computed() as computed:
        build()
    return sum(computed.sizes.values())


class _Computed(TorchDispatchMode):
    """Adds up what operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[Any, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, tuple | list) else (found,):
            if isinstance(part, Tensor):
                for place, size in _memory(part):
                    self.sizes[place] = max(size, self.sizes.get(place, 0))
        return found


def _memory(tensor: Tensor) -> list[tuple[Any, int]]:
    """Each piece of memory behind a tensor, by something that names it, and its bytes.

    Not every kind has a storage: sparse tensors have parts, and of others all that is known is
    how many numbers they stand for.
    """
    try:
        storage = tensor.untyped_storage()
        return [(storage.data_ptr(), storage.nbytes())]
    except (NotImplementedError, RuntimeError):
        parts = _parts(tensor)
        if parts:
            return [piece for part in parts for piece in _memory(part)]
        return [(id(tensor), math.prod(tensor.shape) * tensor.dtype.itemsize)]


def _parts(tensor: Tensor) -> list[Tensor]:
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]  # noqa: SLF001, the public ones coalesce
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return []
