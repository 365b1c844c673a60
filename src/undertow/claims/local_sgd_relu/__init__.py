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
    seeds: Seeds = 16  # independent samples and starts

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
    statement="x",
    corrections=(),
    presets={"smoke": LocalSgdRelu(seeds=2), "small": LocalSgdRelu(), "paper": LocalSgdRelu()},
    costs={"smoke": "10 s", "small": "3 min on two cores", "paper": "10 h on two cores"},
    home=__name__,
)
