"""Normalisation with weight decay reduces sharpness (Lyu, Li, Arora, 2022; arXiv 2206.07085).

Where the loss does not depend on the length of the weights, decay brings gradient descent to the
edge of stability and then down the sharpness, along minimisers. Tested on a circle and on
batch-norm regression, where the path is known, and on batch-norm networks, whose pace is foreseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import DISTINCT, Count, Knobs, Seeds, above, at_least, some

LR = 1.0  # of all networks; what counts is lr x weight_decay, the length of the weights follows
READINGS = 20  # of each network's branches, evenly spaced
SPEED_READINGS = 12  # of the networks whose pace is foreseen

Rates = Annotated[tuple[float, ...], above(0), some(2), DISTINCT]


@dataclass(frozen=True)
class NormalizationFlattens(Knobs):
    """Knobs."""

    images: Images = Images("fashion-mnist", train_size=100, image_size=14)
    # The networks' second data set, as many images of it; None for none.
    other: str | None = "digits"
    widths: Annotated[tuple[int, ...], at_least(1), some(), DISTINCT] = (32, 16)  # of two layers
    weight_decay: Annotated[float, above(0)] = 2e-4  # of the networks, at learning rate 1
    # Of slower branches, in units of it.
    slower: Annotated[tuple[float, ...], above(0), some(), DISTINCT] = (0.5, 0.25)
    fit_steps: Count = 1_000  # before the branches
    steps: Annotated[int, at_least(READINGS)] = 8_000  # of the branches
    settling: Count = 150  # steps in which the oscillation settles before a reading
    test_size: Count | None = 4_000  # test images of the first data set; of the second, all
    speed_weight_decay: Annotated[float, above(0)] = 1e-4  # where the pace is foreseen
    speed_fit: Count = 4_000
    speed_steps: Annotated[int, at_least(SPEED_READINGS)] = 6_000
    regression_size: Annotated[int, at_least(20)] = 60  # images of the batch-norm regression
    regression_steps: Annotated[int, at_least(8)] = 8_000  # of it
    # sqrt(2 lr weight_decay) on the circle.
    intrinsic_rates: Rates = (0.04, 0.02, 0.01)
    circle_time: Annotated[float, above(0)] = 2.0  # lr x weight_decay x steps
    seeds: Seeds = 18  # a third more where the pace is foreseen

    @property
    def pace_seeds(self) -> int:
        """How many networks have their pace foreseen: bursts pass over some of them."""
        return self.seeds + self.seeds // 3

    def rules(self) -> Mapping[str, bool]:
        """Branches are slower than the first; images are given in number."""
        size = self.images.train_size
        return {
            f"slower must lie below 1, got {self.slower}": max(self.slower) < 1,
            f"train_size must be a number, got {size}": size is not None,
            f"other must not be {self.other}, the first data set": self.other != self.images.data,
            f"weight_decay must lie below 0.01 at lr = {LR:g}, beyond which networks jump rather "
            f"than drift, got {self.weight_decay}": self.weight_decay < 0.01,
        }


CLAIM = Claim(
    name="normalization-flattens",
    title="Normalisation with weight decay drives descent to ever flatter minima",
    paper="Lyu, Li and Arora, Understanding the Generalization Benefit of Normalization Layers: "
    "Sharpness Reduction, 2022 (arXiv 2206.07085)",
    statement="Gradient descent with weight decay on a loss that does not depend on the length of "
    "the weights settles at the edge of stability, effective rate x spherical sharpness about 2, "
    "and then loses sharpness along the minimisers as the sharpness-reduction flow does: on a "
    "circle, in batch-norm regression and in batch-norm networks on images. The clock is 1 / (lr x "
    "weight decay); without decay nothing moves. How fast a network flattens is foreseen from the "
    "gradients of the eigenvalues at the edge. The flattened networks' test accuracy is above that "
    "of their twins without decay.",
    corrections=(
        "The flow is for a sharpness that is a simple eigenvalue. In every network here two to "
        "four eigenvalues are at the edge together, and the flow of the largest alone leaves out "
        "most of what the oscillation takes; counting all of them foresees the pace.",
        "The theorem's distance to the flow, the power 1/4 of the intrinsic rate, is an upper "
        "bound: on a circle it is the power 2.",
        "The gain in test accuracy is about a point. It is not the flow's alone: where decay "
        "is slower it is smaller at the same sharpness (pilot). It is not that decay forgets what "
        "no training input reaches, either.",
        "With heavy-ball momentum the same balance exists but is not stable: on a circle there "
        "are bursts in place of a drift.",
    ),
    presets={
        "smoke": NormalizationFlattens(
            images=Images(train_size=20),
            other=None,
            widths=(4,),
            slower=(0.5,),
            fit_steps=50,
            steps=60,
            settling=5,
            test_size=100,
            speed_weight_decay=1e-2,
            speed_fit=60,
            speed_steps=24,
            regression_size=20,
            regression_steps=40,
            intrinsic_rates=(0.2, 0.1),
            circle_time=0.3,
            seeds=2,
        ),
        "small": NormalizationFlattens(),
        "paper": NormalizationFlattens(
            images=Images("cifar10", train_size=5_000, image_size=16),
            other="fashion-mnist",
            widths=(512, 128, 32),
            fit_steps=10_000,
            steps=100_000,
            test_size=10_000,
            speed_weight_decay=5e-5,
            speed_fit=20_000,
            speed_steps=12_000,
            intrinsic_rates=(0.04, 0.02, 0.01, 0.005),
            seeds=24,
        ),
    },
    costs={"smoke": "10 s", "small": "150 s on two cores", "paper": "days on two cores"},
    home=__name__,
)
