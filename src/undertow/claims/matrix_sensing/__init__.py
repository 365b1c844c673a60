"""Incremental learning in matrix sensing (Jin, Li, Lyu, Du and Lee, arXiv 2301.11500).

Gradient descent on U U^T from a start of size a passes the minimisers of rank 1, 2, ... of the
measured loss, the closer the smaller a. How close and when is predicted from the spectra at those
saddles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.lab import DISTINCT, Bound, Count, Knobs, Seeds, above, at_least, between, some

FALLING = Bound("in descending order", lambda v: list(v) == sorted(v, reverse=True), whole=True)
Spectrum = Annotated[tuple[float, ...], above(0), some(3), FALLING]
Scales = Annotated[tuple[float, ...], between(0, 1), some(2), DISTINCT]
Amounts = Annotated[tuple[int, ...], at_least(1), some(2), DISTINCT]
THREE = Bound("three values", lambda v: len(v) == 3, whole=True)
Recoveries = Annotated[tuple[int, ...], at_least(1), THREE]


@dataclass(frozen=True)
class MatrixSensing(Knobs):
    """Knobs."""

    dim: Count = 20  # rows of U
    spectrum: Spectrum = (3.0, 2.0, 1.0)  # eigenvalues of X*
    measurements: Count = 2000  # gaussian sensors
    # Sizes of the start; 1 is added as a control.
    scales: Scales = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
    identity_scales: Scales = (1e-2, 1e-4, 1e-6, 1e-8)  # where the measurements are all entries
    # Of the runs whose U has one column fewer than the rank of X*; 1 is added as a control.
    narrow_scales: Scales = (1e-2, 1e-4, 1e-8, 1e-12, 1e-16)
    amounts: Amounts = (500, 4_000, 32_000)  # sensors, from the smallest of scales
    # Sensors that cannot recover X*, that do by a bias to low rank, and that leave nothing else.
    recoveries: Recoveries = (40, 90, 200)
    recovery_scale: Annotated[float, between(0, 1)] = 1e-4  # of their runs; 1 is the control
    degenerate: Spectrum = (2.0, 2.0, 1.0)  # eigenvalues of X* in the control without a gap
    degenerate_scale: Annotated[float, between(0, 1)] = 1e-8  # size of its start
    lr: Annotated[float, above(0)] = 0.01  # step size of gradient descent
    steps: Annotated[int, at_least(2)] = 7_500  # of gradient descent
    seeds: Seeds = 36  # independent X*, sensors and starts

    def rules(self) -> Mapping[str, bool]:
        """Spectra fit into U, steps do not overshoot, recoveries lie on either side of limits."""
        largest, rank = max(*self.spectrum, *self.degenerate), len(self.spectrum)
        fits = {
            f"{name} must hold fewer than dim = {self.dim} eigenvalues, got {values}": (
                len(values) < self.dim
            )
            for name, values in (("spectrum", self.spectrum), ("degenerate", self.degenerate))
        }
        if not all(fits.values()):
            return fits
        # `predict.recovery_window`, without the numpy that it would load with the knobs.
        freedom, rest = self.dim * rank - rank * (rank - 1) // 2, self.dim - rank
        positive, (few, some, many) = freedom + rest * (rest + 1) / 4, self.recoveries
        return fits | {
            f"recoveries must be below {freedom}, between it and {positive:g}, and "
            f"above that, got {self.recoveries}": few < freedom < some < positive < many,
            f"spectrum must fall strictly, got {self.spectrum}": (len(set(self.spectrum)) == rank),
            f"lr must be below 1 / (4 x {largest:g}), the largest eigenvalue of spectrum and "
            f"degenerate, got {self.lr}": self.lr * largest < 0.25,
        }


CLAIM = Claim(
    name="matrix-sensing",
    title="Descent from a small start learns one rank after the other",
    paper="Jin, Li, Lyu, Du and Lee, Understanding Incremental Learning of Gradient Descent: A "
    "Fine-grained Analysis of Matrix Sensing (ICML 2023, arXiv 2301.11500)",
    statement="Gradient descent on U U^T from a start of size a comes close to the minimiser Z_s "
    "of rank s of the measured loss for s = 1, 2, ... in turn, and arbitrarily close as a goes to "
    "zero, also where U has too few columns to end at X*. Greedy low-rank learning visits the same "
    "points.",
    corrections=(
        "The target of phase s is the minimiser of the measured loss, not the truncated SVD of X*: "
        "the distance to the latter stops at ||Z_s - X*_s|| at any scale.",
        "The closest approach is not one power of the scale. Its exponent bends from "
        "2 g (k + v) / (k + 2 v), which is 2 (x_s - x_s+1) / (x_s + x_s+1) where every entry is "
        "measured, to 2 g k / (k + 2 v), from the spectra at the saddles: with sensors the way to "
        "Z_s turns, which excites its slowest error k, however many measurements there are.",
        "Where a run ends is no evidence. With too few columns it ends at the minimiser of its "
        "rank from any start; with more measurements than d r - r (r - 1) / 2 + (d - r) "
        "(d - r + 1) / 4 it recovers X* from any start, since no other positive matrix fits.",
    ),
    presets={
        "smoke": MatrixSensing(
            dim=8,
            measurements=200,
            scales=(1e-1, 1e-2, 1e-4, 1e-6),
            narrow_scales=(1e-2, 1e-4, 1e-6),
            amounts=(100, 400),
            recoveries=(10, 25, 34),
            lr=0.02,
            steps=1_500,
            seeds=2,
        ),
        "small": MatrixSensing(),
        "paper": MatrixSensing(
            dim=50,
            spectrum=(5.0, 4.0, 3.0, 2.0, 1.0),
            degenerate=(5.0, 5.0, 3.0, 2.0, 1.0),
            measurements=12_500,
            amounts=(2_000, 6_000, 20_000),
            recoveries=(150, 400, 1_100),
            steps=12_000,
            seeds=20,
        ),
    },
    costs={"smoke": "10 s", "small": "90 s on two cores", "paper": "hours on two cores"},
    home=__name__,
)
