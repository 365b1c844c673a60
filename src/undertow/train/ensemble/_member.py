"""One network of an ensemble: its seed, hyperparameters, schedule and data order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undertow.objective import whole_number
from undertow.train.ensemble._sampling import ORDERS, Order
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

    def __post_init__(self) -> None:
        whole_number("seed", self.seed, least=0)
        Hyper(*(getattr(self, name) for name in HYPER))
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")


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
