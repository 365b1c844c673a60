"""The claim matrix-sensing: its world, and the laws of its runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from contract import Contract

from undertow import claims, lab, predict
from undertow.claims import Records
from undertow.claims.matrix_sensing import MatrixSensing, experiments
from undertow.claims.matrix_sensing.experiments import Descent
from undertow.claims.matrix_sensing.predictions import power_laws

TINY = MatrixSensing(
    dim=6,
    spectrum=(3.0, 1.5, 0.5),
    measurements=120,
    scales=(1e-1, 1e-2, 1e-4),
    identity_scales=(1e-2, 1e-3),
    narrow_scales=(1e-2, 1e-4),
    amounts=(60, 240),
    recoveries=(6, 17, 20),
    degenerate_scale=1e-3,
    lr=0.05,
    steps=300,
    seeds=2,
)
KNOBS = MatrixSensing(seeds=20)


def world(
    seeds: int = 20,
    *,
    power: float = 1.0,
    plateau: float = 1.0,
    saturation: float = 0.1,
    step: int = 100,
    lateness: float = 1.0,
    to_greedy: float = 1e-12,
    isotropic: float = 1.0,
    large: float = 0.5,
    gapless: float = 0.4,
    narrow_power: float = 1.0,
    narrow_large: float = 0.5,
    narrow_step: int = 100,
    narrow_lateness: float = 1.0,
    shift: float = 1.0,
    shift_power: float = -0.5,
    nearness_power: float = -0.6,
    few: float = 0.9,
    some: float = 0.01,
    unbiased: float = 0.5,
    missed: float = 1e-4,
    many: float = 0.05,
) -> Records:
    """Records of a world in which every prediction holds, but for what is given otherwise."""
    generator = np.random.default_rng(0)

    def runs(
        scales: tuple[float, ...], exponent: float, power: float, phases: int = 3, **odd: float
    ) -> list[dict[str, Any]]:
        rows = []
        for seed in range(seeds):
            for scale in scales:
                for phase in range(1, phases + 1):
                    noise = generator.normal(1, 0.003)
                    near = 0.5 * scale ** (exponent * phase * power)
                    closest = odd.get("large", large) if scale == 1 else near
                    apart = saturation if phase < 3 else 0.0
                    late = 50 * odd.get("lateness", lateness) * phase * math.log(scale)
                    rows.append(
                        {
                            "seed": seed,
                            "scale": scale,
                            "phase": phase,
                            "lr": 0.01,
                            "size": 1.0,
                            "closest": closest * noise,
                            "closest_step": 1000 + odd.get("step", step) * phase,
                            "learned_step": 3 - late,
                            "closest_to_truncated": plateau * apart * noise,
                            "apart": apart,
                            "distances": [1.0, 0.5, 0.8],
                        }
                    )
        return rows

    def forecast(rows: list[dict[str, Any]], exponent: float) -> pl.DataFrame:
        limit = exponent * pl.col("phase")
        known = {"exponent": limit, "early_exponent": limit, "arrival": pl.col("phase") / 2}
        return pl.DataFrame(rows).with_columns(**known)

    sensing = forecast(runs((1.0, *KNOBS.scales), 0.3, power), 0.3)
    identity = forecast(runs(KNOBS.identity_scales, 0.4, isotropic), 0.4)
    odd = {"large": narrow_large, "step": narrow_step, "lateness": narrow_lateness}
    narrow = runs((1.0, *KNOBS.narrow_scales), 0.3, narrow_power, 2, **odd)
    few_sensors, some_sensors, many_sensors = KNOBS.recoveries
    return {
        "sensing": sensing.with_columns(to_greedy=to_greedy),
        "identity": identity,
        "narrow": forecast(narrow, 0.3),
        "amounts": pl.DataFrame(
            [
                {
                    "seed": seed,
                    "phase": phase,
                    "measurements": count,
                    "size": 1.0,
                    "closest": count**nearness_power * generator.normal(1, 0.01),
                    "apart": shift
                    * predict.minimiser_shift((3, 2, 1), phase, dim=20, measurements=count)
                    * (count / 4000) ** (shift_power + 0.5)
                    * generator.normal(1, 0.01),
                }
                for seed in range(seeds)
                for phase in (1, 2)
                for count in KNOBS.amounts
            ]
        ),
        "recovered": pl.DataFrame(
            [
                {
                    "seed": seed,
                    "measurements": count,
                    "scale": scale,
                    "final_error": error * generator.normal(1, 0.01),
                    "missed": missed,
                }
                for seed in range(seeds)
                for count, small, from_one in (
                    (few_sensors, few, 0.9),
                    (some_sensors, some, unbiased),
                    (many_sensors, 1e-4, many),
                )
                for scale, error in ((KNOBS.recovery_scale, small), (1.0, from_one))
            ]
        ),
        "degenerate": pl.DataFrame(
            {"seed": range(seeds), "closest": gapless * generator.normal(1, 0.01, seeds)}
        ).with_columns(size=1.0),
    }


CONTRACT = Contract(
    claim="matrix-sensing",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"power": -0.1}, "slope of the closest approach to Z_1"),
        ({"power": -0.1}, "closest approach from a start over that from the next smaller"),
        ({"saturation": 1e-5}, "closest approach to Z_s over that to X*_s"),
        ({"step": -100}, "T_1 < T_2"),
        ({"narrow_power": -0.1}, "2 columns: closest approach from 1e-16"),
        ({"narrow_step": -100}, "2 columns: T_1 < T_2"),
        ({"shift_power": 0.1}, "||Z_s - X*_s||: power of the number"),
        ({"nearness_power": 0.1}, "closest approach to Z_s: power of the number"),
        ({"some": 0.6}, "error of recovery from 90 measurements"),
    ],
    left_open=[
        ({"narrow_large": 0.01}, "2 columns: closest approach at scale 1"),
        ({"isotropic": 0.5}, "every entry measured: exponents"),
        ({"large": 0.01}, "closest approach at scale 1 over"),
        ({"gapless": 0.01}, "no gap: closest approach to Z_1"),
        ({"few": 1e-7}, "error of recovery from 40"),
        ({"unbiased": 0.01}, "error of recovery from 90 measurements at scale 1"),
        ({"missed": 0.5}, "what that misses of the 90"),
        ({"many": 0.5}, "error of recovery from 200"),
    ],
    bad_knobs=[
        ({"spectrum": (1.0,)}, "spectrum must be at least 3 values"),
        ({"spectrum": (1.0, 2.0, 3.0)}, "spectrum must be in descending order"),
        ({"degenerate": (2.0, 1.0, -1.0)}, "degenerate must be above 0"),
        ({"dim": 3}, "spectrum must hold fewer than dim = 3 eigenvalues"),
        ({"scales": (1.0, 0.1)}, "scales must be between 0 and 1"),
        ({"spectrum": (2.0, 2.0, 1.0)}, "spectrum must fall strictly"),
        ({"lr": 0.2}, "lr must be below"),
        ({"lr": 0.05, "degenerate": (6.0, 6.0, 1.0)}, "lr must be below"),
        ({"recoveries": (40, 90)}, "recoveries must be three values"),
        ({"recoveries": (60, 90, 200)}, "recoveries must be below 57"),
        ({"recoveries": (40, 140, 200)}, "between it and 133.5"),
        ({"amounts": (100,)}, "amounts must be at least 2 values"),
        ({"steps": 1}, "steps must be at least 2"),
        ({"seeds": 1}, "seeds must be at least 2"),
    ],
)


DERIVED = [
    ({"power": 0.5}, "exponent in the limit over the predicted, Z_1"),
    ({"power": 1.5}, "exponent in the limit over the predicted, Z_2"),
    ({"plateau": 0.5}, "plateau of the approach to X*_s"),
    ({"lateness": 1.02}, "time of arrival, off the predicted by"),
    ({"narrow_power": 0.5}, "2 columns: exponent in the limit"),
    ({"narrow_lateness": 1.02}, "2 columns: time of arrival"),
    ({"shift": 1.5}, "||Z_s - X*_s|| over its predicted"),
]


def judged(records: Records) -> dict[str, lab.Check]:
    verdict = claims.get("matrix-sensing").judge(records, KNOBS)
    return {check.name: check for check in verdict.checks}


# ---- readings


def test_a_power_law_is_found_and_rounding_left_out() -> None:
    scales = [1.0, 1e-1, 1e-2, 1e-3, 1e-4]
    rows = pl.DataFrame(
        {
            "seed": 0,
            "phase": 1,
            "scale": scales,
            "lr": 0.1,
            "closest": [9.0, *[2 * scale**3 for scale in scales[1:-1]], 1e-15],
            "learned_step": [None, *[50 - 20 * math.log(scale) for scale in scales[1:]]],
        }
    )
    (law,) = power_laws(rows).iter_rows(named=True)
    assert law["slope"] == pytest.approx(3)
    assert law["limit"] == pytest.approx(3)
    assert law["time"] == pytest.approx(2)


@pytest.mark.parametrize(("broken", "check"), DERIVED)
def test_what_the_paper_does_not_prove_is_not_refuted_by_a_miss(
    broken: dict[str, float], check: str
) -> None:
    (name,) = (name for name in judged(world()) if name.startswith(check))
    found = judged(world(**broken))[name]  # type: ignore[arg-type]
    assert not found.passed
    assert not found.refuted


def test_a_phase_that_was_never_reached_is_not_passed_over() -> None:
    records = world()
    never = pl.when(pl.col("phase") == 3).then(None).otherwise("learned_step")
    sensing = records["sensing"].with_columns(learned_step=never)
    found = judged({**records, "sensing": sensing})
    late = found["time of arrival, off the predicted by, worst phase"]
    assert not late.passed
    assert not late.refuted


def test_a_share_is_one_of_problems_and_not_of_their_runs() -> None:
    records = world()
    lost = (pl.col("seed") == 3) & (pl.col("scale") == 1e-4)
    steps = pl.when(lost).then(0).otherwise("closest_step")
    found = judged({**records, "sensing": records["sensing"].with_columns(closest_step=steps)})
    expected = lab.proportion(19, 20)
    shares = found["T_1 < T_2 < ..."]
    assert (shares.value, shares.interval) == (expected.value, expected.interval)
    assert not shares.passed


# ---- runs


def test_greedy_learning_finds_the_minimisers_that_descent_finds() -> None:
    trials = claims.get("matrix-sensing").experiments(TINY, 7)["sensing"].trials
    for rows in experiments.with_sensors(trials):
        assert [row["phase"] for row in rows] == [1, 2, 3]
        assert all(row["to_greedy"] < 1e-6 for row in rows)
        assert all(0 < row["exponent"] <= row["early_exponent"] for row in rows)
        arrivals = [row["arrival"] for row in rows]
        assert arrivals == sorted(arrivals)


def test_the_end_of_a_narrow_run_says_nothing_of_its_start_and_the_way_does() -> None:
    drawn = claims.get("matrix-sensing").experiments(TINY, 7)["narrow"].trials
    trials = [replace(trial, steps=600) for trial in drawn[: 1 + len(TINY.narrow_scales)]]
    nearness = {}
    for trial, (first, last) in zip(trials, experiments.before_the_last(trials), strict=True):
        assert last["closest"] < 1e-2 * last["size"]
        nearness[trial.scale] = first["closest"] / first["size"]
    assert nearness[1e-4] < 0.5 * nearness[1.0]


def test_within_the_window_only_a_small_start_recovers() -> None:
    window = predict.recovery_window(10, 2)
    count = round((window.freedom + window.positive) / 2)
    small = Descent(10, (2.0, 1.0), count, 10, 1e-4, 0.04, 2000, seed=5)
    ((one,),), ((other,),) = (
        experiments.recovery((trial,)) for trial in (small, replace(small, scale=1.0))
    )
    assert one["final_error"] < 0.1 < other["final_error"]
    assert other["missed"] < 0.01


@pytest.mark.parametrize("largest", [3.0, 30.0])
def test_the_minimisers_are_at_rest_whatever_the_unit_of_the_spectrum(largest: float) -> None:
    lr = 0.01 * 3 / largest
    trial = Descent(5, (largest, largest / 2), 200, 5, 1e-2, lr, 10, seed=4)
    (rows,) = experiments.with_sensors((trial,))
    assert [row["to_greedy"] for row in rows] == pytest.approx([0.0, 0.0], abs=1e-7)
