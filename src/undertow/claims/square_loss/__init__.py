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
    # The two of the flows and small networks.
    classes: Annotated[tuple[int, int], DISTINCT] = (3, 8)
    samples: Annotated[int, at_least(4)] = 100  # their images, half of each
    width: Count = 32  # of hidden layers there
    # rho at the start of a flow.
    initial_rho: Annotated[tuple[float, ...], at_least(1), some(2), ASCENDING] = (1.0, 50.0, 500.0)
    # lambda; 0: control.
    rho_decay: Annotated[tuple[float, ...], some(3), ASCENDING] = (0.0, 1e-4, 1e-3, 1e-2)
    horizon: Positive = 4.0  # of a flow, over lambda
    flipped: Annotated[float, between(0, 0.5)] = 0.2  # share of the labels, in some flows
    batch_size: Count = 4  # of SGD, beside the full batch
    network_decay: Positive = 1e-2  # weight decay of small networks
    network_steps: Annotated[int, at_least(20)] = 10_000
    # Images of a class, for collapse.
    collapse_per_class: Annotated[int, at_least(2)] = 25
    collapse_width: Count = 64  # of its three hidden layers
    collapse_decay: Positive = 1e-3  # its weight decay
    collapse_steps: Annotated[int, at_least(20)] = 6_000  # its full-batch steps
    bound_per_class: Annotated[int, at_least(2)] = 10  # images that a CNN is trained on
    bound_channels: Annotated[tuple[int, ...], some(1), at_least(1)] = (16, 32)
    # Random labels' share.
    bound_noise: Annotated[tuple[float, ...], some(3), ASCENDING] = (0.0, 0.25, 0.5, 0.75, 1.0)
    bound_scales: Annotated[tuple[float, ...], some(2), ASCENDING] = (1.0, 1.5, 2.0, 2.5)
    bound_decay: Positive = 1e-3  # of half of those on true labels
    bound_steps: Count = 1_500
    seeds: Seeds = 12  # independent repetitions

    def rules(self) -> Mapping[str, bool]:
        """Half of the images from each class; decays and noise begin with none."""
        return {
            f"samples must be even, got {self.samples}": self.samples % 2 == 0,
            f"rho_decay must begin with 0, the control, got {self.rho_decay}": (
                self.rho_decay[0] == 0
            ),
            f"bound_noise must be from 0, true labels, to 1, got {self.bound_noise}": (
                self.bound_noise[0] == 0 and self.bound_noise[-1] == 1
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
    "penalty lambda rho^2, a large rho falls at the rate 2 lambda and ends at one small value, the "
    "same from every initial scale; without penalty it stays near where it began. Margins "
    "equalise, layer norms become equal and neural collapse sets in. With decay SGD never comes to "
    "rest, and weights lose rank. Where labels are noisy, decay lowers the test error; and a bound "
    "from the norms of convolution kernels orders networks of one initial scale by it.",
    corrections=(
        "rho = mu / (M + lambda) is the flow's own equation: it holds wherever rho rests, fitted "
        "or not. So does a mean margin of 1 / rho where the loss interpolates. Neither is tested.",
        "Margins equalise because the loss interpolates labels of one size, faster without decay "
        "than with it. Likewise NC1 falls without decay; NC2 and NC3 need it, and in narrow nets "
        "stop well short of collapse.",
        "A smaller rho is no better by itself: on clean labels decay takes hardly anything off the "
        "flow's test error, and on noisy ones, without decay, the larger rho tests better.",
        "Low rank is no mark of SGD: decay takes at least half of the rank in full-batch descent, "
        "too, and a small start lowers the stable rank at lambda = 0.",
        "Layer norms become equal under full-batch descent; under SGD they stay some way apart.",
        "The bounds exceed 1 by far, and rank only networks from one initial scale: a net on true "
        "labels from larger weights has a larger bound than one on random labels.",
    ),
    presets={
        "smoke": SquareLoss(
            samples=20,
            width=16,
            initial_rho=(1.0, 50.0),
            rho_decay=(0.0, 1e-3, 1e-2),
            horizon=2.0,
            network_steps=500,
            collapse_per_class=8,
            collapse_width=32,
            collapse_steps=600,
            bound_per_class=4,
            bound_channels=(8, 8),
            bound_noise=(0.0, 0.5, 1.0),
            bound_scales=(1.0, 2.0),
            bound_steps=200,
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
            bound_per_class=1_000,
            bound_channels=(32, 64, 128, 128),
            bound_steps=50_000,
        ),
    },
    costs={"smoke": "14 s", "small": "3 min on two cores", "paper": "days on two cores"},
    home=__name__,
)
