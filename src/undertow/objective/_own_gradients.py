"""Models and losses that differentiate by themselves, evaluated where no gradient is asked for.

Physics-informed networks, inner loops and gradient penalties call `autograd.grad`, in their inputs
or parameters, and fail without a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from undertow.objective._inputs import over_tensors

Result = TypeVar("Result")


def evaluated_with_own_gradients(
    evaluate: Callable[[Mapping[str, Tensor]], Result], tensors: Mapping[str, Tensor]
) -> Result:
    """`evaluate(tensors)`, with a graph while it is computed where it cannot do without one.

    Args:
        evaluate: of parameters and buffers.
        tensors: these, by name.
    """
    try:
        return evaluate(tensors)
    except RuntimeError as error:
        if torch.is_grad_enabled() or "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        leaves = {
            name: tensor.detach().requires_grad_(tensor.is_floating_point() or tensor.is_complex())
            for name, tensor in tensors.items()
        }
        found = evaluate(leaves)
    detached: Result = over_tensors(Tensor.detach, found)
    return detached
