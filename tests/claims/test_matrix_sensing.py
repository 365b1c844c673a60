"""The claim matrix-sensing: its predictions in closed form, tiny runs, and its verdict rule."""

from __future__ import annotations

from dataclasses import asdict, replace

import polars as pl
import pytest
import torch

from undertow import lab
from undertow.claims import matrix_sensing
from undertow.claims.matrix_sensing import (
    Config,
    isotropic_forecasts,
    power_laws,
    predict_phases,
    saddle_spectra,
)

CONFIG = Config(
    dim=6,
    spectrum=(3.0, 1.5, 0.5),
    degenerate=(2.0, 2.0, 1.0),
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


@pytest.fixture(scope="module")
def records() -> pl.DataFrame:
    """A whole study at a size that takes seconds: too short for the limits, right in its laws."""
    study = lab.Study(
        "matrix-sensing",
        tuple(matrix_sensing.trials(CONFIG, 7)),
        matrix_sensing.run,
        matrix_sensing.group,
        36,
    )
    rows = []
    for positions in study.groups():
        trials = [study.trials[position] for position in positions]
        for trial, own in zip(trials, matrix_sensing.run(trials), strict=True):
            fields = {key: value for key, value in asdict(trial).items() if key != "spectrum"}
            rows += [{"trial": lab.trial_hash(trial), **fields, **row} for row in own]
    return pl.DataFrame(rows, infer_schema_length=None)


def ideal(records: pl.DataFrame, seeds: int = 20) -> pl.DataFrame:
    """Records of a world in which every prediction holds, for more seeds."""
    phase, scale = pl.col("phase"), pl.col("scale")
    wiggle = 1 + 0.01 * (pl.col("seed") % 7)
    exponent = 0.3 * phase
    law = 0.5 * (scale.log() * exponent).exp() * wiggle
    rank = len(CONFIG.spectrum)
    kind = pl.col("kind")
    one = (
        records.filter(phase.is_not_null())
        .filter(pl.col("seed") == records["seed"].min())
        .with_columns(exponent=exponent, early_exponent=exponent, arrival=phase / 2)
        .with_columns(
            closest=pl.when(kind == "degenerate").then(0.7).otherwise(law) * pl.col("size"),
            closest_step=100 * phase,
            learned_step=-scale.log() * phase / 2 / CONFIG.lr + 3,
            closest_to_truncated=pl.col("apart"),
            end_distance=1e-9 * pl.col("size"),
            to_greedy=pl.when(kind == "sensing").then(1e-12),
            final_error=pl.when(kind == "few").then(0.9).otherwise(1e-7),
            apart=pl.when(phase < rank).then(pl.col("size")).otherwise(0.0),
        )
        .with_columns(closest_to_truncated=pl.col("apart"))
    )
    copies = [one.with_columns(pl.col("seed") + own) for own in range(seeds)]
    return pl.concat(copies).with_columns(pl.col("closest") * (1 + 0.001 * (pl.col("seed") % 5)))


WORLD = replace(CONFIG, seeds=20, scales=(1e-1, 1e-2, 1e-4))


def named(verdict, name: str):
    (check,) = [check for check in verdict.checks if check.name.startswith(name)]
    return check


# ---- predictions


def test_with_all_entries_measured_the_spectra_are_those_of_the_target():
    spectrum = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    target = torch.diag(spectrum)
    minimisers = [torch.diag(spectrum * (torch.arange(4) < rank)) for rank in (1, 2, 3)]
    rates, relaxations = saddle_spectra(
        lambda matrix: (matrix - target).square().sum() / 2, minimisers
    )
    for rank, own in enumerate(rates):
        expected = sorted([*spectrum[rank:].tolist(), *[0.0] * rank], reverse=True)
        assert own == pytest.approx(expected, abs=1e-12)
    assert relaxations == pytest.approx([1.0, 1.0, 1.0])  # 3 - 2, 2 - 1, 1 - 0


def test_arrivals_with_all_entries_measured_are_one_over_the_eigenvalues():
    rates = [[3.0, 2.0, 1.0, 0.0], [2.0, 1.0, 0.0, 0.0], [1.0, 0, 0, 0], [0.0, 0, 0, 0]]
    forecasts = predict_phases(rates, [1.0, 1.0, 1.0])
    assert [own.arrival for own in forecasts] == pytest.approx([1 / 3, 1 / 2, 1.0])
    # g = 1/3, k = 1, v = 2; then g = 1/2, k = 1, v = 1; then g = 1, v = 0.
    assert [own.exponent for own in forecasts] == pytest.approx([2 / 15, 1 / 3, 2.0])
    isotropic = isotropic_forecasts((3.0, 2.0, 1.0))
    assert [own.early_exponent for own in forecasts] == pytest.approx(
        [own.exponent for own in isotropic]
    )
    assert [own.arrival for own in isotropic] == pytest.approx([1 / 3, 1 / 2, 1.0])


def test_isotropic_forecasts_end_with_two():
    exponents = [own.exponent for own in isotropic_forecasts((3.0, 2.0, 1.0))]
    assert exponents == pytest.approx([0.4, 2 / 3, 2.0])


def test_a_power_law_is_found_and_rounding_left_out():
    scales = [1.0, 1e-1, 1e-2, 1e-3, 1e-4]
    rows = pl.DataFrame(
        {
            "seed": [0] * 5,
            "phase": [1] * 5,
            "scale": scales,
            "lr": [0.1] * 5,
            "closest": [9.0, *[2 * scale**3 for scale in scales[1:-1]], 1e-15],
            "learned_step": [None, *[50 - 20 * pl.Series([s]).log()[0] for s in scales[1:]]],
            "exponent": [3.0] * 5,
            "early_exponent": [3.0] * 5,
            "arrival": [2.0] * 5,
        }
    )
    (law,) = power_laws(rows).iter_rows(named=True)
    assert law["slope"] == pytest.approx(3)
    assert law["limit"] == pytest.approx(3)
    assert law["fit"] == pytest.approx(1)
    assert law["time"] == pytest.approx(2)


# ---- runs


def test_trials_are_distinct_and_groups_mix_scales_and_seeds_alone():
    trials = matrix_sensing.trials(CONFIG, 3)
    assert len({lab.trial_hash(trial) for trial in trials}) == len(trials)
    groups = {matrix_sensing.group(trial) for trial in trials}
    assert len(groups) == 4 + len(CONFIG.spectrum) - 1


def test_a_run_does_not_depend_on_what_shares_its_batch():
    trials = [trial for trial in matrix_sensing.trials(CONFIG, 3) if trial.kind == "sensing"]
    together = matrix_sensing.run(trials[1:6])
    alone = matrix_sensing.run(trials[4:5])
    for one, two in zip(alone[0], together[3], strict=True):
        for key, value in one.items():
            assert two[key] == pytest.approx(value, rel=1e-6, abs=1e-12), key


def test_greedy_learning_finds_the_minimisers_that_descent_finds(records):
    sensing = records.filter(kind="sensing").filter(pl.col("phase").is_not_null())
    assert sensing["to_greedy"].max() < 1e-6
    assert (sensing["exponent"] > 0).all()
    by_phase = sensing.sort("phase").group_by("trial").agg(pl.col("arrival").diff().drop_nulls())
    assert by_phase["arrival"].explode().min() > 0


def test_a_narrow_run_ends_at_the_minimiser_of_its_rank(records):
    own = records.filter(pl.col("kind") == "narrow", pl.col("phase") == pl.col("width"))
    assert (own["end_distance"] < 1e-2 * own["size"]).all()


def test_few_measurements_do_not_recover(records):
    few, whole = (
        records.filter(kind=kind, scale=1e-2)["final_error"].max() for kind in ("few", "sensing")
    )
    assert few > 0.1 > whole


# ---- the verdict rule


def test_a_world_in_which_everything_holds_is_supported(records):
    verdict = matrix_sensing.judge(ideal(records), WORLD)
    assert verdict.outcome == "supported", verdict


def test_an_approach_that_stops_refutes_it(records):
    world = ideal(records)
    stuck = pl.when(pl.col("kind") == "sensing", pl.col("scale") < 1)
    noise = 1 + 0.01 * (pl.col("seed") % 3) * pl.col("scale").log()
    verdict = matrix_sensing.judge(
        world.with_columns(
            closest=stuck.then(0.8 * pl.col("size") * noise.abs()).otherwise("closest")
        ),
        WORLD,
    )
    assert verdict.outcome == "refuted"
    assert named(verdict, "closest approach to Z_s below").refuted


def test_a_phase_that_was_never_reached_is_not_passed_over(records):
    never = pl.when(pl.col("kind") == "sensing", pl.col("phase") == 3).then(None)
    verdict = matrix_sensing.judge(
        ideal(records).with_columns(learned_step=never.otherwise("learned_step")), WORLD
    )
    assert not named(verdict, "time of arrival").passed
    assert verdict.outcome == "inconclusive"


def test_a_share_is_one_of_problems_and_not_of_their_runs(records):
    lost = (pl.col("seed") == pl.col("seed").min()) & (pl.col("scale") == WORLD.narrow_scale)
    verdict = matrix_sensing.judge(
        ideal(records).with_columns(closest_step=pl.when(lost).then(0).otherwise("closest_step")),
        WORLD,
    )
    shares = named(verdict, "T_1 < T_2")
    expected = lab.proportion(WORLD.seeds - 1, WORLD.seeds)
    assert (shares.value, shares.interval) == (expected.value, expected.interval)
    assert not shares.passed


@pytest.mark.parametrize("largest", [3.0, 30.0])
def test_the_minimisers_are_at_rest_whatever_the_unit_of_the_spectrum(largest):
    spectrum = (largest, largest / 2)
    trial = matrix_sensing.Descent(
        "sensing", 5, spectrum, 200, 5, 1e-2, 0.01 * 3 / largest, 10, curve=False, seed=4
    )
    problem = matrix_sensing._problem(trial)
    (found,) = matrix_sensing._saddles([problem], trial)
    assert found.to_greedy == pytest.approx([0.0, 0.0], abs=1e-7)


def test_recovery_from_few_measurements_breaks_the_control(records):
    verdict = matrix_sensing.judge(ideal(records).with_columns(final_error=pl.lit(1e-7)), WORLD)
    assert verdict.outcome == "inconclusive"
    assert not named(verdict, "error of recovery from 6").passed


def test_few_seeds_promise_no_verdict(records):
    assert matrix_sensing.judge(records, CONFIG).outcome == "inconclusive"


def test_table_and_figures_can_be_drawn(records):
    assert "predicted exponent" in matrix_sensing.table(records, CONFIG).columns
    names = [figure.name for figure in matrix_sensing.figures(records, CONFIG)]
    assert names == ["approach", "phases", "times"]


@pytest.mark.parametrize(
    "knob",
    [
        {"spectrum": (1.0,)},
        {"spectrum": (1.0, 2.0)},
        {"degenerate": (2.0, -1.0)},
        {"scales": (1.0, 0.1)},
        {"lr": 0.2},
        {"lr": 0.1, "degenerate": (6.0, 6.0)},
        {"narrow_scale": 0.5},
        {"seeds": 1},
    ],
)
def test_a_knob_out_of_range_is_named(knob):
    with pytest.raises(ValueError, match=next(iter(knob))):
        Config(**knob)
