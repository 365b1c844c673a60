"""Label noise drives features to rank one (Gatmiry, Li, Reddi and Jegelka, arXiv 2410.16401).

r(x) = sum_j phi(theta_j . x), L = sum_i (r(x_i) - y_i - zeta_i)^2 with zeta drawn anew each step:
the pre-activations theta_j . x_i are followed themselves, as Z <- Z - 2 lr (e phi'(Z)) X X^T.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.lab import ASCENDING, Knobs, Seeds, above, at_least, between, some

READINGS = 8  # of every run after its start, equally spaced
SHAKEN = 20  # times as short are the runs with noise on the weights

Positive = Annotated[float, between(0, math.inf)]


@dataclass(frozen=True)
class RankOneFeatures(Knobs):
    """Knobs."""

    samples: Annotated[int, at_least(2)] = 4  # inputs, n
    features: int = 8  # their dimension d; linearly independent inputs need n <= d
    neurons: Annotated[int, at_least(2)] = 10  # neurons, m
    noise_std: Positive = 1.0  # of the label noise
    # Learning rates at which the rate is measured; it is extrapolated to 0.
    lrs: Annotated[tuple[float, ...], above(0), some(2), ASCENDING] = (0.0025, 0.005, 0.01)
    decay: Positive = 1.5  # e-folds of the spread that a rate is read over
    collapse_lr: Positive = 0.005  # of the runs from a random start
    collapse_steps: Annotated[int, at_least(READINGS)] = 500_000  # their length
    # Length of the runs over activations and operating points.
    sign_steps: Annotated[int, at_least(SHAKEN * READINGS)] = 20_000
    digits: Annotated[int, at_least(0)] = 10  # images of runs that decide nothing; 0 for none
    # Of ordinary networks on digits, which decide nothing; 0 leaves them out.
    net_steps: Annotated[int, at_least(0)] = 60_000
    seeds: Seeds = 20  # independent inputs, targets, starts and noises

    def rules(self) -> Mapping[str, bool]:
        """Inputs can be independent."""
        n, d = self.samples, self.features
        return {f"samples must be at most features = {d}, got {n}": n <= d}


CLAIM = Claim(
    name="rank-one-features",
    title="Label noise drives features to rank one where phi''' > 0",
    paper="Gatmiry, Li, Reddi and Jegelka, Simplicity Bias via Global Convergence of Sharpness "
    "Minimization (arXiv 2410.16401, ICML 2024)",
    statement="In r(x) = sum_j phi(theta_j . x) with phi', phi''' > 0 and linearly independent "
    "inputs, SGD on squared error with fresh label noise walks the zero-loss set down to the "
    "global minimum of the Hessian's trace, where all neurons agree on every input: the feature "
    "matrix has rank one. For orthonormal inputs the spread of the neurons decays per step at "
    "2 lr^2 s^2 phi' phi''', with no free parameter, and grows where phi''' < 0.",
    corrections=(
        "Rank one is a statement of Theta X, the features at the training inputs, not of the "
        "weights Theta: what is orthogonal to all inputs never moves.",
        "At a finite learning rate the residual fluctuates with variance s^2 (lr h / 2) / (1 - lr "
        "h / 2), h = 2 m phi'^2, and the rate is larger by 1 / (1 - lr h / 2). That is the whole "
        "difference from the limit of a small lr here, also for lr h of 0.25.",
        "For inputs that are not orthogonal there are n rates, the eigenvalues of X X^T "
        "diag(2 lr^2 s^2 ||x_i||^2 phi'_i phi'''_i): inputs that are nearly dependent make the "
        "approach to rank one slow.",
        "Sharpness minimisation is no simplicity bias by itself: phi''' < 0, as for tanh, GELU "
        "and softplus over much of their range, makes equal neurons the sharpest way to fit, and "
        "the same noise drives them apart.",
    ),
    presets={
        "smoke": RankOneFeatures(
            lrs=(0.005, 0.01),
            decay=0.2,
            collapse_steps=5_000,
            sign_steps=2_000,
            net_steps=1_000,
            seeds=2,
        ),
        "small": RankOneFeatures(),
        "paper": RankOneFeatures(
            samples=10,
            features=20,
            neurons=50,
            lrs=(0.0005, 0.001, 0.002),
            collapse_lr=0.001,
            collapse_steps=20_000_000,
            sign_steps=200_000,
            digits=20,
            net_steps=1_000_000,
            seeds=100,
        ),
    },
    costs={"smoke": "10 s", "small": "2 min on two cores", "paper": "half a day on two cores"},
    home=__name__,
)
