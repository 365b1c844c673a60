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
Spectrum = Annotated[tuple[float, ...], above(0), some(2), FALLING]
Scales = Annotated[tuple[float, ...], between(0, 1), some(2), DISTINCT]


@dataclass(frozen=True)
class MatrixSensing(Knobs):
    """Knobs."""

    dim: Count = 20  # rows of U
    spectrum: Spectrum = (3.0, 2.0, 1.0)  # eigenvalues of X*
    measurements: Count = 2000  # gaussian sensors
    # Sizes of the start; 1 is added as a control.
    scales: Scales = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
    identity_scales: Scales = (1e-2, 1e-4, 1e-6, 1e-8)  # where the measurements are all entries
    narrow_scale: float = 1e-4  # of the runs whose U has fewer columns than the rank of X*
    degenerate: Spectrum = (2.0, 2.0, 1.0)  # eigenvalues of X* in the control without a gap
    # Sizes of the start in the control without a gap.
    degenerate_scales: Scales = (1e-4, 1e-6, 1e-8)
    few_measurements: Count = 40  # sensors in the control that has too few
    lr: Annotated[float, above(0)] = 0.01  # step size of gradient descent
    steps: Annotated[int, at_least(2)] = 7_500  # of gradient descent
    seeds: Seeds = 24  # independent X*, sensors and starts; 17 are needed to show a share of 0.8

    def rules(self) -> Mapping[str, bool]:
        """Spectra fit into U, steps do not overshoot, recovery is read at a scale that runs."""
        largest = max(*self.spectrum, *self.degenerate)
        fits = {
            f"{name} must hold fewer than dim = {self.dim} eigenvalues, got {values}": (
                len(values) < self.dim
            )
            for name, values in (("spectrum", self.spectrum), ("degenerate", self.degenerate))
        }
        return fits | {
            f"narrow_scale must be one of scales {self.scales}, where recovery from enough "
            f"measurements is read, got {self.narrow_scale}": self.narrow_scale in self.scales,
            f"lr must be below 1 / (2 x {largest:g}), the largest eigenvalue of spectrum and "
            f"degenerate, got {self.lr}": self.lr * largest < 0.5,
        }


CLAIM = Claim(
    name="matrix-sensing",
    title="Descent from a small start learns one rank after the other",
    paper="Jin, Li, Lyu, Du and Lee, Understanding Incremental Learning of Gradient Descent: A "
    "Fine-grained Analysis of Matrix Sensing (ICML 2023, arXiv 2301.11500)",
    statement="Gradient descent on U U^T from a start of size a comes close to the minimiser Z_s "
    "of rank s of the measured loss for s = 1, 2, ... in turn, and arbitrarily close as a goes to "
    "zero; with too few columns r it ends at Z_r. Greedy low-rank learning visits the same points.",
    corrections=(
        "The target of phase s is the minimiser of the measured loss, not the truncated SVD of X*: "
        "the distance to the latter stops at ||Z_s - X*_s|| at any scale.",
        "The closest approach is not one power of the scale. Its exponent bends from "
        "2 g (k + v) / (k + 2 v), which is 2 (x_s - x_s+1) / (x_s + x_s+1) where every entry is "
        "measured, to 2 g k / (k + 2 v), from the spectra at the saddles: with sensors the way to "
        "Z_s turns, which excites its slowest error k, however many measurements there are.",
    ),
    presets={
        "smoke": MatrixSensing(
            dim=8,
            measurements=200,
            scales=(1e-1, 1e-2, 1e-4, 1e-6),
            few_measurements=10,
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
            few_measurements=250,
            steps=12_000,
            seeds=20,
        ),
    },
    costs={"smoke": "10 s", "small": "1 min on two cores", "paper": "hours on two cores"},
    home=__name__,
)
