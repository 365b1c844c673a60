"""One network of an ensemble: its seed, hyperparameters, schedule and data order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.objective import whole_number
from undertow.train.ensemble._sampling import ORDERS, Order
from undertow.train.local_sgd import Workers
from undertow.train.rules import HYPER, Hyper
from undertow.train.schedules import Factors, Steps


@dataclass(frozen=True)
class Member:
    """One network of an ensemble.

    Attributes:
        seed: decides the initial weights (where the model is a factory), the data order and the
            label noise. Members that share initial weights but not these are given modules instead.
        lr: learning rate.
        weight_decay: PyTorch's coefficient, twice the lambda of papers that penalise
            lambda ||W||^2.
        momentum: heavy-ball coefficient; read by `rules.momentum` and `rules.ema_momentum`.
        schedule: maps an array of step numbers to factors of `lr`; see `train.schedules`. Under
            `rules.svag` it is given the steps of the rule inside: time, not updates.
        order: how the data are visited: `epochs` (a fresh shuffle each), `replacement`, `cyclic`
            (one shuffle, kept) or `full` (every sample each step).
        beta1: decay of the mean of gradients; read by the rules of the Adam family.
        beta2: decay of the mean of squared gradients; also read by `rules.rmsprop`.
        eps: added to the root of that mean.
        workers: the workers of Local SGD that train the member together; None: it trains alone.
    """

    seed: int
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.0
    schedule: Callable[[Steps], Factors] | None = None
    order: Order = "epochs"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    workers: Workers | None = None

    def __post_init__(self) -> None:
        whole_number("seed", self.seed, least=0)
        Hyper(*(getattr(self, name) for name in HYPER))
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")
        if self.workers is not None and not isinstance(self.workers, Workers):
            raise TypeError(f"workers must be train.Workers or None, got {self.workers!r}")


def stacked_hyper(members: Sequence[Member], device: torch.device | str) -> Hyper:
    """The members' hyperparameters, each `[E]`, in float64: rates and decays cancel digits.

    Those of the adaptive rules are numbers where all members share them, which is faster.
    """
    values: dict[str, float | Tensor] = {}
    for name in HYPER:
        own = [float(getattr(member, name)) for member in members]
        shared = name in ("beta1", "beta2", "eps") and len(set(own)) == 1
        values[name] = own[0] if shared else torch.tensor(own, dtype=torch.float64, device=device)
    return Hyper(**values)


def learning_rates(
    members: Sequence[Member], first_step: int, steps: int, steps_per_step: float
) -> Float64[np.ndarray, "steps E"]:
    """Every member's learning rate at each of `steps` steps from number `first_step` on.

    Raises:
        ValueError: a schedule gave another number of factors, or a rate that cannot be stepped at.
    """
    numbers = np.arange(first_step, first_step + steps)
    shown = np.floor(numbers / steps_per_step).astype(np.int64)
    columns = []
    for member in members:
        factors = np.ones(steps)
        if member.schedule is not None:
            factors = np.asarray(member.schedule(shown), dtype=np.float64)
        if factors.shape != (steps,):
            raise ValueError(
                f"a schedule must return one factor for each of the {steps} steps that it is "
                f"given, got shape {factors.shape}"
            )
        columns.append(member.lr * factors)
    rates = np.stack(columns, axis=1)
    decay = np.array([member.weight_decay for member in members])
    if not (np.isfinite(rates).all() and (rates >= 0).all() and (rates * decay < 1).all()):
        raise ValueError(
            "a schedule gave a learning rate that is negative, not finite, or at least "
            f"1 / weight_decay, between steps {numbers[0]} and {numbers[-1]}"
        )
    return rates
