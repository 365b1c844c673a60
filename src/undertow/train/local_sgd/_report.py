"""What a run with Local SGD sent, how far workers strayed, and whether that could matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from undertow.predict import local_drift_multiplier


@dataclass(frozen=True, repr=False)
class LocalReport:
    """Communication and drift of a run with Local SGD, as one worker sees it.

    Attributes:
        num_workers: K.
        steps: steps that this worker took.
        rounds: averagings.
        mean_period: steps of a finished round, on average; nan before the first.
        bytes_reduced: what this worker gave to all-reduces, its payload.
        bytes_sent: what a ring of K sends from each worker for it, 2 (K - 1) / K times as much.
        share: of the bytes of averaging gradients at every step (data-parallel training).
        distance: from this worker to the average when it was last measured, at every 16th
            averaging from the first on, ||x_k - mean|| / ||x_k||; nan before.
        eigenvalue: what the drift multiplier is for; None: not asked.
        drift_multiplier: `predict.local_drift_multiplier` at each round's period and rate, averaged
            over steps; 1: nothing but saved communication, K: the most there is.
    """

    num_workers: int
    steps: int
    rounds: int
    mean_period: float
    bytes_reduced: int
    bytes_sent: float
    share: float
    distance: float
    eigenvalue: float | None = None
    drift_multiplier: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def __repr__(self) -> str:
        who = f"{self.num_workers} worker{'s' if self.num_workers > 1 else ''}"
        if not self.rounds:
            return f"{who}, {self.steps:,} steps and no round yet."
        words = f"{who}, {self.rounds:,} rounds in {self.steps:,} steps"
        if self.num_workers > 1:
            words += (
                f": {_size(self.bytes_sent)} sent by each, {self.share:.1%} of averaging at every "
                f"step; {self.distance:.2%} from the average before averaging"
            )
        if self.drift_multiplier is not None:
            words += (
                f"; drift along eigenvalue {self.eigenvalue:.4g} times "
                f"{self.drift_multiplier:.3g}, of at most {self.num_workers}"
            )
            if self.num_workers > 1 and self.drift_multiplier < 1.05:
                words += ": local steps saved communication and did hardly more"
        return f"{words}."


def mean_drift(
    tally: Mapping[tuple[int, float], int], eigenvalue: float, num_workers: int
) -> float | None:
    """The multiplier of rounds of (period, rate), weighted by their steps; None without any.

    Raises:
        ValueError: the eigenvalue is negative, or a local step at some round's rate is unstable.
    """
    total = sum(period * rounds for (period, lr), rounds in tally.items() if lr > 0)
    if not total:
        return None
    return (
        sum(
            period
            * rounds
            * float(local_drift_multiplier(lr, eigenvalue, num_workers=num_workers, period=period))
            for (period, lr), rounds in tally.items()
            if lr > 0
        )
        / total
    )


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
