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

READINGS = 10  # of every run after its start, equally spaced
SHAKEN = 20  # times as short are the runs with noise on the weights

Positive = Annotated[float, between(0, math.inf)]


@dataclass(frozen=True)
class RankOneFeatures(Knobs):
    """Knobs."""

    samples: Annotated[int, at_least(2)] = 4  # inputs, n
    features: int = 8  # their dimension d; linearly independent inputs need n <= d
    neurons: Annotated[int, at_least(2)] = 10  # neurons, m
    # Of their common pre-activation under label noise: its standard deviation, which sets the
    # noise's, so that runs of another size, activation or learning rate are as linear and as long.
    fluctuation: Annotated[float, between(0, 0.1)] = 0.05
    # lr x curvature where neurons are equal; from a random start the curvature is two to six times
    # that, and descent is stable below 2.
    lr_curvature: Annotated[float, between(0, 0.25)] = 0.125
    far_time: Positive = 20.0  # length of the runs from a random start, in 1 / (2 lr^2 s^2) steps
    # The same of runs near equal neurons.
    lr_curvatures: Annotated[tuple[float, ...], above(0), some(2), ASCENDING] = (0.0625, 0.25)
    decay: Annotated[float, between(0, 2)] = 1.5  # e-folds of the spread that a rate is read over
    digits: Annotated[int, at_least(2)] = 10  # images in place of random inputs
    seeds: Seeds = 32  # independent inputs, targets, starts and noises

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
    "global minimum of the Hessian's trace, from any start and at an exponential rate. There all "
    "neurons agree on every input: the feature matrix has rank one. Near it, for orthonormal "
    "inputs, the spread of the neurons decays per step at 2 lr^2 s^2 phi' phi''', with no free "
    "parameter; far from it the flow of the trace forecasts it, and it decays at no less than "
    "2 lr^2 s^2 lambda_min(X X^T) min phi' phi'''. It grows where phi''' < 0.",
    corrections=(
        "Rank one is a statement of Theta X, the features at the training inputs, not of the "
        "weights Theta: what is orthogonal to all inputs never moves.",
        "With output weights a_j that are not all equal it is phi''(Theta X) that tends to rank "
        "one, with entries c_i / a_j, up to fluctuations that do not cease; the features have rank "
        "one only where phi'' is linear.",
        "At a finite learning rate the residual fluctuates with variance s^2 (lr h / 2) / (1 - lr "
        "h / 2), h = 2 m phi'^2, and the rate is larger by 1 / (1 - lr h / 2). That is the whole "
        "difference from the limit of a small lr here, also for lr h of 0.25.",
        "For inputs that are not orthogonal there are n rates, the eigenvalues of X X^T "
        "diag(2 lr^2 s^2 ||x_i||^2 phi'_i phi'''_i): inputs that are nearly dependent make the "
        "approach to rank one slow.",
        "Sharpness minimisation is no simplicity bias by itself: phi''' < 0, as for tanh, GELU "
        "and softplus over much of their range, makes equal neurons the sharpest way to fit, and "
        "the same noise drives them apart. What counts is the sign where the neurons are: on an "
        "interval where phi''' > 0 tanh neurons collapse, too.",
    ),
    presets={
        "smoke": RankOneFeatures(far_time=1.0, lr_curvatures=(0.125, 0.25), decay=0.2, seeds=2),
        "small": RankOneFeatures(),
        "paper": RankOneFeatures(
            samples=10,
            features=20,
            neurons=50,
            fluctuation=0.02,
            lr_curvature=0.0625,
            far_time=40.0,
            lr_curvatures=(0.03125, 0.0625, 0.125),
            digits=20,
            seeds=100,
        ),
    },
    costs={"smoke": "10 s", "small": "1 min on two cores", "paper": "3 h on two cores"},
    home=__name__,
)
