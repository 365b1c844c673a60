"""An update rule beside its SDE, driven by the same normal numbers.

The noise function of a `NoisyGradient` sees the numbers of every Euler-Maruyama step; those of the
steps in the time of one update, added up, are the numbers of that update. Second moments then
differ by their bias with hardly any noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from undertow.train import flows, rules

Kind = Literal["sgd", "rmsprop", "adam"]
RULES = {"sgd": rules.sgd, "rmsprop": rules.rmsprop, "adam": rules.adam}
# What stays when the learning rate changes: c_i = (1 - beta_i) / lr^2, eps lr, and the age of the
# averages at the start.
RATE1, RATE2, EPS, AGE = 1.0, 1.0, 0.5, 1.0
# Euler-Maruyama steps in the time of one update.
SUBSTEPS = 4


@dataclass(frozen=True)
class Case:
    """A gradient and its noise at learning rate 1, `[replicas, params]`; and where it starts."""

    gradient: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor, Tensor], Tensor]
    noise_size: int
    start: Tensor

    @property
    def variance(self) -> Tensor:
        """The diagonal of the covariance at the start."""
        units = torch.eye(self.noise_size, dtype=torch.float64)
        return self.noise(self.start.expand(self.noise_size, -1), units).square().sum(0)


def quadratic() -> Case:
    curvature = torch.tensor([0.4, 0.6, 0.8], dtype=torch.float64)
    spread = torch.tensor([1.0, 0.7, 0.8], dtype=torch.float64)
    start = torch.full((3,), 2.0, dtype=torch.float64)
    return Case(lambda x: curvature * x, lambda x, z: z * spread, 3, start)


def network() -> Case:
    """Two tanh units on six samples, with the noise of batches of 32, drawn with replacement."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    targets = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 0.5], dtype=torch.float64)

    def losses(theta: Tensor) -> Tensor:
        hidden = torch.tanh(inputs @ theta[:4].reshape(2, 2).T)
        return (hidden @ theta[4:] - targets).square() / 2

    def noise(theta: Tensor, z: Tensor) -> Tensor:
        return torch.func.vjp(losses, theta)[1]((z - z.mean()) / math.sqrt(6 * 32))[0]

    return Case(
        torch.func.vmap(torch.func.grad(lambda theta: losses(theta).mean())),
        torch.func.vmap(noise),
        6,
        torch.tensor([0.8, -0.4, 0.3, 0.9, 1.0, -0.7], dtype=torch.float64),
    )


def gap(
    kind: Kind,
    case: Case,
    lr: float,
    *,
    time: float,
    replicas: int,
    finer: float = 1,
    age: float = AGE,
) -> Tensor:
    """theta^2 of the rule, or of its SVAG, less that of its SDE, of each replica at `time`.

    Adam's averages have the given age at the start, at which they are what a constant gradient
    and its noise make of them.
    """
    rule = rules.svag(RULES[kind], finer)
    # At learning rate lr, SGD keeps its noise; the others keep that of lr x gradient.
    scale = 1.0 if kind == "sgd" else 1 / lr
    beta1, beta2, eps = max(0.0, 1 - RATE1 * lr**2), 1 - RATE2 * lr**2, EPS / lr
    drawn: list[Tensor] = []

    def noise(theta: Tensor, z: Tensor) -> Tensor:
        drawn.append(z.clone())
        return scale * case.noise(theta, z)

    common: dict[str, Any] = {
        "problem": flows.NoisyGradient(case.gradient, noise=noise, noise_size=case.noise_size),
        "time": time,
        "lr": lr,
        "start": case.start,
        "replicas": replicas,
        "generator": torch.Generator().manual_seed(0),
        "substeps": SUBSTEPS * round(rule.steps_per_step),
    }
    square = scale**2 * case.variance
    state: rules.State = {}
    if kind == "sgd":
        flow = flows.sgd_sde(**common)
    elif kind == "rmsprop":
        flow = flows.rmsprop_sde(**common, beta2=beta2, eps=eps, square=square)
        state = {"square": [square]}
    else:
        mean = -math.expm1(-RATE1 * age) * case.gradient(case.start[None])[0]
        square = -math.expm1(-RATE2 * age) * square
        begin = {"start_time": age, "mean": mean, "square": square} if age else {}
        flow = flows.adam_sde(**common, beta1=beta1, beta2=beta2, eps=eps, **begin)
        seen = torch.tensor(float(round(age / lr**2 * rule.steps_per_step)))
        state = {"mean": [mean], "square": [square], "step": [seen]}
    state = {
        name: [part.expand(replicas, -1) if part.ndim else part for part in parts]
        for name, parts in state.items()
    }
    hyper = rules.Hyper(lr, beta1=beta1, beta2=beta2, eps=eps)
    return _end(rule, hyper, case, drawn[-flow.steps :], scale, state) - flow.states[-1].square()


def _end(
    rule: rules.Rule,
    hyper: rules.Hyper,
    case: Case,
    drawn: Sequence[Tensor],
    scale: float,
    state: rules.State,
) -> Tensor:
    """theta^2 after the rule's updates with the same normal numbers."""
    normals = torch.stack(list(drawn)).unflatten(0, (-1, SUBSTEPS)).sum(1) / math.sqrt(SUBSTEPS)
    # With normal noise, a weighted sum of independent batches is one batch of this noise.
    larger = math.sqrt(sum(weight**2 for weight in rule.batch_weights))
    theta = case.start.expand(len(normals[0]), -1)
    if "square" in state:  # SVAG's gradients have larger squares
        state["square"] = [larger**2 * square for square in state["square"]]
    for z in normals:
        gradient = case.gradient(theta) + larger * scale * case.noise(theta, z)
        (theta,), state = rule.update([theta], [gradient], state, hyper)
    return theta.square()


def order(units: Sequence[float], gaps: Sequence[Tensor]) -> tuple[float, float]:
    """The log-log slope of the size of the mean gap, with a jackknife standard error."""

    def slope(means: list[Tensor]) -> float:
        sizes = [math.log(float(mean.norm())) for mean in means]
        return float(np.polyfit(np.log(units), sizes, 1)[0])

    parts = [list(each.chunk(10)) for each in gaps]
    without = [
        slope([torch.cat(part[:left] + part[left + 1 :]).mean(0) for part in parts])
        for left in range(10)
    ]
    return slope([each.mean(0) for each in gaps]), float(np.std(without)) * 3.0
