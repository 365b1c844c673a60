"""Local SGD on wide ReLU networks follows its kernel (Deng, Kamani and Mahdavi, 2107.10868).

f(x) = sum_j a_j relu(w_j . x) with m units, w_j ~ N(0, 2 / m) and a_j = +-1 fixed, or deep ones;
K clients take tau local steps on squared error, each on its own data, then average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import ASCENDING, Knobs, Seeds, above, at_least, between, some

Sizes = Annotated[tuple[int, ...], at_least(1), ASCENDING]
Angles = Annotated[tuple[float, ...], between(0, math.pi / 2), some(2), ASCENDING]


@dataclass(frozen=True)
class LocalSgdRelu(Knobs):
    """Knobs."""

    samples: Annotated[int, at_least(4)] = 40  # n, of all clients together
    features: Annotated[int, at_least(2)] = 40  # their dimension; n in all directions
    clients: Annotated[int, at_least(2)] = 4  # K
    widths: Annotated[Sizes, some(3)] = (50, 200, 800, 3200)  # units m
    period: Annotated[int, at_least(1)] = 5  # tau, local steps of a round
    # lr x m x tau: e-folds of a round are this times eigenvalues of K / n.
    strength: Annotated[float, above(0)] = 3.0
    rounds: Annotated[int, at_least(4)] = 150
    periods: Annotated[Sizes, some(2)] = (1, 5, 50)  # tau, at the same strength
    strong: Annotated[float, above(0)] = 24.0  # strength at which clients nearly fit their data
    long: Annotated[int, at_least(2)] = 20  # tau there
    angles: Angles = (0.05, 0.1, 0.2, 0.4)  # between near-duplicates
    batch_size: Annotated[int, at_least(1)] = 2  # of each client, where it is not all samples
    images: Images = Images()  # whose digits are even or odd
    depth: Annotated[int, at_least(2)] = 3  # hidden layers of deep networks
    deep: Annotated[Sizes, some(2)] = (16, 64, 256)  # and their widths
    seeds: Seeds = 28  # independent samples and starts

    def rules(self) -> Mapping[str, bool]:
        """Clients have as many samples each, more than a batch."""
        n, clients = self.samples, self.clients
        return {
            f"samples must be a multiple of clients = {clients}, got {n}": n % clients == 0,
            f"batch_size must be at most samples / clients = {n // clients}, got "
            f"{self.batch_size}": self.batch_size <= n // clients,
        }

    @property
    def wide(self) -> int:
        """The largest width."""
        return self.widths[-1]

    @property
    def middle(self) -> int:
        """The width of runs that are many."""
        return self.widths[-2]


CLAIM = Claim(
    name="local-sgd-relu",
    title="Local SGD on wide ReLU networks follows its kernel",
    paper="Deng, Kamani and Mahdavi, Local SGD Optimizes Overparameterized Neural Networks in "
    "Polynomial Time (arXiv 2107.10868, AISTATS 2022)",
    statement="Local SGD drives the squared error of a wide ReLU network to zero, linearly in "
    "communication rounds, as few activation signs flip. In the limit a round is one linear map of "
    "the residuals, known from K = x.x' (pi - theta) / 2 pi: the whole loss curve follows with "
    "nothing fitted, for clients alike or with a class each, short periods or long, and small "
    "batches. Its error shrinks as m^-1/2 over a 64x range of widths m; so do the signs flipped "
    "since the start and between clients and their average, whose number is forecast too. "
    "Near-duplicates of opposite label slow it in proportion to their angle. The error shrinks "
    "with the width on images and in deep networks, too.",
    corrections=(
        "The gradient drift ||grad L_k(w_k) - grad L_k(w_bar)|| does not vanish as m grows: the "
        "flips' part does, its square as m^-1/2. What is left is the change of the residuals, "
        "known from the kernel, and falls with lr x tau alone.",
        "Near-duplicates cost their angle only while there are units between the two. Those move "
        "out, at any width below about 80 / theta^4, and from then on the rate is that of units "
        "that see both or neither: it falls with the square of the angle, 17 times below the "
        "kernel's at an angle of 0.05.",
        "At fixed lr x tau a longer period is no slower by more than 5% of the rate, which is "
        "some 1.4 times the final loss here: as the map has it.",
        "The log loss of random labels falls linearly (R^2 above 0.98), that of images does not: "
        "their kernels have eigenvalues of all sizes.",
    ),
    presets={
        "smoke": LocalSgdRelu(
            samples=16,
            features=16,
            widths=(20, 50, 100),
            rounds=16,
            periods=(1, 5),
            long=5,
            deep=(8, 16),
            seeds=2,
        ),
        "small": LocalSgdRelu(),
        "paper": LocalSgdRelu(
            samples=100,
            features=100,
            clients=10,
            widths=(100, 400, 1600, 6400, 25600),
            period=10,
            rounds=300,
            images=Images("fashion-mnist", image_size=14),
            depth=5,
            deep=(64, 256, 1024),
            seeds=50,
        ),
    },
    costs={"smoke": "10 s", "small": "4 min on two cores", "paper": "15 h on two cores"},
    home=__name__,
)
