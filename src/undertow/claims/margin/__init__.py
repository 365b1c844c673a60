"""Gradient descent on a loss with an exponential tail maximises the margin (Lyu and Li, 2020).

arXiv 1906.05890: for a network of degree L, f^-1(log(1 / Loss)) / rho^L never falls along gradient
flow once Loss = sum_n e^(-f(q_n)) is below its threshold; directions go to KKT points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import DISTINCT, Count, Knobs, Seeds, at_least, between, some

BEYOND = -800 * math.log(10)  # log of the loss that the paper trains to


@dataclass(frozen=True)
class Margin(Knobs):
    """Knobs."""

    images: Images = field(default_factory=lambda: Images(train_size=200))
    width: Count = 32  # of each of the perceptron's two hidden layers
    channels: Count = 4  # of the first convolution; the second has twice as many
    # By how much a step would lower log loss, to first order.
    drops: Annotated[tuple[float, ...], between(0, 10), some(2), DISTINCT] = (0.02, 0.16, 1.28)
    descent: Annotated[float, between(0, 1000)] = 12.0  # steps x drop
    batch_size: Count = 50  # of runs in epochs
    epochs: Annotated[int, at_least(2)] = 400
    log_loss: Annotated[float, between(-1e6, -1)] = -2000.0  # to which networks are trained
    shown: Count = 100  # images whose distance to the decision boundary is measured
    seeds: Seeds = 16  # images, weights and orders; twice as many in epochs and far past zero

    def rules(self) -> Mapping[str, bool]:
        """A batch fits into the images."""
        size = self.images.train_size
        fits = size is None or self.batch_size <= size
        return {f"batch_size must be at most train_size = {size}, got {self.batch_size}": fits}


CLAIM = Claim(
    name="margin",
    title="Past zero loss, gradient descent maximises the margin",
    paper="Lyu and Li, Gradient Descent Maximizes the Margin of Homogeneous Neural Networks, ICLR "
    "2020 (arXiv 1906.05890)",
    statement="Once a homogeneous network's summed loss is below its threshold, gradient flow on "
    "the exponential, the logistic, the cross-entropy or another loss e^(-f(q)) never lowers the "
    "smoothed margin f^-1(log(1 / Loss)) / rho^L, and the margin q_min / rho^L follows it; the "
    "direction of the parameters goes towards a KKT point of the margin problem. In as many "
    "epochs, a learning rate in proportion to 1 / Loss takes loss and margin farther than a "
    "constant one. Descent on log Loss by steps in proportion to rho goes on below 1e-800: the "
    "margin is larger there, the direction nearer to a KKT point, and the training image nearest "
    "to the decision boundary farther from it.",
    corrections=(
        "It is the smoothed margin that cannot fall; the least margin dips on the way, by no more "
        "than log(n) / rho^L can hide.",
        "The threshold is of the summed loss: of the mean, log(2) / n.",
        "Discrete steps end it where a step would lower log loss by a tenth or more: the smoothed "
        "margin then falls in many steps, though over the run it still rises.",
        "Losses below 1e-800 are not reached by the paper's epochs at alpha / Loss, which had come "
        "to e^-200 after 2,500 epochs in a pilot, but by normalised steps with momentum.",
        "The paper's robustness is found only in part: it grows at the training image nearest to "
        "the decision boundary. At held-out images it does not follow the margin, which doubles: "
        "in pilots it stayed on digits and fell on Fashion-MNIST.",
        "Biases take the network out of the theorem; where steps are small enough, the smoothed "
        "margin rose with them, too, so they are no control.",
        "Beyond a loss of e^-1000 or so the loss's own multipliers are those of one sample or two, "
        "and cos(theta, -grad) says nothing; the best multipliers do.",
    ),
    presets={
        "smoke": Margin(
            images=Images(train_size=50),
            width=8,
            drops=(0.05, 1.28),
            descent=2.0,
            batch_size=25,
            epochs=10,
            log_loss=-20.0,
            shown=10,
            seeds=2,
        ),
        "small": Margin(),
        "paper": Margin(
            images=Images("fashion-mnist", train_size=5_000),
            width=256,
            channels=32,
            drops=(0.01, 0.04, 0.16, 0.64, 2.56),
            descent=100.0,
            batch_size=100,
            epochs=10_000,
            log_loss=-9000.0,
            shown=1_000,
            seeds=20,
        ),
    },
    costs={"smoke": "10 s", "small": "3 min on two cores", "paper": "days on two cores"},
    home=__name__,
)
