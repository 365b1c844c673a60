"""Optimizers on a noisy quadratic, many copies at once: their paths at matched numbers of samples.

Those that PyTorch has are PyTorch's; the others are their recursions written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

STEPS = 960  # at the small batch
NOISE = 8.0  # the sd of one sample's gradient, where its mean is 1 at the start
SHAPES = {"muon": (24, 12, 8), "lamb": (32, 128), "adafactor": (64, 64)}

Step = Callable[[Tensor, Tensor], Tensor]


def path(family: str, hyper: Mapping[str, Any], k: int, seed: int) -> Tensor:
    """[6, 2]: the mean of the weights along their start, and of their squares, in six pieces."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(SHAPES.get(family, (4096,)))
    if family == "muon":  # another matrix than one of rank one, the same in each copy
        weights[:] = torch.randn(12, 8, generator=torch.Generator().manual_seed(9)) * 0.3
    start, step, found = weights.clone(), stepper(family, dict(hyper)), []
    for taken in range(1, STEPS // k + 1):
        noise = torch.randn(weights.shape, generator=generator)
        weights = step(weights, weights + NOISE / math.sqrt(k) * noise)
        if taken % (STEPS // k // 6) == 0:
            found.append([(weights * start).sum() / start.square().sum(), weights.square().mean()])
    return torch.tensor(found)


def stepper(family: str, hyper: dict[str, Any]) -> Step:
    """One optimizer from its beginning."""
    if family in WRITTEN_OUT:
        return WRITTEN_OUT[family](**hyper)
    kinds: dict[str, Any] = {
        "sgd": torch.optim.SGD,
        "momentum": torch.optim.SGD,
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "nadam": torch.optim.NAdam,
        "radam": torch.optim.RAdam,
        "adamax": torch.optim.Adamax,
        "adafactor": torch.optim.Adafactor,
    }
    made: list[Any] = []

    def step(weights: Tensor, grads: Tensor) -> Tensor:
        if not made:
            param = torch.nn.Parameter(weights.clone())
            made.extend([param, kinds[family]([param], **hyper)])
        made[0].grad = grads
        made[1].step()
        return made[0].detach().clone()

    return step


def _lion(lr: float, betas: tuple[float, float], weight_decay: float = 0.0) -> Step:
    mean: Any = 0.0

    def step(weights: Tensor, grads: Tensor) -> Tensor:
        nonlocal mean
        update = (betas[0] * mean + (1 - betas[0]) * grads).sign()
        mean = betas[1] * mean + (1 - betas[1]) * grads
        return weights * (1 - lr * weight_decay) - lr * update

    return step


def _sign(lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> Step:
    return _lion(lr, (momentum, momentum), weight_decay)


def _muon(
    lr: float, momentum: float, nesterov: bool, weight_decay: float, eps: float = 0.0
) -> Step:
    mean: Any = 0.0

    def step(weights: Tensor, grads: Tensor) -> Tensor:
        nonlocal mean
        mean = momentum * mean + (1 - momentum) * grads
        ahead = momentum * mean + (1 - momentum) * grads if nesterov else mean
        left, _, right = torch.linalg.svd(ahead, full_matrices=False)
        return weights * (1 - lr * weight_decay) - lr * left @ right

    return step


def _lamb(lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0) -> Step:
    mean: Any = 0.0
    square: Any = 0.0
    count = 0

    def step(weights: Tensor, grads: Tensor) -> Tensor:
        nonlocal mean, square, count
        count += 1
        mean = betas[0] * mean + (1 - betas[0]) * grads
        square = betas[1] * square + (1 - betas[1]) * grads.square()
        root = (square / (1 - betas[1] ** count)).sqrt() + eps
        update = mean / (1 - betas[0] ** count) / root + weight_decay * weights
        trust = weights.norm(dim=1, keepdim=True) / update.norm(dim=1, keepdim=True)
        return weights - lr * trust * update

    return step


def _schedule_free(
    lr: float,
    betas: tuple[float, float] | None = None,
    eps: float = 0.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> Step:
    """Of SGD, and with `betas` of AdamW (2405.15682); a step returns the averaged weights."""
    between = momentum if betas is None else betas[0]
    fast: Any = None
    square: Any = 0.0
    count = 0

    def step(average: Tensor, grads: Tensor) -> Tensor:
        nonlocal fast, square, count
        fast = average if fast is None else fast
        count += 1
        ahead = (1 - between) * fast + between * average
        grads = grads - average + ahead  # that of the quadratic, where this method takes it
        direction = grads
        if betas is not None:
            square = betas[1] * square + (1 - betas[1]) * grads.square()
            direction = grads / ((square / (1 - betas[1] ** count)).sqrt() + eps)
        fast = fast - lr * direction - lr * weight_decay * ahead
        return average + (fast - average) / count

    return step


WRITTEN_OUT: dict[str, Callable[..., Step]] = {
    "lion": _lion,
    "sign": _sign,
    "muon": _muon,
    "lamb": _lamb,
    "schedulefree-sgd": _schedule_free,
    "schedulefree-adamw": _schedule_free,
}
