"""How far a worker's run has come: its place in the round, what it sent, its finished rounds."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from undertow.train.local_sgd._report import LocalReport, mean_drift


@dataclass
class Progress:
    """The place and the counts of one worker.

    Attributes:
        steps: that it has taken.
        rounds: averagings.
        step_in_round: steps since the last of them.
        length: steps of this round.
        lr: at its start.
        bytes_reduced: given to all-reduces.
        bytes_sent: by a ring, from each worker, for that.
        distance: from the average, where it was last measured.
        tally: finished rounds by length and rate.
    """

    steps: int = 0
    rounds: int = 0
    step_in_round: int = 0
    length: int = 1
    lr: float = math.nan
    bytes_reduced: int = 0
    bytes_sent: float = 0.0
    distance: float = math.nan
    tally: Counter[tuple[int, float]] = field(default_factory=Counter)

    @property
    def place(self) -> list[int]:
        """What all ranks have alike."""
        return [self.rounds, self.steps, self.step_in_round, self.length]

    def end_round(self, num_workers: int, nbytes: int, distance: float | None) -> None:
        """Count an averaging of so many bytes."""
        self.bytes_reduced += nbytes
        self.bytes_sent += 2 * (num_workers - 1) / num_workers * nbytes
        if distance is not None:
            self.distance = distance
        if self.step_in_round:
            self.tally[self.step_in_round, float(f"{self.lr:.2e}")] += 1
        self.rounds += 1
        self.step_in_round = 0

    def state_dict(self) -> dict[str, Any]:
        """All of it, in plain numbers."""
        found = {own.name: getattr(self, own.name) for own in fields(self)}
        return found | {"tally": [[*key, rounds] for key, rounds in self.tally.items()]}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        """That of a `state_dict()`."""
        found = {own.name: state[own.name] for own in fields(cls)}
        return cls(**found | {"tally": Counter({(h, lr): n for h, lr, n in state["tally"]})})

    def report(self, num_workers: int, payload: int, eigenvalue: float | None) -> LocalReport:
        """What was sent, beside `payload` bytes at every step, and what local steps did."""
        closed = sum(length * rounds for (length, _), rounds in self.tally.items())
        every_step = closed * payload
        drift = None if eigenvalue is None else mean_drift(self.tally, eigenvalue, num_workers)
        return LocalReport(
            num_workers=num_workers,
            steps=self.steps,
            rounds=self.rounds,
            mean_period=closed / self.rounds if self.rounds else math.nan,
            bytes_reduced=self.bytes_reduced,
            bytes_sent=self.bytes_sent,
            share=self.bytes_reduced / every_step if every_step else math.nan,
            distance=self.distance,
            eigenvalue=eigenvalue,
            drift_multiplier=drift,
        )
