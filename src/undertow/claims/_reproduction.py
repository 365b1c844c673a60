"""What became of a claim that was put to the test: the verdict, and all that it rests on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from undertow import lab
from undertow.claims._claim import Records


@dataclass(frozen=True)
class Reproduction:
    """What became of a claim.

    Attributes:
        claim: its name.
        preset: `smoke`, `small` or `paper`.
        seed: the base seed.
        verdict: the outcome, with each check; inconclusive where trials failed, since it was fixed
            beforehand what all of them must show.
        records: by experiment, a row per record of each trial, in the trials' order.
        seconds: wall time of the runs that computed the trials; NaN where none was noted.
        out: the folder with `report.html`, `verdict.json`, `figures/` and the store.
        trials: how many there are.
        failures: of the trials that gave no records, and are left out of everything.
        replication: how often redrawn seeds are judged alike; None where that was not asked for,
            where no verdict was promised, or where trials failed.
        alone: how many trials ran without the others of their group, since one of those took it
            down; their last digits may differ from those of a whole group.
        report: `report.html`, or None where the folder cannot be written.
    """

    claim: str
    preset: str
    seed: int
    verdict: lab.Verdict
    records: Records = field(repr=False)
    seconds: float
    out: Path
    trials: int
    failures: tuple[lab.Failure, ...] = field(repr=False)
    alone: int
    replication: lab.Replication | None = field(repr=False)
    report: Path | None
    _document: lab.Document = field(repr=False, compare=False)

    def document(self) -> lab.Document:
        """Verdict and checks; on a page also the figures, the numbers, and how it was run."""
        return dataclasses.replace(self._document, data=self.as_json())

    def __repr__(self) -> str:
        return (
            f"{self.claim} ({self.preset}, seed {self.seed}) is {self.verdict!r}"
            f" {self.seconds:.1f} s; report in {self.report}"
        )

    def as_json(self) -> dict[str, Any]:
        """The object of `undertow reproduce --json`; a number that JSON cannot hold is None."""
        shares = {} if self.replication is None else self.replication.checks
        return {
            "claim": self.claim,
            "preset": self.preset,
            "seed": self.seed,
            "verdict": self.verdict.outcome,
            "checks": [
                {
                    "name": check.name,
                    "value": _finite(check.value),
                    "interval": [_finite(bound) for bound in check.interval],
                    "rule": check.rule,
                    "passed": bool(check.passed),
                    "control": bool(check.control),
                    "replicates": shares.get(check.name),
                }
                for check in self.verdict.checks
            ],
            "replication": _as_json(self.replication),
            "trials": self.trials,
            "failed": len(self.failures),
            "alone": self.alone,
            "seconds": _finite(round(self.seconds, 3)),
            "out": str(self.out),
        }


def _as_json(found: lab.Replication | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "probability": found.probability,
        "interval": list(found.interval),
        "weakest": found.weakest[0],
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
