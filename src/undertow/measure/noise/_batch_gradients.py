"""The gradients of given minibatches, decay included: what `noise_floor` is a floor under.

At a point where the full-batch gradient is zero these are the noise of SGD itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from undertow.measure._kinds import check_objective
from undertow.measure._nested import together
from undertow.objective import Objective, dense, taken


def batch_gradient_norms(
    objective: Objective, batches: Int64[Tensor, "batches size"], *, weight_decay: float = 0.0
) -> Mapping[str, Float64[Tensor, " batches"]]:
    """||grad L_S + weight_decay W|| of every parameter, for each minibatch S.

    The batch of all samples, `torch.arange(n)[None]`, has the norms of the full gradient.

    Args:
        objective: its model is evaluated in eval mode and left as found.
        batches: the samples of each minibatch, by their places in the data.
        weight_decay: PyTorch's, as added to the gradient.

    Returns:
        Norms by the parameter's name.

    Raises:
        TypeError: `objective` is none.
        ValueError: `batches` is empty or not `[batches, size]`, or names a sample that there is
            not; or weight_decay is negative or not finite.
    """
    check_objective(objective)
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay must be finite and not negative, got {weight_decay!r}")
    if batches.ndim != 2 or batches.numel() == 0:
        raise ValueError(f"batches must be [batches, size], got shape {tuple(batches.shape)}")
    risk = objective.risk
    inputs, targets = together(risk)
    if batches.min() < 0 or batches.max() >= len(targets):
        low, high = int(batches.min()), int(batches.max())
        raise ValueError(f"batches must name samples 0 to {len(targets) - 1}, got {low} to {high}")
    current = risk.own()
    found: dict[str, list[Tensor]] = {name: [] for name in risk.param_names}
    with risk.evaluating(), torch.enable_grad():
        for chosen in batches.to(targets.device):
            own = {name: current[name].clone().requires_grad_() for name in found}
            total, count = risk.sum_and_count(
                {**current, **own}, taken(inputs, chosen), targets[chosen]
            )
            gradients = torch.autograd.grad(
                total / count, list(own.values()), allow_unused=True, materialize_grads=True
            )
            for (name, weight), gradient in zip(own.items(), gradients, strict=True):
                decayed = dense(gradient) + weight_decay * weight.detach()
                found[name].append(decayed.double().norm())
    return {name: torch.stack(norms) for name, norms in found.items()}
