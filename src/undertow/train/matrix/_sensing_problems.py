"""Random problems of matrix sensing, several as one batch: the runs on all of them are one program.

After 2301.11500: positive semidefinite X of a given spectrum, measured by gaussian sensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.objective import whole_number
from undertow.predict import SaddlePhase, saddle_phases
from undertow.train.matrix._completion import truncated_svd
from undertow.train.matrix._matrix_losses import MatrixLoss, gaussian_sensors
from undertow.train.matrix._rank_minimiser import rank_minimiser
from undertow.train.matrix._saddles import saddle_spectra
from undertow.train.matrix._symmetric import recovery_loss, sensor_gram

_LR = 0.1  # of the search for minimisers, at most
_STABLE = 0.5  # likewise, in units of 1 over the largest eigenvalue


@dataclass(frozen=True)
class SensingProblems:
    """Problems of matrix sensing, each of its own seed, whatever it is drawn together with.

    Attributes:
        targets: `[problems, dim, dim]`, X.
        grams: `[problems, coordinates, coordinates]`, `sensor_gram` of each; None where every
            entry is measured.
        starts: `[problems, dim, width]`, U of spectral norm one to start a descent at.
        spectrum: the eigenvalues of X above zero, in descending order.
    """

    targets: Float64[Tensor, "problems dim dim"] = field(repr=False)
    grams: Float64[Tensor, "problems coordinates coordinates"] | None = field(repr=False)
    starts: Float64[Tensor, "problems dim width"] = field(repr=False)
    spectrum: tuple[float, ...]

    def loss(self, place: int | None = None) -> MatrixLoss:
        """F of W `[problems, runs, dim, dim]`, or of one problem's W `[..., dim, dim]`."""
        if place is None:
            return recovery_loss(self.targets[:, None], self.grams)
        return recovery_loss(self.targets[place], None if self.grams is None else self.grams[place])

    def truncated(self, most: int) -> Float64[Tensor, "problems most dim dim"]:
        """X cut to rank 1, 2, ... up to `most`."""
        ranks = range(1, most + 1)
        cut = [[truncated_svd(own, rank, positive=True) for rank in ranks] for own in self.targets]
        return torch.stack([torch.stack(own) for own in cut])

    def minimisers(self, most: int) -> Float64[Tensor, "problems most dim dim"]:
        """Z_1, Z_2, ...: the lowest `rank_minimiser` of each rank up to `most`."""
        lr = min(_LR, _STABLE / self.spectrum[0])
        found = []
        for place, guess in enumerate(self.truncated(most).unbind(1)):
            generator = torch.Generator().manual_seed(place + 1)
            found.append(rank_minimiser(self.loss(), guess, place + 1, lr=lr, generator=generator))
        return torch.stack(found, 1)

    def saddle_phases(
        self, minimisers: Float64[Tensor, "problems most dim dim"], *, lr: float | None = None
    ) -> list[tuple[SaddlePhase, ...]]:
        """Of each problem `predict.saddle_phases`, from the spectra at its minimisers."""
        found = []
        for place, own in enumerate(minimisers):
            spectra = saddle_spectra(self.loss(place), list(own))
            rates, relaxations = spectra.rates.numpy(), spectra.relaxations.numpy()
            found.append(saddle_phases(rates, relaxations, lr=lr))
        return found

    def errors(
        self, matrices: Float64[Tensor, "problems runs dim dim"]
    ) -> Float64[Tensor, "problems runs"]:
        """The Frobenius distances from X, relative to its norm."""
        missed = (matrices - self.targets[:, None]).flatten(2).norm(dim=-1)
        return missed / self.targets.flatten(1).norm(dim=-1)[:, None]


def sensing_problems(
    seeds: Sequence[int],
    spectrum: Sequence[float],
    *,
    dim: int,
    measurements: int,
    width: int | None = None,
) -> SensingProblems:
    """A problem for each seed, its eigenvectors, sensors and start drawn by that seed alone.

    Args:
        seeds: one or more.
        spectrum: the eigenvalues of X above zero, in descending order, at most `dim`.
        dim: rows of X.
        measurements: `gaussian_sensors` of each problem; 0 measures every entry.
        width: columns of the starts, at most `dim`; as many by default.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if an argument is out of range.
    """
    whole_number("dim", dim, least=1)
    whole_number("measurements", measurements, least=0)
    if not seeds:
        raise ValueError("seeds must hold at least one seed, got none")
    values = torch.tensor(tuple(spectrum), dtype=torch.float64)
    falling = len(values) and bool((values > 0).all() and (values.diff() <= 0).all())
    if not falling or len(values) > dim:
        raise ValueError(
            f"spectrum must be at most dim = {dim} numbers above 0 in descending order, got "
            f"{tuple(spectrum)}"
        )
    if whole_number("width", dim if width is None else width, least=1) > dim:
        raise ValueError(f"width must be at most dim = {dim}, got {width}")
    targets, grams, starts = [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(2, dim, dim, generator=generator, dtype=torch.float64)
        vectors = torch.linalg.qr(drawn[0])[0][:, : len(values)]
        targets.append((vectors * values) @ vectors.T)
        if measurements:
            grams.append(sensor_gram(gaussian_sensors(measurements, dim, generator=generator)))
        start = drawn[1][:, :width]
        starts.append(start / torch.linalg.matrix_norm(start, 2))
    return SensingProblems(
        torch.stack(targets),
        torch.stack(grams) if grams else None,
        torch.stack(starts),
        tuple(spectrum),
    )
