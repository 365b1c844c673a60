"""Dynamics in deep classifiers trained with the square loss (Xu et al., Research, 2023).

A homogeneous ReLU network is g = rho f_V with normalised layers V_k = W_k / ||W_k||_F and rho the
product of the norms. Tested on the flow of (rho, V) itself, and on ordinary training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import ASCENDING, DISTINCT, Count, Knobs, Seeds, at_least, between, some

Positive = Annotated[float, between(0, math.inf)]


@dataclass(frozen=True)
class SquareLoss(Knobs):
    """Knobs. lambda penalises rho^2; `weight_decay` is PyTorch's, of networks not normalised."""

    images: Images = Images()
    # The two that the flow and the layer norms are tested on.
    classes: Annotated[tuple[int, int], DISTINCT] = (3, 8)
    samples: Annotated[int, at_least(4)] = 100  # images of the two classes, half of each
    width: Count = 32  # of the two hidden layers of the flow's network
    # rho at the start of a flow.
    initial_rho: Annotated[tuple[float, ...], at_least(1), some(2), ASCENDING] = (1.0, 50.0, 500.0)
    # lambda, from 0, which is the control.
    rho_decay: Annotated[tuple[float, ...], some(2), ASCENDING] = (0.0, 1e-4, 1e-3, 1e-2)
    horizon: Positive = 5.0  # a flow runs for horizon / lambda; without decay, for the longest
    norms_decay: Positive = 1e-2  # weight decay of the networks whose layer norms are compared
    norms_steps: Count = 10_000  # their full-batch steps
    # Images of every class for neural collapse; of one, nothing varies within a class.
    collapse_per_class: Annotated[int, at_least(2)] = 25
    collapse_width: Count = 64  # of its three hidden layers
    collapse_decay: Positive = 1e-3  # its weight decay
    collapse_steps: Annotated[int, at_least(20)] = 6_000  # its full-batch steps
    seeds: Seeds = 8  # independent repetitions: initial weights, and images drawn

    def rules(self) -> Mapping[str, bool]:
        """Half of the images from each class; the first decay is none."""
        return {
            f"samples must be even, got {self.samples}": self.samples % 2 == 0,
            f"rho_decay must begin with 0, the control, got {self.rho_decay}": (
                self.rho_decay[0] == 0
            ),
        }

    @property
    def weakest(self) -> float:
        """The least positive lambda, at which equilibrium takes longest."""
        return self.rho_decay[1]

    @property
    def middle(self) -> float:
        """A positive lambda in the middle of those given."""
        return self.rho_decay[len(self.rho_decay) // 2]


CLAIM = Claim(
    name="square-loss",
    title="The square loss with decay drives deep classifiers to one small norm",
    paper="Xu, Rangamani, Liao, Galanti and Poggio, Dynamics in Deep Classifiers trained with the "
    "Square Loss: Normalization, Low Rank, Neural Collapse and Generalization Bounds (Research, "
    "2023)",
    statement="A ReLU network is rho f_V with normalised layers. Under the square loss with a "
    "penalty lambda rho^2 the norm settles at rho = mu / (M + lambda), mu and M the means of the "
    "margins and of their squares, and it is the same small rho from every initial scale; without "
    "penalty it stays near where it began. The smaller rho, the larger the margin; margins "
    "equalise, neural collapse sets in, and complexity counts kernels, not Toeplitz matrices.",
    corrections=(
        "The equilibrium is the flow's own equation, rho' = 2 (M + lambda) (mu / (M + lambda) - "
        "rho): wherever rho rests, fitted or not, it holds. What decay adds is that rho rests at "
        "one value.",
        "Margins equalise because the loss interpolates labels of one size, faster without decay "
        "than with it, and where it does the mean normalised margin is 1 / rho: neither is a sign "
        "of the penalty. Likewise NC1 falls without decay; NC2 and NC3 need it, and in narrow nets "
        "stop well short of collapse.",
        "A small start alone lowers the stable rank, at lambda = 0 too: low rank is no evidence of "
        "decay unless the initial scale is the same.",
        "Weight decay on every layer is not lambda rho^2: its equilibrium is rho = mu / (M + "
        "weight_decay / 2 rho^(2/L - 2)) for L layers, and squared layer norms become equal.",
        "||Toeplitz||_F = sqrt(positions) ||kernel||_F holds without padding; with zero padding "
        "it is less.",
    ),
    presets={
        "smoke": SquareLoss(
            samples=20,
            width=16,
            initial_rho=(1.0, 50.0),
            rho_decay=(0.0, 1e-3, 1e-2),
            horizon=2.0,
            norms_steps=500,
            collapse_per_class=8,
            collapse_width=32,
            collapse_steps=600,
            seeds=2,
        ),
        "small": SquareLoss(),
        "paper": SquareLoss(
            images=Images("cifar10"),
            classes=(1, 2),
            samples=10_000,
            width=1024,
            rho_decay=(0.0, 1e-5, 1e-4, 1e-3, 1e-2),
            collapse_per_class=5_000,
            collapse_width=1024,
            collapse_steps=50_000,
        ),
    },
    costs={"smoke": "14 s", "small": "3 min on two cores", "paper": "days on two cores"},
    home=__name__,
)
