"""The claim greedy-low-rank: its experiments' laws, and what its verdict rule makes of records."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
import torch

from undertow import lab
from undertow.claims import greedy_low_rank
from undertow.claims.greedy_low_rank import (
    Completion,
    Config,
    Counterexample,
    Product,
    Trajectory,
    Trial,
)

CONFIG = Config(
    scales=(1e-4, 1e-8, 1e-12),
    deep_scales=(1e-2, 1e-6, 1e-10),
    ratios=(0.7, 1.0),
    wide_scales=(1e-2, 1e-4, 1e-32),
    seeds=8,
)


def rows_of(trial: Trial) -> list[dict[str, Any]]:
    (rows,) = greedy_low_rank.run([trial])
    return rows


def exponent(rows: list[dict[str, Any]], column: str) -> float:
    first, last = rows[0], rows[-1]
    return math.log(last[column] / first[column]) / math.log(last["scale"] / first["scale"])


def test_trials_are_distinct():
    trials = greedy_low_rank.trials(CONFIG, 3)
    assert len({lab.trial_hash(trial) for trial in trials}) == len(trials)
    assert {type(trial) for trial in trials} == {Trajectory, Product, Counterexample, Completion}
    assert len({greedy_low_rank.group(trial) for trial in trials}) == 4 * CONFIG.seeds


def test_the_first_phase_is_approached_with_half_the_relative_gap():
    rows = rows_of(Trajectory((4.0, 2.0, 1.0), (1e-8, 1e-12), 7))
    first = [row for row in rows if row["phase"] == 1]
    assert exponent(first, "distance") == pytest.approx(first[0]["predicted"], rel=0.1)
    waited = first[1]["time"] - first[0]["time"]
    assert waited * first[0]["rate"] == pytest.approx(math.log(1e4), rel=1e-3)


def test_without_a_gap_no_start_is_small_enough():
    rows = rows_of(Trajectory((4.0, 4.0, 1.0), (1e-8, 1e-12), 7))
    first = [row["distance"] for row in rows if row["phase"] == 1]
    assert first[1] == pytest.approx(first[0], rel=1e-3)
    assert first[0] > 0.2


@pytest.mark.parametrize(("depth", "second", "time"), [(2, 0.3, None), (3, 1.0, -1 / 3)])
def test_what_the_second_direction_has_goes_by_the_depth(depth, second, time):
    rows = rows_of(Product(depth, 0.7, (1e-8, 1e-10), 7))
    assert exponent(rows, "second") == pytest.approx(second, abs=0.01)
    if time is not None:
        assert exponent(rows, "time") == pytest.approx(time, abs=0.01)
    else:
        assert rows[1]["time"] - rows[0]["time"] == pytest.approx(math.log(100) / 2, rel=1e-2)


def test_the_counterexample_ends_at_rank_one_and_more_nuclear_norm():
    (row,) = rows_of(Counterexample("3x3", 4.0, (1e-8,), 7))
    assert row["trace"] == pytest.approx(18, rel=1e-5)
    assert row["greedy_trace"] == pytest.approx(18, rel=1e-6)
    assert row["least_trace"] == pytest.approx(14, rel=1e-4)
    assert row["second_over_first"] < 1e-6
    assert row["loss"] < 1e-10


def test_a_completion_holds_what_it_saw():
    rows = rows_of(Completion("low-rank", 40, 30, 7))
    methods = [row["method"] for row in rows]
    assert methods[0] == "nuclear norm"
    assert len(methods) == len(set(methods)) == 5
    assert all(row["missed"] <= 1e-2 * (1 + 1e-6) for row in rows)


def test_the_effective_rank_counts_equal_singular_values():
    matrix = torch.diag(torch.tensor([2.0, 2.0, 2.0, 0.0], dtype=torch.float64))
    assert greedy_low_rank._effective_rank(matrix) == pytest.approx(3)


@pytest.fixture(scope="module")
def ideal() -> pl.DataFrame:
    """Records of a world in which every law holds exactly."""
    rows: list[dict[str, Any]] = []
    for seed in range(CONFIG.seeds):
        gap, jitter = 0.4 + 0.01 * seed, 1 + 0.001 * seed
        for scale in CONFIG.scales:
            shared = {"experiment": "trajectory", "scale": scale, "rate": 8.0, "seed": seed}
            shared["time"] = math.log(1 / scale) / 8
            rows += [
                shared
                | {
                    "phase": phase,
                    "predicted": gap / 2,
                    "distance": scale ** (gap / 2),
                    "degenerate": False,
                }
                for phase in (1, 2)
            ]
            rows.append(
                shared | {"phase": 1, "predicted": 0.0, "distance": jitter, "degenerate": True}
            )
        for depth in (2, 3, 4):
            for ratio in CONFIG.ratios:
                power = 1 - ratio if depth == 2 else 1.0
                rows += [
                    {
                        "experiment": "product",
                        "seed": seed,
                        "depth": depth,
                        "ratio": ratio,
                        "scale": scale,
                        "second": scale**power * jitter,
                        "time": scale ** (2 / depth - 1) * jitter,
                    }
                    for scale in CONFIG.deep_scales
                ]
        for problem, strength, scale, trace, second in [
            *(("3x3", 4.0, scale, 18.0, scale**1.2) for scale in greedy_low_rank._SCALES),
            ("3x3", 1.5, 1e-8, 4.25, 1e-12),
            ("4x4", 3.0, 1e-4, 13.0, 0.1),
            ("4x4", 3.0, 1e-32, 20.0, 1e-9),
        ]:
            rows.append(
                {
                    "experiment": "counterexample",
                    "seed": seed,
                    "problem": problem,
                    "strength": strength,
                    "scale": scale,
                    "trace": trace * jitter,
                    "second_over_first": second * jitter,
                    "loss": 1e-16,
                    "first_gap": 1.2,
                }
            )
        for matrix in CONFIG.matrices:
            for place, method in enumerate(["nuclear norm", *greedy_low_rank._DEEP_METHODS]):
                error = (2.0 if place == 0 else 1.0) if matrix == "low-rank" else 1.0 + place
                rows.append(
                    {
                        "experiment": "completion",
                        "seed": seed,
                        "matrix": matrix,
                        "method": method,
                        "effective_rank": 10.0 / (1 + place) * jitter,
                        "error": error * jitter,
                        "missed": 0.01,
                        "best_error": error,
                    }
                )
    return pl.DataFrame(rows, infer_schema_length=None)


def named(verdict, name: str):
    (check,) = [check for check in verdict.checks if check.name.startswith(name)]
    return check


def spoiled(records: pl.DataFrame, column: str, value: pl.Expr, *where: pl.Expr) -> pl.DataFrame:
    changed = pl.when(pl.all_horizontal(*where)).then(value).otherwise(pl.col(column))
    return records.with_columns(changed.alias(column))


def test_a_world_in_which_everything_holds_is_supported(ideal):
    verdict = greedy_low_rank.judge(ideal, CONFIG)
    assert verdict.outcome == "supported", verdict.checks


def test_least_nuclear_norm_refutes_it(ideal):
    least = spoiled(ideal, "trace", pl.lit(14.0), pl.col("strength") == 4.0)
    verdict = greedy_low_rank.judge(least, CONFIG)
    assert verdict.outcome == "refuted"
    assert named(verdict, "3x3 from 1e-08: trace over the least").refuted


def test_flows_that_do_not_come_closer_refute_it(ideal):
    apart = spoiled(ideal, "distance", pl.lit(0.5) + 0.0 * pl.col("scale"), ~pl.col("degenerate"))
    verdict = greedy_low_rank.judge(apart, CONFIG)
    assert verdict.outcome == "refuted"
    assert named(verdict, "distance of every phase falls").refuted


def test_depth_that_changes_nothing_refutes_it(ideal):
    shallow = spoiled(ideal, "second", pl.col("scale").pow(0.3), pl.col("depth") > 2)
    verdict = greedy_low_rank.judge(shallow, CONFIG)
    assert verdict.outcome == "refuted"
    assert named(verdict, "depth 4: exponent of the second").refuted


@pytest.mark.parametrize(
    ("column", "value", "where", "control"),
    [
        ("distance", pl.lit(1e-3), pl.col("degenerate"), "distance at the smallest start"),
        ("trace", pl.lit(6.0), pl.col("strength") == 1.5, "3x3, R = 1.5"),
        ("error", pl.lit(0.1), pl.col("method") == "depth 4, 0.001", "digits: error of depth 4"),
        (
            "second",
            pl.col("scale"),
            (pl.col("depth") == 2) & (pl.col("ratio") == 1.0),
            "depth 2: exponent without a gap",
        ),
    ],
)
def test_a_control_that_does_not_fail_leaves_it_open(ideal, column, value, where, control):
    verdict = greedy_low_rank.judge(spoiled(ideal, column, value, where), CONFIG)
    assert verdict.outcome == "inconclusive"
    assert not named(verdict, control).passed


def test_few_seeds_promise_no_verdict(ideal):
    assert greedy_low_rank.judge(ideal, replace(CONFIG, seeds=3)).outcome == "inconclusive"


def test_a_flow_that_does_not_interpolate_has_no_rank_to_compare(ideal):
    stopped = pl.col("matrix") == "digits", pl.col("method") == "depth 3, 0.001"
    verdict = greedy_low_rank.judge(spoiled(ideal, "missed", pl.lit(0.5), *stopped), CONFIG)
    assert not named(verdict, "digits: effective rank").passed
    assert verdict.outcome == "inconclusive"


@pytest.mark.parametrize(
    "knob", [{"wide_scales": (1e-2, 1e-4, 1e-8)}, {"deep_scales": (1e-2, 1e-3, 1e-4)}]
)
def test_starts_that_are_not_small_refute_nothing(ideal, knob):
    config = replace(CONFIG, **knob)
    far = spoiled(ideal, "trace", pl.lit(15.4), pl.col("scale") == 1e-32)
    verdict = greedy_low_rank.judge(far, config)
    assert named(verdict, f"4x4 from {config.wide_scales[-1]:g}").refuted
    assert verdict.outcome == "inconclusive"
    assert "not small enough" in verdict.summary
    assert greedy_low_rank.judge(far, CONFIG).outcome == "refuted"


def test_table_and_figures_can_be_drawn(ideal):
    assert "hold-out error" in greedy_low_rank.table(ideal, CONFIG).columns
    figures = greedy_low_rank.figures(ideal, CONFIG)
    names = [figure.name for figure in figures]
    assert names == ["trajectory", "product", "counterexample", "completion"]
    assert all(figure.chart.to_dict() for figure in figures)


@pytest.mark.parametrize(
    "knob",
    [
        {"scales": (1e-4, 1e-8)},
        {"deep_scales": (1e-6, 1e-4, 1e-2)},
        {"ratios": (0.5,)},
        {"strength": 1.0},
        {"strength": 3.0},  # rank one has 1.1 times the least trace, which is no refutation
        {"weak_strength": 0.0},
        {"wide_strength": 2.0},  # its control could not fail
        {"wide_scales": (1e-2, 1e-8, 1e-32)},
        {"seeds": 1},
        {"matrices": ("photograph",)},
    ],
)
def test_a_knob_out_of_range_is_named(knob):
    with pytest.raises(ValueError, match=next(iter(knob))):
        Config(**knob)
