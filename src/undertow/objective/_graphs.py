"""Graphs of backward passes: how much memory they keep alive, and whether they go on to the end.

Memory is that of the tensors that a graph saves; where these cannot be seen, as under the
transforms of `torch.func`, of all that is computed while it is built, which is no less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from undertow.objective._sparse import parts

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


def check_differentiable(gradients: Iterable[Tensor | None]) -> None:
    """Raise ValueError where a gradient came through a function without a second derivative.

    Autograd says so only to those who walk all of the graph; asked for derivatives in given
    tensors, it passes such ends by, and the terms beyond them are missing.
    """
    waiting = [g.grad_fn for g in gradients if g is not None and g.grad_fn is not None]
    seen = set(waiting)
    ended, own = False, set[str]()
    while waiting:
        node = waiting.pop()
        ended = ended or node.name().endswith("autograd::Error")
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            own.add(type(node).__name__.removesuffix("Backward"))
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                waiting.append(after)
    if ended:
        named = f" (one of {', '.join(sorted(own))})" if own else ""
        raise ValueError(
            "the model or the loss has no second derivative: an autograd.Function in it is "
            f"once_differentiable{named}"
        )


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
        stored = [] if tensor.layout is torch.strided else parts(tensor)
        if stored:
            return [piece for part in stored for piece in _memory(part)]
        return [(id(tensor), math.prod(tensor.shape) * tensor.dtype.itemsize)]
