"""The gradient of a risk, and draws of the noise of a mini-batch's gradient.

Gaussian noise needs neither a covariance nor per-sample gradients: one backward pass through the
losses weighted by centred normal weights draws from it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.objective._autotuning import fastest_pull_back
from undertow.objective._evaluation import Tensors
from undertow.objective._linearization import pull_back
from undertow.objective._module import dense, product_type, widest
from undertow.objective._risk import EmpiricalRisk


def gradient(risk: EmpiricalRisk) -> Float[Tensor, " params"]:
    """The gradient of L as one vector, in the order of the risk's `param_names`.

    In the parameters' type; half precision is added up in float32. A parameter that the loss does
    not depend on has gradient zero.

    Raises:
        ValueError: if the loss depends on none of the parameters, no target counts, or the
            gradient is not finite.
    """
    reached, own_type = False, torch.float32

    def contribution(tensors: Tensors, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal reached, own_type
        with torch.enable_grad():
            leaves = {n: tensors[n].detach().requires_grad_() for n in risk.param_names}
            total, count = risk.sum_and_count({**tensors, **leaves}, inputs, targets)
            slopes: Iterable[Tensor | None] = [None] * len(leaves)
            if total.requires_grad:
                # Of the mean: half precision would not hold the gradient of the sum.
                slopes = torch.autograd.grad(
                    total / count, list(leaves.values()), allow_unused=True
                )
        reached = reached or bool(count == 0) or any(slope is not None for slope in slopes)
        parts = [
            torch.zeros_like(leaf) if slope is None else dense(slope)
            for leaf, slope in zip(leaves.values(), slopes, strict=True)
        ]
        flat = torch.cat([part.flatten() for part in parts])
        own_type = flat.dtype
        return flat.to(product_type(flat.dtype)) * count, count

    found = risk.mean(contribution)
    risk.check_reached(reached)
    return found.to(own_type)


def gradient_noise_draws(
    risk: EmpiricalRisk, draws: int, batch_size: int, generator: torch.Generator
) -> Float[Tensor, "draws params"]:
    """What `Objective.sample_noise` says.

    Raises:
        ValueError: if there is only one sample, samples influence each other, or no target counts.
    """
    samples = risk.num_samples
    if samples < 2:
        raise ValueError("data hold one sample: its gradient has no covariance")
    risk.check_samples()
    with torch.inference_mode(False):  # whose tensors no graph could hold
        weights = torch.randn(
            draws, samples, generator=generator, dtype=torch.float64, device=generator.device
        )
        counts = risk.all_denominators().to(weights)
        if counts.sum() == 0:
            raise ValueError("no target counts: every label is ignored or has class weight zero")
        weights -= (weights @ counts / counts.sum())[:, None]
        total = _weighted_gradients(risk, weights)
        return risk.normalized(total, math.sqrt(samples * batch_size) * counts.mean())


def _weighted_gradients(
    risk: EmpiricalRisk, weights: Float[Tensor, "draws samples"]
) -> Float[Tensor, "draws params"]:
    """For each row of weights, the gradient of the so weighted sum of the samples' losses."""
    tensors = risk.copies()
    leaves = tuple(tensors[name].requires_grad_() for name in risk.param_names)
    weights = weights.to(leaves[0].device, widest(leaves))
    total = weights.new_zeros(len(weights), sum(leaf.numel() for leaf in leaves))
    first = 0
    batched: bool | None = None

    def compute(tensors: Tensors, inputs: Any, targets: Tensor) -> tuple[Tensor, int]:
        nonlocal batched
        with torch.enable_grad():
            sums = risk.sample_sums(tensors, inputs, targets)
        chosen = weights[:, first : first + len(targets)]
        if batched is None:
            batched = fastest_pull_back(sums, leaves, chosen)
        return pull_back([sums], leaves, [chosen], batched=batched), len(targets)

    def collect(result: tuple[Tensor, int]) -> None:
        nonlocal first
        total.add_(result[0])
        first += result[1]

    risk.sweep(compute, collect, tensors)
    return total
