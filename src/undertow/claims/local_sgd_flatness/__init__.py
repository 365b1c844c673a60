"""Why local steps find flat minima (Gu, Lyu, Huang and Arora, arXiv 2303.01215; QSR, 2310.14423).

K workers take H steps each and are averaged. Along the minima the noise across them pushes towards
small curvature, and the longer the workers are left alone, the more of their own noise they see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import ASCENDING, Count, Knobs, Seeds, Share, above, at_least, between, some

Periods = Annotated[tuple[int, ...], at_least(2), some(2), ASCENDING]
GENTLE_LR, GENTLE_PERIODS = 0.02, (25, 50, 200, 500)  # small steps in the valley
TIME = 0.5  # to which paths go along it, in 1 / lr^2 steps

Rates = Annotated[tuple[float, ...], between(0, 1), some(3), ASCENDING]


@dataclass(frozen=True)
class LocalSGDFlatness(Knobs):
    """Knobs."""

    num_workers: Annotated[int, at_least(2)] = 8  # K
    valley_lr: Annotated[float, between(0, 2)] = 0.8  # large steps, at a curvature of one
    valley_periods: Periods = (2, 8, 64)  # H at that rate
    valley_steps: Count = 4_000  # over which a drift is read
    replicas: Count = 300  # paths of a seed
    lrs: Rates = (1 / 64, 1 / 32, 1 / 16, 1 / 8)  # of paths
    samples: Count = 15  # of the diagonal network
    dimension: Annotated[int, at_least(4)] = 40
    diagonal_lr: Annotated[float, between(0, 0.02)] = 2e-3
    diagonal_periods: Periods = (10, 100, 1000)
    diagonal_steps: Annotated[int, at_least(10)] = 10_000
    images: Images = Images(train_size=100)
    channels: Count = 8  # of the first convolution
    local_batch: Count = 4  # samples in a worker's step
    flips: Share = 0.2  # of labels, each time
    first_steps: Count = 1_500  # to the start that all go on from
    lr: Annotated[float, above(0)] = 0.05  # small
    large_lr: Annotated[float, above(0)] = 0.4
    falling_lr: Annotated[float, above(0)] = 0.1  # from which rates fall to zero
    period: Annotated[int, at_least(2)] = 256  # H
    brief_period: Annotated[int, at_least(2)] = 32  # a shorter one
    base: Count = 4  # H of falling rates
    steps: Annotated[int, at_least(10)] = 3_000
    few_steps: Count = 10  # fewer than 1 / lr
    seeds: Seeds = 36  # independent repetitions

    @property
    def alpha(self) -> float:
        """Of QSR: in the paper's runs, too, about twice the peak rate."""
        return 2 * self.falling_lr

    def rules(self) -> Mapping[str, bool]:
        """Samples can be fitted, rounds end, and a short time is short."""
        n, d = self.samples, self.dimension
        periods = self.diagonal_periods
        return {
            f"samples must be at most dimension = {d}, got {n}": n <= d,
            f"period must be above brief_period = {self.brief_period}, got {self.period}": (
                self.period > self.brief_period
            ),
            f"diagonal_periods must be at most diagonal_steps / 10 = {self.diagonal_steps // 10}, "
            f"got {periods}": periods[-1] <= self.diagonal_steps // 10,
            f"large_lr must be above lr = {self.lr:g}, got {self.large_lr:g}": (
                self.large_lr > self.lr
            ),
        }


CLAIM = Claim(
    name="local-sgd-flatness",
    title="Local steps flatten: at a small rate, in time, up to K times as fast",
    paper="Gu, Lyu, Huang and Arora, Why (and When) does Local SGD Generalize Better than SGD?, "
    "ICLR 2023 (arXiv 2303.01215); A Quadratic Synchronization Rule, ICLR 2024 (arXiv 2310.14423)",
    statement="Local SGD of K workers drifts along minima towards flat ones 1 + (K - 1) psi times "
    "as fast as SGD on the same samples, psi known from lr, H and the curvature across, to 1 + "
    "(K - 1) (1 - (1 - r^H) / (H (1 - r))), r = (1 - lr lambda)^2, exactly. Its slow equation says "
    "where it goes, with an error that vanishes with lr, and the diffusion along minima is that of "
    "SGD. A diagonal network with label noise flattens eight times as fast at K = 8 and long "
    "rounds, as one worker on an eighth of the batch does. A convolutional network with label "
    "noise ends, at a small rate and after many steps, at half of the Hessian's trace and a little "
    "less test loss than SGD's; few steps take away the flatness, a large rate the gain in test.",
    corrections=(
        "psi(x) = (e^-x - 1 + x) / x is a limit of small steps. At H = 1, where Local SGD is "
        "parallel SGD, it claims a factor of 4.5 at K = 8 and lr lambda 0.8.",
        "A worker that draws few samples has more noise than that of the labels, as each step "
        "corrects one residual: the drift of long rounds is larger by lr |grad f|^2 / 2 or so.",
    ),
    presets={
        "smoke": LocalSGDFlatness(
            valley_periods=(2, 8),
            valley_steps=100,
            replicas=10,
            lrs=(1 / 16, 1 / 8, 1 / 4),
            samples=4,
            dimension=8,
            diagonal_periods=(4, 16),
            diagonal_steps=200,
            images=Images(train_size=20),
            channels=2,
            local_batch=2,
            first_steps=20,
            period=8,
            brief_period=4,
            steps=24,
            few_steps=4,
            seeds=2,
        ),
        "small": LocalSGDFlatness(),
        "paper": LocalSGDFlatness(
            num_workers=32,
            valley_steps=20_000,
            lrs=(1 / 256, 1 / 128, 1 / 64, 1 / 32),
            replicas=2_000,
            samples=30,
            dimension=100,
            diagonal_lr=5e-4,
            diagonal_periods=(10, 100, 1_000, 10_000),
            diagonal_steps=500_000,
            images=Images("cifar10", train_size=5_000),
            channels=64,
            local_batch=16,
            first_steps=20_000,
            period=1_024,
            steps=100_000,
            seeds=20,
        ),
    },
    costs={"smoke": "10 s", "small": "4 min on two cores", "paper": "days on a GPU"},
    home=__name__,
)
