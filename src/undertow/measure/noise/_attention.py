"""PyTorch's attention between its projections.

Given identities in the place of its weights, it would multiply by them, a product each. It is run
with a `linear` in its place that leaves such products out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# What attention projects its inputs by, if PyTorch has it by this name.
_PROJECTION = "_in_projection"


def between_projections(
    attention: Callable[..., Any], given: Mapping[str, Any], parts: Sequence[Tensor]
) -> Any:
    """What attention makes of queries, keys and values that are projected, and its weights.

    Args:
        attention: PyTorch's function.
        given: its arguments by name.
        parts: the projected queries, keys and values.
    """
    weight = given["in_proj_weight"]
    identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    replaced: dict[str, Any] = dict(zip(("query", "key", "value"), parts, strict=True))
    replaced |= {f"{letter}_proj_weight": identity for letter in "qkv"}
    replaced |= {"use_separate_proj_weight": True, "in_proj_weight": None}
    replaced |= {"in_proj_bias": None, "out_proj_weight": identity, "out_proj_bias": None}
    return without_products(attention, identity)(**{**given, **replaced})


def without_products(attention: Callable[..., Any], identity: Tensor) -> Callable[..., Any]:
    """The same function, in which inputs pass a product with this very tensor unchanged.

    It is the function itself where that is not what PyTorch's is known to be: its products with
    identities give the same.
    """

    def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight is identity and bias is None:
            return inputs
        return functional.linear(inputs, weight, bias)

    project = vars(functional).get(_PROJECTION)
    if not (isinstance(attention, FunctionType) and isinstance(project, FunctionType)):
        return attention
    names: dict[str, Any] = {"linear": linear}
    return _copy(attention, {**names, _PROJECTION: _copy(project, names)})


def _copy(function: FunctionType, names: Mapping[str, Any]) -> FunctionType:
    """A function in which some names mean something else."""
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
