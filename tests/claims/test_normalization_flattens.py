"""The claim normalization-flattens: its world, and what does not pass."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from contract import Contract

from undertow import claims
from undertow.claims import Records
from undertow.claims.normalization_flattens import (
    READINGS,
    SPEED_READINGS,
    NormalizationFlattens,
    experiments,
)
from undertow.claims.normalization_flattens.experiments import FORESEEN, REGRESSION_DECAY, TESTED
from undertow.data import Images

Noise = np.random.Generator
Rows = list[dict[str, Any]]

TINY = NormalizationFlattens(
    images=Images(train_size=20),
    other=None,
    widths=(4,),
    slower=(0.5,),
    fit_steps=3,
    steps=READINGS,
    settling=1,
    test_size=None,
    speed_fit=60,
    speed_steps=SPEED_READINGS,
    regression_size=20,
    regression_steps=8,
    intrinsic_rates=(0.2, 0.1),
    circle_time=0.3,
    seeds=2,
)
KNOBS = NormalizationFlattens(images=Images(train_size=50), other="mnist-5k", seeds=12)


@dataclass(frozen=True)
class Broken:
    """What differs from a world in which every prediction holds."""

    order: float = 2.0
    circle_pace: float = 1.0
    circle_edge: float = 2.0
    circle_still: float = 0.001
    tangent_power: float = 1.0  # of (1 - lr wd)^t
    still_power: float = 0.0
    steepness: float = 1.0  # of the regression's sharpness, over its law
    fall: float = -1.2
    still: float = -0.02
    edge: float = 2.1
    slow_edge: float = 2.03
    clock: float = -1.0
    pace: float = -1.8
    foreseen: float = -1.81
    alone: float = -1.96
    gain: float = 0.01
    unseen: float = 0.0  # what the twin gains where it forgets what no input reaches

    def circles(self, trial: Any, noise: Noise) -> Rows:
        fall, gap = -1.5 * noise.normal(1, 0.01), math.log(trial.intrinsic_rate) * self.order
        first = {"tau": 0.0, "fall": 0.0, "flow_fall": 0.0, "still_fall": 0.0, "last": False}
        last = {"tau": 2.0, "fall": self.circle_pace * fall, "flow_fall": fall, "last": True}
        last |= {"still_fall": self.circle_still * fall}
        shared = {"log_gap": gap + noise.normal(0, 0.02), "edge": self.circle_edge}
        return [row | shared for row in (first, last)]

    def regressions(self, trial: Any, noise: Noise) -> Rows:
        rows = []
        for decay, power in ((True, self.tangent_power), (False, self.still_power)):
            for step in (0, 1_000, 8_000):
                tangent = 2.5 * (1 - REGRESSION_DECAY) ** (power * step) * noise.normal(1, 1e-3)
                height = self.steepness * math.log(1 + tangent**2)
                row = {"decay": decay, "step": step, "tangent": tangent, "log_sharpness": height}
                rows.append(row | {"edge": 2.0})
        return rows

    def networks(self, trial: Any, noise: Noise) -> Rows:
        rows, accuracy, shift = [], 0.7 + 0.02 * noise.normal(), noise.normal(0, 0.02)
        for branch in trial.branches:
            for reading in TESTED:
                done = reading / READINGS
                fall = self.fall * min(1, branch) if branch else self.still
                edge = {1.0: self.edge, 0.25: self.slow_edge, 0.0: 2.0}.get(branch, 2.06)
                row = {
                    "branch": branch,
                    "step": reading * 400,
                    "tau": reading * 400 * trial.weight_decay * branch,
                    "log_sharpness": 5 + done * (fall + shift),
                    "edge": edge + noise.normal(0, 0.002),
                    "accuracy": accuracy + done * (branch == 1) * (self.gain + 0.05 * shift),
                    "last": reading > READINGS - 3,
                }
                if reading == READINGS:
                    steps = 1_300 * branch**self.clock if branch else None
                    row |= {"crossing": steps, "seen_accuracy": accuracy + self.unseen}
                rows.append(row)
        return rows

    def pace_rows(self, trial: Any, noise: Noise) -> Rows:
        rows = []
        for reading in range(SPEED_READINGS + 1):
            tau = 0.05 * reading
            row = {"tau": tau, "log_sharpness": 5 + self.pace * tau, "edge": 2.05}
            if reading in FORESEEN:
                row |= {"at_edge": 3, "foreseen": self.foreseen * noise.normal(1, 2e-3)}
                row |= {"alone": self.alone}
            rows.append(row)
        return rows


def world(seeds: int = 12, **broken: Any) -> Records:
    """Records of a world in which every prediction holds, but for what is given otherwise."""
    own, noise = Broken(**broken), np.random.default_rng(0)
    makers = {"pace": own.pace_rows}
    return {
        name: pl.DataFrame(
            [
                {"trial": f"{name} {place}", **_plain(trial), **row}
                for place, trial in enumerate(experiment.trials)
                for row in makers.get(name, getattr(own, name))(trial, noise)
            ],
            infer_schema_length=None,
        )
        for name, experiment in experiments.experiments(replace(KNOBS, seeds=seeds), 3).items()
    }


def _plain(trial: Any) -> dict[str, Any]:
    found = {k: v for k, v in vars(trial).items() if isinstance(v, int | float | str)}
    return found | ({"images.data": trial.images.data} if hasattr(trial, "images") else {})


CONTRACT = Contract(
    claim="normalization-flattens",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"order": -0.5}, "circle, order in the intrinsic rate"),
        ({"circle_pace": 0.2}, "circle, sqrt(2 lr wd) = 0.01: log sharpness lost"),
        ({"circle_edge": 0.5}, "circle, sqrt(2 lr wd) = 0.01: effective rate"),
        ({"tangent_power": 0.2}, "batch-norm regression: tan psi"),
        ({"steepness": 0.1}, "batch-norm regression: log sharpness lost"),
        ({"fall": 0.5}, "network, digits, width 32: log sharpness"),
        ({"edge": 0.5}, "network, digits, width 16: effective rate"),
        ({"clock": 0.5}, "network: power of lr wd"),
        ({"slow_edge": 2.2}, "network: distance from the edge"),
        ({"pace": -0.5}, "network: d log sharpness / d tau"),
        ({"pace": -1.2, "alone": -1.9}, "network: 2 + d log sharpness / d tau"),
        ({"gain": -0.01, "unseen": -0.02}, "test accuracy, flattened - twin"),
    ],
    left_open=[
        ({"circle_still": 0.9}, "circle, sqrt(2 lr wd) = 0.01, no decay"),
        ({"still_power": 1.0}, "batch-norm regression, no decay"),
        ({"still": -1.2}, "network, digits, width 32, no decay"),
        ({"still": -1.2}, "network, digits, width 16, no decay"),
        ({"still": -1.2}, "network, mnist-5k, width 32, no decay"),
        ({"still": -1.2}, "network, mnist-5k, width 16, no decay"),
        ({"alone": -1.81}, "network: the same, by the largest eigenvalue alone"),
    ],
    bad_knobs=[
        ({"slower": (1.0,)}, "slower must lie below 1"),
        ({"images": Images()}, "train_size must be a number"),
        ({"other": "digits"}, "other must not be digits"),
        ({"weight_decay": 0.1}, "weight_decay must lie below 0.01"),
        ({"intrinsic_rates": (0.1,)}, "intrinsic_rates must be at least 2 values"),
        ({"steps": 3}, f"steps must be at least {READINGS}"),
        ({"seeds": 1}, "seeds must be at least 2"),
    ],
)


def test_a_gain_that_is_only_forgetting_does_not_pass() -> None:
    verdict = claims.get("normalization-flattens").judge(world(unseen=0.02), KNOBS)
    (check,) = (own for own in verdict.checks if own.name.endswith("what no input reaches"))
    assert verdict.outcome == "inconclusive"
    assert not check.passed
    assert not check.refuted
