"""The marginal value of momentum (Wang, Malladi, Wang, Lyu, Li, 2023; arXiv 2307.15196).

In the small-step regime heavy-ball momentum is plain SGD at another learning rate. Tested as a weak
error with its order, as a stationary variance, and on a network at equal effective learning rates;
where the two part it is curvature, and SVAG, which shrinks curvature alone, closes the gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import DISTINCT, Count, Knobs, Seeds, Share, above, at_least, some

BATCH = 32  # of the stationary runs


@dataclass(frozen=True)
class Momentum(Knobs):
    """Knobs."""

    images: Images = Images()
    # Training images of the stationary runs, whose shuffled epochs must be short; None for all.
    regression_size: Annotated[int | None, at_least(BATCH)] = None
    momentum: Share = 0.9  # beta, of the stationary runs and the network
    replicas: Count = 40_000  # simulated paths a seed
    # Learning rates 2^-n of the simulated paths.
    path_exponents: Annotated[tuple[int, ...], at_least(3), some(2), DISTINCT] = (6, 7, 8, 9, 10)
    width: Count = 64  # of the network's hidden layer
    batch_size: Count = 64  # of the network
    steps: Count = 300  # of the network, at l = 1
    # Effective learning rates of the network.
    lrs: Annotated[tuple[float, ...], above(0), some(), DISTINCT] = (
        *(0.02, 0.05, 0.1, 0.2, 0.5),
        *(1.0, 2.0),
    )
    small_lr: float = 0.05  # the one at which the two must be equivalent
    large_lr: float = 2.0  # the one at which they must not
    # l of the SVAG runs at large_lr, beside 1.
    svag_levels: Annotated[tuple[int, ...], above(1), some(), DISTINCT] = (2, 4, 8)
    seeds: Seeds = 24  # independent repetitions

    def rules(self) -> Mapping[str, bool]:
        """The compared rates are among those that run; a batch fits into the images."""
        size = self.images.train_size
        return {
            f"small_lr must be one of lrs, got {self.small_lr}": self.small_lr in self.lrs,
            f"large_lr must be one of lrs, got {self.large_lr}": self.large_lr in self.lrs,
            f"train_size must be at least {BATCH}, one batch of the stationary runs, got {size}": (
                size is None or size >= BATCH
            ),
        }


CLAIM = Claim(
    name="momentum",
    title="With small steps, momentum is SGD at another learning rate",
    paper="Wang, Malladi, Wang, Lyu and Li, The Marginal Value of Momentum for Small Learning Rate "
    "SGD, 2023 (arXiv 2307.15196)",
    statement="At equal effective learning rate, lr / (1 - beta) in PyTorch's form, SGD with and "
    "without momentum have the same distribution up to a weak error that vanishes with lr, as long "
    "as 1 - beta falls slower than lr. Where momentum does better, steps are large against the "
    "curvature, and SVAG, which shrinks what curvature adds to a step and not the noise, takes the "
    "advantage away.",
    corrections=(
        "With 1 - beta in proportion to lr^alpha the theorem guarantees half of the order 1 - "
        "alpha that problems with an exact solution have; at alpha = 1 the gap does not close.",
        "Equal effective learning rates at equal numbers of steps leave momentum behind by its "
        "lag, beta / (1 - beta) steps. In short runs at small rates that lag is most of the "
        "difference.",
        "The theorem's noise is independent from step to step. Over shuffled epochs it is not, and "
        "momentum, which averages over steps, keeps less of it than SGD even at small steps; the "
        "networks here draw their batches with replacement.",
    ),
    presets={
        "smoke": Momentum(
            images=Images(train_size=200),
            replicas=500,
            path_exponents=(5, 6, 7),
            steps=40,
            lrs=(0.05, 2.0),
            svag_levels=(2,),
            seeds=2,
        ),
        "small": Momentum(),
        "paper": Momentum(
            images=Images("fashion-mnist"),
            regression_size=1_400,
            lrs=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
            small_lr=0.01,
            large_lr=1.0,
            width=256,
            batch_size=128,
            steps=10_000,
            replicas=200_000,
            seeds=50,
        ),
    },
    costs={"smoke": "10 s", "small": "1 min on two cores", "paper": "two days on two cores"},
    home=__name__,
)
