"""The marginal value of momentum (Wang, Malladi, Wang, Lyu, Li, 2023; arXiv 2307.15196).

With small steps heavy-ball momentum is plain SGD at another learning rate: over 1 / lr steps, with
a weak error of known order, over 1 / lr^2 steps along minima, and tuned against tuned where noise
sets the best rate. Where stability sets it the two part, and smaller steps close the gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from undertow.claims import Claim
from undertow.data import Images, Text
from undertow.lab import DISTINCT, Count, Knobs, Seeds, Share, above, at_least, some

BATCH = 32  # of the stationary runs

# Learning rates 2^-n.
Exponents = Annotated[tuple[int, ...], at_least(3), some(2), DISTINCT]
Rates = Annotated[tuple[float, ...], above(0), some(3), DISTINCT]


@dataclass(frozen=True)
class Momentum(Knobs):
    """Knobs."""

    images: Images = Images()
    # Training images of the stationary runs; None for all.
    regression_size: Annotated[int | None, at_least(BATCH)] = None
    momentum: Share = 0.9  # beta, of all but the weak errors
    replicas: Count = 160_000  # simulated paths a seed
    path_exponents: Exponents = (5, 6, 7, 8)  # of the simulated paths
    long_exponents: Exponents = (5, 6, 7)  # of the runs of 1 / lr^2 steps
    width: Count = 64  # of the network's hidden layer
    batch_size: Count = 64  # of the network
    steps: Count = 300  # of the network, at l = 1
    # Its rates.
    lrs: Annotated[tuple[float, ...], above(0), some(), DISTINCT] = (
        *(0.02, 0.05, 0.1, 0.2, 0.5),
        *(1.0, 2.0),
    )
    small_lr: float = 0.05  # where the two are equivalent
    large_lr: float = 2.0  # where they are not
    # l of finer steps, also by SVAG.
    levels: Annotated[tuple[int, ...], above(1), some(), DISTINCT] = (2, 4, 8)
    # Of the tuned runs.
    tuned_batches: Annotated[tuple[int, ...], at_least(1), some(), DISTINCT] = (8, 16)
    tuned_lrs: Rates = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # their rates
    epochs: Count = 10  # of the tuned runs
    text: Text = Text(context=16)  # on which the language model is trained first
    tuning_windows: Count = 256  # of Python code, on which it is tuned
    pretrain_steps: Count = 400  # of the language model
    tuning_lrs: Rates = (0.03, 0.1, 0.3)  # of the language model
    seeds: Seeds = 24  # of most; tuned twice, text half
    # No knobs, though trials have them.
    label_noise: ClassVar[float] = 0.4  # share of labels drawn at random where noise sets the rate
    long_replicas: ClassVar[int] = 500  # networks a seed in the runs of 1 / lr^2 steps

    @property
    def tuned_seeds(self) -> int:
        """How many repetitions the tuned runs have: what is told apart there is small."""
        return 2 * self.seeds

    @property
    def text_seeds(self) -> int:
        """How many language models there are."""
        return (self.seeds + 1) // 2

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
    "without momentum have the same distribution over 1 / lr steps, up to a weak error that "
    "vanishes with lr as long as 1 - beta falls slower than lr, and drift alike along minima over "
    "1 / lr^2 steps. Tuned, momentum gains nothing where gradient noise sets the best rate, with "
    "small batches and in fine-tuning a language model. Where it does better, steps are large "
    "against the curvature, with noise or without; smaller steps alone close the gap.",
    corrections=(
        "With 1 - beta in proportion to lr^alpha the theorem guarantees half of the order 1 - "
        "alpha that problems with an exact solution have; at alpha = 1 the gap does not close.",
        "Small batches do not make the best rate small. On clean labels that a network can fit, "
        "stability sets it at batches of 32, too, and tuned momentum ends at a train loss several "
        "times lower; its test accuracy is that of SGD.",
        "SVAG does not single out curvature: plain steps of lr / l close the gap further than SVAG "
        "at the same l. That noise is not what momentum helps with is seen without any: in full "
        "batches at the large rate its advantage stays.",
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
            long_exponents=(3, 4),
            steps=40,
            lrs=(0.05, 2.0),
            levels=(2,),
            tuned_batches=(16,),
            tuned_lrs=(0.2, 0.8, 3.2),
            epochs=2,
            pretrain_steps=10,
            tuning_windows=32,
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
            tuned_batches=(8, 32, 128),
            tuned_lrs=(0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6),
            replicas=200_000,
            long_exponents=(5, 6, 7, 8),
            text=Text(context=64),
            tuning_windows=2_048,
            pretrain_steps=10_000,
            tuning_lrs=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
            seeds=50,
        ),
    },
    costs={"smoke": "10 s", "small": "3 min on two cores", "paper": "days on two cores"},
    home=__name__,
)
