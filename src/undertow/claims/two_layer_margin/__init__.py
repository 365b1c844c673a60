"""Small starts reach the largest margin on symmetric data (Lyu, Li, Wang and Arora, 2110.13905).

f(x) = sum_k a_k phi(w_k . x) with phi(z) = max(z, slope z) and no biases; both layers follow the
gradient flow of the mean logistic loss from w ~ N(0, s^2), a ~ N(0, s^2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import ASCENDING, Knobs, Seeds, above, at_least, between, some

Sizes = Annotated[tuple[int, ...], at_least(1), some(1), ASCENDING]
Scales = Annotated[tuple[float, ...], between(0, math.inf), some(3), ASCENDING]


@dataclass(frozen=True)
class TwoLayerMargin(Knobs):
    """Knobs."""

    slope: Annotated[float, between(0, 1)] = 0.5  # of phi below zero
    points: Annotated[int, at_least(2)] = 10  # samples, beside their mirror images
    features: Annotated[int, at_least(2)] = 5  # their dimension
    widths: Sizes = (4, 16, 64)  # neurons, m
    scale: Annotated[float, between(0, 1)] = 1e-8  # of the start, s
    scales: Scales = (1e-30, 1e-25, 1e-20, 1e-15, 1e-10, 1e-5, 1.0)  # where s is varied
    few: Sizes = (2, 3, 4)  # neurons, where runs that get stuck are counted
    starts: Annotated[int, at_least(1)] = 96  # of each seed and so few neurons
    hint: Annotated[float, above(0)] = 4.0  # norm of the sample that is added; others have one
    depth: Annotated[float, between(1e3, 1e9)] = 1e8  # -log loss to which runs go
    images: Images = Images()  # of which two classes are mirrored
    pictures: Annotated[int, at_least(1)] = 50  # of each of two classes
    seeds: Seeds = 24  # independent samples and starts

    def rules(self) -> Mapping[str, bool]:
        """The claim's own scale is among those that are varied at neither end."""
        ends = f"above {self.scales[0]:g} and below {self.scales[-1]:g}"
        return {
            f"scale must be {ends}, got {self.scale:g}": self.scales[0]
            < self.scale
            < self.scales[-1]
        }

    @property
    def width(self) -> int:
        """Neurons, where only one number of them is tried."""
        return self.widths[len(self.widths) // 2]


CLAIM = Claim(
    name="two-layer-margin",
    title="Small starts reach the largest margin on symmetric data",
    paper="Lyu, Li, Wang and Arora, Gradient Descent on Two-layer Nets: Margin Maximization and "
    "Simplicity Bias (arXiv 2110.13905, NeurIPS 2021)",
    statement="Two-layer leaky-ReLU networks of any width from 2 to 64, on linearly separable "
    "data that hold -x, labelled -y, for every x, go under gradient flow from a small start to "
    "the largest margin that any network has, and compute a linear function, that of the linear "
    "SVM. They fail only where all neurons start with one sign of w.mu / ||mu|| + a, mu the mean "
    "of y x up to a factor: a share of 2^-(m - 1) of all starts of m neurons, which stay at 2 "
    "slope / (1 + slope) of that margin. Early on the neurons are of rank one, and leave zero "
    "after log(1 / s) / ||mu||. One more sample, far out along the SVM, or leaving out one of "
    "each two mirror images too, chosen for it, leads them from a small start to one neuron and "
    "less than the largest margin.",
    corrections=(
        "What one more sample does ends: the neurons of the other sign go on growing, and at any "
        "finite scale s the flow leaves the one neuron for the largest margin. It holds out until "
        "log(1 / loss) has grown as s^-kappa, kappa known from the data: limits of time and scale "
        "do not commute.",
        "With one more sample the classifier is that of the SVM all the same; it is the network's "
        "margin that is too small. Without mirror images the classifier is another, too.",
        "A large start is no control: on data as small as these it reaches the largest margin as "
        "well, only not by way of rank one.",
    ),
    presets={
        "smoke": TwoLayerMargin(
            widths=(4,), scales=(1e-12, 1e-6, 1e-4, 1.0), starts=4, depth=1.1e4, pictures=8, seeds=2
        ),
        "small": TwoLayerMargin(),
        "paper": TwoLayerMargin(
            points=40,
            features=20,
            widths=(4, 32, 256),
            hint=16.0,
            starts=200,
            images=Images("fashion-mnist", image_size=14),
            pictures=100,
            seeds=50,
        ),
    },
    costs={"smoke": "10 s", "small": "3 min on two cores", "paper": "10 h on two cores"},
    home=__name__,
)
