"""What a model is given: a tensor, or tensors in tuples, lists and dictionaries, nested at will.

A tuple or a list is `model(*inputs)`, a dictionary `model(**inputs)`. In each tensor the samples
lie along the first axis; what is no tensor is the same for all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def over_tensors(
    function: Callable[[Tensor], Any], part: Any, rest: Callable[[Any], Any] = lambda other: other
) -> Any:
    """The same tree with `function` of each tensor, and `rest` of what else there is.

    Mappings of any kind become dictionaries.
    """
    if isinstance(part, Tensor):
        return function(part)
    if isinstance(part, Mapping):
        return {name: over_tensors(function, value, rest) for name, value in part.items()}
    if isinstance(part, tuple | list):
        values = [over_tensors(function, value, rest) for value in part]
        if isinstance(part, list):
            return values
        return type(part)(*values) if hasattr(part, "_fields") else tuple(values)
    return rest(part)


def leaves(part: Any, name: str = "inputs") -> Iterator[tuple[str, Any]]:
    """Everything in the tree that holds no inputs of its own, with where it lies."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            yield from leaves(value, str(key) if name == "inputs" else f"{name}[{key!r}]")
    elif isinstance(part, tuple | list) and not isinstance(part, PackedSequence):
        for index, value in enumerate(part):
            yield from leaves(value, f"{name}[{index}]")
    else:
        yield name, part


def taken(part: Any, chosen: Any) -> Any:
    """Some samples of every tensor: a slice, a mask or positions; None adds an axis in front."""
    return over_tensors(lambda tensor: _rows(tensor, chosen), part)


def taken_to(part: Any, chosen: Any, device: torch.device) -> Any:
    """The same, on a device."""
    return over_tensors(lambda tensor: _rows(tensor, chosen).to(device), part)


def sample_bytes(inputs: Any) -> int:
    """What one sample takes, at least one."""
    tensors = [part for _, part in leaves(inputs) if isinstance(part, Tensor)]
    return max(1, sum(t.numel() * t.element_size() // max(1, len(t)) for t in tensors))


def _rows(tensor: Tensor, chosen: Any) -> Tensor:
    if tensor.layout is torch.strided or chosen is None:
        return tensor[chosen]
    # Sparse tensors take positions, and those that are compressed not even these.
    index = torch.arange(len(tensor), device=tensor.device)[chosen]
    if tensor.layout is torch.sparse_coo:
        return tensor.index_select(0, index)
    return tensor.to_sparse_coo().index_select(0, index).to_sparse(layout=tensor.layout)


def as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called: by place and by name."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def described(part: Any) -> str:
    """A value in a few words that never show its contents."""
    if isinstance(part, Tensor):
        return f"a tensor of shape {list(part.shape)}"
    if isinstance(part, Mapping):
        return f"a {type(part).__name__} of {', '.join(map(str, list(part)[:5]))}"
    if isinstance(part, tuple | list):
        return f"a {type(part).__name__} of {len(part)}"
    return f"a {type(part).__name__}"
