"""An oscillator under SVAG, whose SDE has known second moments: the weak error of a discretisation.

dx = -P^-1 (x dt + noise) with noise of two values, stepped by `train.rules` themselves; 2102.12470
for SGD, 2205.10287 for RMSprop and Adam, whose running mean of squares makes P.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from undertow.train.rules import Rule, State

Process = Literal["sgd", "rmsprop", "adam", "adam from step 0"]
Weights = Literal["svag", "too weak"]
PROCESSES: tuple[Process, ...] = get_args(Process)

# eta, the end of time, where paths start, (1 - beta) / eta^2, and eps / sigma.
_ETA, _FORGETTING, _EPS = 0.5, 2.0, 0.1
_END = 2.0
_START = {"sgd": 1.0, "rmsprop": 0.0, "adam": 0.0, "adam from step 0": 0.0}
_CHUNK = 2**14  # paths at once, so that a step's arrays stay in the cache
_WARM = 1e15  # so many steps taken that no bias is left to correct


def noisier(rule: Rule, l: int, weights: Weights) -> Rule:  # noqa: E741
    """SVAG(l); or with noise too weak: its variance is (1 + l) / 2 for SGD's l, and l for l^2."""
    from undertow.train import rules

    amplified = rules.svag(rule, l)
    if weights == "svag" or l == 1:
        return amplified
    spread = math.sqrt(l if rule.name == "sgd" else 2 * l - 1)
    return replace(amplified, batch_weights=((1 + spread) / 2, (1 - spread) / 2))


def simulated_moment(
    process: Process,
    weights: Weights,
    l: int,  # noqa: E741 - the paper's letter
    *,
    paths: int,
    seed: int,
) -> float:
    """E x^2 at the end of time under SVAG(l), from so many paths."""
    if process == "sgd":
        return _simulate_sgd(weights, l, paths=paths, seed=seed)
    return _simulate_adaptive(process, weights, l, paths=paths, seed=seed)


def sde_moment(process: str) -> float:
    """E x^2 at the end of time of the process's SDE, with sigma eta = 1 and u at its rest.

    dx = -x dt + sqrt(eta) dW for SGD; dx = -P^-1 (x dt + dW), P = 1 + eps for RMSprop; for Adam
    dx = -(P g1)^-1 m dt, dm = c1 (x - m) dt + c1 dW, with g1 = 1 - exp(-c1 t) from step 0.
    """
    start = _START[process] ** 2
    if process == "sgd":
        return start * math.exp(-2 * _END) + _ETA / 2 * (1 - math.exp(-2 * _END))
    scale = 1 + _EPS
    if process == "rmsprop":
        faded = math.exp(-2 * _END / scale)
        return start * faded + (1 - faded) / (2 * scale)
    from scipy.integrate import solve_ivp

    def velocity(log_time: float, moments: np.ndarray) -> list[float]:
        time, (xx, xm, mm) = math.exp(log_time), moments
        grown = -math.expm1(-_FORGETTING * time) if process == "adam from step 0" else 1.0
        pull = 1 / (scale * grown)
        change = (
            -2 * pull * xm,
            -pull * mm + _FORGETTING * (xx - xm),
            2 * _FORGETTING * (xm - mm) + _FORGETTING**2,
        )
        return [time * part for part in change]

    # In the logarithm of time, as the pull diverges at step 0; before 1e-9 m is all noise.
    first = 1e-9
    begin = [start, _FORGETTING * first * start, _FORGETTING**2 * first]
    span = (math.log(first), math.log(_END))
    solved = solve_ivp(velocity, span, begin, method="LSODA", rtol=1e-10, atol=1e-14)
    return float(solved.y[0, -1])


def _noise_values(rule: Rule) -> Tensor:
    """What the weighted sum of the rule's batches can be when each one's noise is -1 or 1."""
    import torch

    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=len(rule.batch_weights))))
    return signs.double() @ torch.tensor(rule.batch_weights, dtype=torch.float64)


def _chunks(paths: int) -> list[int]:
    whole, rest = divmod(paths, _CHUNK)
    return [_CHUNK] * whole + [rest] * (rest > 0)


def _simulate_sgd(weights: Weights, l: int, *, paths: int, seed: int) -> float:  # noqa: E741
    import torch

    from undertow.train import rules

    rule = noisier(rules.sgd, l, weights)
    hyper, noise = rules.Hyper(_ETA), _noise_values(rule)
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for size in _chunks(paths):
        x = torch.full((size,), _START["sgd"], dtype=torch.float64)
        for _ in range(round(_END / _ETA * rule.steps_per_step)):
            gradient = x + noise[torch.randint(len(noise), (size,), generator=generator)]
            rule.update([x], [gradient], {}, hyper, inplace=True)
        total += float(x.square().sum())
    return total / paths


def _simulate_adaptive(
    process: Process,
    weights: Weights,
    l: int,  # noqa: E741
    *,
    paths: int,
    seed: int,
) -> float:
    """E x^2 as that of a linear companion, which is known, plus the mean difference of the two.

    The companion sees the same noise, but is preconditioned by the SDE's constant instead of the
    running mean of squares. It is close to x, so that the difference has little variance.
    """
    import torch

    from undertow.train import rules

    has_mean = process != "rmsprop"
    rule = noisier(rules.adam if has_mean else rules.rmsprop, l, weights)
    sigma = 1 / _ETA  # so that sigma eta = 1
    beta = 1 - _FORGETTING * _ETA**2
    hyper = rules.Hyper(_ETA, beta1=beta, beta2=beta, eps=_EPS * sigma)
    noise = sigma * _noise_values(rule)
    steps = round(_END / _ETA**2 * rule.steps_per_step)
    companion = _Companion(
        rate=_ETA / l,
        beta1=1 - (1 - beta) / l**2 if has_mean else 0.0,
        scale=l * sigma * (1 + _EPS),
        corrected=process == "adam from step 0",
    )
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for size in _chunks(paths):
        x = torch.full((size,), _START[process], dtype=torch.float64)
        state = rule.init([x])
        if process != "adam from step 0":
            _warm_up(state, (l * sigma) ** 2)
        own, mean = x.clone(), torch.zeros_like(x)
        for step in range(1, steps + 1):
            drawn = noise[torch.randint(len(noise), (size,), generator=generator)]
            _, state = rule.update([x], [x + drawn], state, hyper, inplace=True)
            mean = companion.beta1 * mean + (1 - companion.beta1) * (own + drawn)
            own = own - companion.gain(step) * mean
        total += float((x.square() - own.square()).sum())
    variance = float(noise.square().mean())
    return total / paths + companion.moment(_START[process], variance, steps)


def _warm_up(state: State, square: float) -> None:
    """The state of a rule that has seen nothing but noise for a long time."""
    state["square"][0].fill_(square)
    if "step" in state:
        state["step"][0].fill_(_WARM)


@dataclass(frozen=True)
class _Companion:
    """m' = beta1 m + (1 - beta1) (x + noise), x' = x - gain m': linear, with known moments."""

    rate: float
    beta1: float
    scale: float
    corrected: bool

    def gain(self, step: int) -> float:
        correction = 1 - self.beta1**step if self.corrected else 1.0
        return self.rate / (correction * self.scale)

    def moment(self, start: float, variance: float, steps: int) -> float:
        """E x^2 after so many steps."""
        keep, take = self.beta1, 1 - self.beta1
        xx, xm, mm = start**2, 0.0, 0.0
        for step in range(1, steps + 1):
            mm = keep**2 * mm + 2 * keep * take * xm + take**2 * (xx + variance)
            xm = keep * xm + take * xx
            gain = self.gain(step)
            xx, xm = xx - 2 * gain * xm + gain**2 * mm, xm - gain * mm
        return xx
