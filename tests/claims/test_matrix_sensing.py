"""The claim matrix-sensing: its world, and the laws of its runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from contract import Contract

from undertow import claims, lab
from undertow.claims import Records
from undertow.claims.matrix_sensing import MatrixSensing, experiments
from undertow.claims.matrix_sensing.experiments import Descent
from undertow.claims.matrix_sensing.predictions import power_laws

TINY = MatrixSensing(
    dim=6,
    spectrum=(3.0, 1.5, 0.5),
    measurements=120,
    few_measurements=6,
    scales=(1e-1, 1e-2, 1e-4),
    identity_scales=(1e-2, 1e-3),
    degenerate_scales=(1e-2, 1e-3),
    narrow_scale=1e-2,
    lr=0.05,
    steps=300,
    seeds=2,
)
KNOBS = MatrixSensing(seeds=20)


def world(
    seeds: int = 20,
    *,
    power: float = 1.0,
    scatter: float = 0.0,
    plateau: float = 1.0,
    saturation: float = 0.1,
    step: int = 100,
    lateness: float = 1.0,
    to_greedy: float = 1e-12,
    end_distance: float = 1e-9,
    isotropic: float = 1.0,
    large: float = 0.5,
    gapless: float = 0.0,
    few: float = 0.9,
    error: float = 1e-7,
) -> Records:
    """Records of a world in which every prediction holds, but for what is given otherwise."""
    generator = np.random.default_rng(0)

    def runs(scales: tuple[float, ...], exponent: float, power: float) -> list[dict[str, Any]]:
        rows = []
        for seed in range(seeds):
            for scale in scales:
                for phase in (1, 2, 3):
                    noise = generator.normal(1, 0.003) * math.exp(scatter * generator.normal())
                    closest = large if scale == 1 else 0.5 * scale ** (exponent * phase * power)
                    apart = saturation if phase < 3 else 0.0
                    rows.append(
                        {
                            "seed": seed,
                            "scale": scale,
                            "phase": phase,
                            "lr": 0.01,
                            "size": 1.0,
                            "closest": closest * noise,
                            "closest_step": 1000 + step * phase,
                            "learned_step": 3 - 50 * lateness * phase * math.log(scale),
                            "closest_to_truncated": plateau * apart * noise,
                            "apart": apart,
                            "final_error": error * noise,
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
    noise = generator.normal(1, 0.01, seeds)
    return {
        "sensing": sensing.with_columns(to_greedy=to_greedy),
        "identity": identity,
        "degenerate": pl.DataFrame(runs(KNOBS.degenerate_scales, 0.3, gapless)),
        "narrow": pl.DataFrame(
            [
                {"seed": seed, "width": width, "end_distance": end_distance, "size": 1.0}
                for seed in range(seeds)
                for width in (1, 2)
            ]
        ),
        "few": pl.DataFrame({"seed": range(seeds), "final_error": few * noise}),
    }


CONTRACT = Contract(
    claim="matrix-sensing",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"power": -0.1}, "slope of the closest approach to Z_1"),
        ({"power": -0.1}, "descent comes nearer to greedy learning's phase"),
        ({"power": 0.5}, "exponent in the limit against the predicted, Z_1"),
        ({"power": 1.5}, "exponent in the limit against the predicted, Z_2"),
        ({"power": 0.5}, "exponent between the predicted limit and the predicted early one"),
        ({"saturation": 1e-5}, "closest approach to Z_s below half of that to X*_s"),
        ({"plateau": 0.5}, "plateau of the approach to X*_s"),
        ({"step": -100}, "T_1 < T_2"),
        ({"lateness": 1.2}, "time of arrival against the predicted"),
        ({"to_greedy": 1e-3}, "greedy learning's phase s against Z_s"),
        ({"end_distance": 1e-2}, "end of runs with too few columns"),
    ],
    left_open=[
        ({"isotropic": 0.5}, "every entry measured: exponents"),
        ({"large": 0.01}, "closest approach at scale 1"),
        ({"gapless": 1.0}, "slope of the approach to Z_1 without a gap"),
        ({"few": 1e-7}, "error of recovery from 40"),
        ({"error": 0.5}, "error of recovery from 2000"),
    ],
    bad_knobs=[
        ({"spectrum": (1.0,)}, "spectrum must be at least 2 values"),
        ({"spectrum": (1.0, 2.0)}, "spectrum must be in descending order"),
        ({"degenerate": (2.0, -1.0)}, "degenerate must be above 0"),
        ({"dim": 3}, "spectrum must hold fewer than dim = 3 eigenvalues"),
        ({"scales": (1.0, 0.1)}, "scales must be between 0 and 1"),
        ({"lr": 0.2}, "lr must be below"),
        ({"lr": 0.1, "degenerate": (6.0, 6.0)}, "lr must be below"),
        ({"narrow_scale": 0.5}, "narrow_scale must be one of scales"),
        ({"steps": 1}, "steps must be at least 2"),
        ({"seeds": 1}, "seeds must be at least 2"),
    ],
)


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
    assert law["misfit"] == pytest.approx(0, abs=1e-12)
    assert law["time"] == pytest.approx(2)


def test_approaches_that_scatter_are_no_power_law() -> None:
    assert not judged(world(scatter=3.0))["one minus R^2 of these power laws, worst phase"].passed


def test_a_phase_that_was_never_reached_is_not_passed_over() -> None:
    records = world()
    never = pl.when(pl.col("phase") == 3).then(None).otherwise("learned_step")
    sensing = records["sensing"].with_columns(learned_step=never)
    found = judged({**records, "sensing": sensing})
    late = found["time of arrival against the predicted, worst phase"]
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


def test_a_narrow_run_ends_at_the_minimiser_of_its_rank() -> None:
    trials = claims.get("matrix-sensing").experiments(TINY, 7)["narrow"].trials
    for trial in trials:
        (((row,),)) = experiments.too_narrow((trial,))
        assert row["end_distance"] < 1e-2 * row["size"]


def test_few_measurements_do_not_recover() -> None:
    few = claims.get("matrix-sensing").experiments(TINY, 7)["few"].trials[0]
    many = replace(few, measurements=TINY.measurements, steps=TINY.steps)
    ((one,),), ((other,),) = experiments.recovery((few,)), experiments.recovery((many,))
    assert one["final_error"] > 0.1 > other["final_error"]


@pytest.mark.parametrize("largest", [3.0, 30.0])
def test_the_minimisers_are_at_rest_whatever_the_unit_of_the_spectrum(largest: float) -> None:
    lr = 0.01 * 3 / largest
    trial = Descent(5, (largest, largest / 2), 200, 5, 1e-2, lr, 10, seed=4)
    (rows,) = experiments.with_sensors((trial,))
    assert [row["to_greedy"] for row in rows] == pytest.approx([0.0, 0.0], abs=1e-7)
