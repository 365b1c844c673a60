"""The claim sgd-noise: the floor on small networks, and what its verdict rule makes of records."""

from __future__ import annotations

from dataclasses import asdict, replace

import polars as pl
import pytest

from undertow import lab
from undertow.claims import sgd_noise
from undertow.claims.sgd_noise import Config, Displacement, Rest

CONFIG = Config(
    samples=30,
    width=12,
    weight_decay=(0.0, 5e-3, 2e-2),
    steps=300,
    fit_steps=200,
    late_epochs=3,
    shrink_samples=64,
    seeds=8,
)


@pytest.fixture(scope="module")
def records() -> pl.DataFrame:
    """A whole study at a size that takes seconds, far from rest: only exact laws hold."""
    study = lab.Study(
        "sgd-noise", tuple(sgd_noise.trials(CONFIG, 7)), sgd_noise.run, sgd_noise.group, 25
    )
    rows = []
    for positions in study.groups():
        trials = [study.trials[position] for position in positions]
        for trial, own in zip(trials, sgd_noise.run(trials), strict=True):
            fields = {key: value for key, value in asdict(trial).items() if key != "batch_sizes"}
            rows += [{"trial": lab.trial_hash(trial), **fields, **row} for row in own]
    return pl.DataFrame(rows, infer_schema_length=None)


def at_rest(records: pl.DataFrame) -> pl.DataFrame:
    """The same records as a world in which every prediction holds would give."""
    decay = pl.col("weight_decay")
    early, sgd = pl.col("epoch") == 0, pl.col("method") == "SGD"
    moved = (
        pl.when(early)
        .then(pl.when(decay > 0).then(pl.col("shrinkage") * 1.01).otherwise(1e-6))
        .otherwise(1e-3)
    )
    return records.with_columns(
        pl.when(decay > 0).then(pl.col("floor") * 1.2).otherwise(1e-6).alias("least"),
        (decay * 10 + 1e-6).alias("rms"),
        pl.lit(1e-7).alias("residual"),
        pl.col("pairs") * 10,
        moved.alias("displacement"),
        pl.when(sgd).then(3e-4).otherwise(1e-4).alias("tangential"),
        pl.when(early & sgd).then(1e-7).alias("of_the_order"),
    )


def named(verdict, name: str):
    (check,) = [check for check in verdict.checks if check.name == name]
    return check


def test_trials_are_distinct():
    trials = sgd_noise.trials(CONFIG, 3)
    assert len({lab.trial_hash(trial) for trial in trials}) == len(trials)
    assert {type(trial) for trial in trials} == {Rest, Displacement}


def test_no_batch_goes_below_the_floor_wherever_training_stands(records):
    rest = records.filter(pl.col("floor").is_not_null())
    assert rest["violations"].sum() == 0
    assert (rest["least"] >= rest["floor"] * (1 - 1e-9)).all()
    assert (rest.filter(pl.col("weight_decay") == 0)["floor"] == 0).all()
    assert (rest.filter(pl.col("weight_decay") > 0)["floor"] > 0).all()


def test_a_displacement_is_its_radial_and_tangential_part(records):
    moved = records.filter(pl.col("displacement").is_not_null())
    squares = moved["radial"] ** 2 + moved["tangential"] ** 2
    assert ((squares - moved["displacement"] ** 2).abs() < 1e-15).all()


def test_a_world_in_which_everything_holds_is_supported(records):
    verdict = sgd_noise.judge(at_rest(records), CONFIG)
    assert verdict.outcome == "supported", verdict


def test_one_violation_refutes_it(records):
    strongest_first = at_rest(records).sort("weight_decay", descending=True)
    one = pl.int_range(pl.len()) == 0
    spoiled = strongest_first.with_columns(
        pl.when(one).then(1).otherwise(pl.col("violations")).alias("violations")
    )
    verdict = sgd_noise.judge(spoiled, CONFIG)
    assert verdict.outcome == "refuted"
    assert named(verdict, "guaranteed floor violated").refuted


def test_noise_without_decay_breaks_the_control(records):
    noisy = at_rest(records).with_columns((pl.col("weight_decay") + 1).alias("rms"))
    verdict = sgd_noise.judge(noisy, CONFIG)
    assert verdict.outcome == "inconclusive"
    assert not named(verdict, "noise without decay over weakest decay").passed


def test_few_seeds_promise_no_verdict(records):
    few = replace(CONFIG, seeds=3)
    assert sgd_noise.judge(at_rest(records), few).outcome == "inconclusive"


def test_table_and_figures_can_be_drawn(records):
    assert "minimum over floor" in sgd_noise.table(records, CONFIG).columns
    names = [figure.name for figure in sgd_noise.figures(records, CONFIG)]
    assert names == ["floor", "displacement"]


@pytest.mark.parametrize(
    "knob", [{"weight_decay": (0.0,)}, {"batch_sizes": (100,)}, {"shrink_decay": 0.0}]
)
def test_a_knob_out_of_range_is_named(knob):
    with pytest.raises(ValueError, match=next(iter(knob))):
        Config(**knob)
