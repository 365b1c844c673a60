"""Gradient flow on the factors of a matrix, seen as the flow of their product.

`train.factored_descent` takes steps of the same; `train.greedy_low_rank` is its limit from an
infinitesimal start (Li, Luo and Lyu, arXiv 2012.09839).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.train.flows._gradient_flow import GradientFlow, gradient_flow
from undertow.train.flows._path import Event


def factored_flow(
    loss: Callable[[Tensor], Tensor],
    start: Float[Tensor, "dim rank"] | Sequence[Float[Tensor, "_ _"]],
    time: float | Sequence[float],
    *,
    events: Sequence[Event | Callable[[Tensor], Any]] = (),
    **options: Any,
) -> GradientFlow:
    """Gradient flow on f(W_1 W_2 ... W_L) over the factors, or on f(U U^T) / 2 over U.

    Args:
        loss: f, from W `[rows, cols]` in float64 to a scalar tensor; see `completion_loss`.
        start: the factors at time 0, from the left on; or one tensor U.
        time: the end, and every step is recorded; or the increasing times to record.
        events: zeros to find, of functions of W.
        options: the others of `gradient_flow`. `atol` is in units of the factors, and
            `gradient_tolerance` in those of their gradient.

    Returns:
        The flow of W: `parameters`, `event_parameters` and `at` are products, `[..., rows, cols]`.

    Raises:
        ValueError: factors that are no matrices, or cannot be multiplied; and as `gradient_flow`.
    """
    symmetric = isinstance(start, Tensor)
    factors = [start] if isinstance(start, Tensor) else list(start)
    shapes = [tuple(factor.shape) for factor in factors]
    fit = all(left[-1] == right[0] for left, right in pairwise(shapes) if left and right)
    if not shapes or any(len(shape) != 2 for shape in shapes) or not fit:
        raise ValueError(f"start must be matrices that can be multiplied, got shapes {shapes}")
    sizes = [factor.numel() for factor in factors]

    def product(theta: Tensor) -> Tensor:
        parts = zip(theta.split(sizes, -1), shapes, strict=True)
        found = [part.unflatten(-1, shape) for part, shape in parts]
        return found[0] @ found[0].mT if symmetric else reduce(torch.matmul, found)

    def of_product(given: Event | Callable[[Tensor], Any]) -> Event:
        event = given if isinstance(given, Event) else Event(given)
        return replace(event, function=lambda theta: event.function(product(theta)))

    flow = gradient_flow(
        lambda theta: (0.5 if symmetric else 1.0) * loss(product(theta)),
        time,
        start=torch.cat([factor.detach().double().flatten() for factor in factors]),
        events=[of_product(event) for event in events],
        **options,
    )
    at = flow.at
    return replace(
        flow,
        parameters=product(flow.parameters),
        event_parameters=tuple(map(product, flow.event_parameters)),
        at=None if at is None else lambda times: product(at(times)),
    )
