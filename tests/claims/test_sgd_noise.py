"""The claim sgd-noise: the floor on small networks, and what its verdict rule makes of records."""

from __future__ import annotations

from dataclasses import asdict, replace

import polars as pl
import pytest
import torch
from torch import nn
from torch.nn import functional

from undertow import lab, measure
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
        pl.when(pl.col("floor").is_not_null()).then(1.0).alias("train_accuracy"),
        pl.lit(1e-7).alias("residual"),
        pl.col("pairs") * 10,
        moved.alias("displacement"),
        pl.when(sgd).then(3e-4).otherwise(1e-4).alias("tangential"),
        pl.when(sgd).then(pl.when(early).then(1e-7).otherwise(9e-4)).alias("of_the_order"),
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


@pytest.mark.parametrize("kind", ["convolution", "batch norm in training mode"])
def test_the_floor_holds_where_the_caveats_say_that_it_does(kind):
    """A batch's gradient has rank m B at most, whether statistics couple its samples or not."""
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.float64}
    if kind == "convolution":
        layer = nn.Conv2d(3, 32, 3, stride=4, bias=False, dtype=torch.float64)
        head: nn.Module = nn.Flatten()
        inputs, patches = torch.randn(3, 3, 9, 9, **draw), 4  # 4 positions: rank 12 of 27
    else:
        layer = nn.Linear(20, 16, bias=False, dtype=torch.float64)
        head = nn.BatchNorm1d(16, dtype=torch.float64)
        inputs, patches = torch.randn(3, 20, **draw), 1
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
    outputs = head(layer(inputs)).tanh()
    loss = (outputs * torch.randn(outputs.shape, **draw)).sum() / 3
    (gradient,) = torch.autograd.grad(loss, [layer.weight])
    values = torch.linalg.svdvals(gradient.flatten(1))
    assert int((values > 1e-10 * values[0]).sum()) <= 3 * patches
    found = measure.noise_floor(layer, weight_decay=0.1, batch_size=3, patches={"weight": patches})
    assert 0 < found.floor <= float((gradient + 0.1 * layer.weight.detach()).norm())
    many = measure.noise_floor(layer, weight_decay=0.1, batch_size=20, patches={"weight": patches})
    assert many.floor == 0


def test_batch_norm_couples_samples_so_that_a_swap_changes_the_others():
    """Why the memo's step from all batches at rest to zero functions needs per-sample gradients."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    swapped = inputs.clone()
    swapped[3] = torch.randn(6, generator=generator, dtype=torch.float64)
    net = nn.Sequential(
        nn.Linear(6, 5, dtype=torch.float64), nn.BatchNorm1d(5, dtype=torch.float64)
    )
    first, second = ((functional.softplus(net(x))[:3]).sum() for x in (inputs, swapped))
    kept = [torch.autograd.grad(loss, [net[0].weight])[0] for loss in (first, second)]
    assert not torch.allclose(kept[0], kept[1])


def test_pairs_count_only_where_there_is_a_floor():
    rest = replace(
        next(t for t in sgd_noise.trials(CONFIG, 1) if isinstance(t, Rest) and t.weight_decay > 0),
        batch_sizes=(1, 12),
        steps=5,
    )
    (rows,) = sgd_noise.run([rest])
    full = [row for row in rows if row["batch_size"] == 12]  # 12 is every matrix's rank
    assert [row["pairs"] for row in full] == [0, 0, 0]
    assert all(row["pairs"] == 30 for row in rows if row["batch_size"] == 1)


def test_a_displacement_that_diverges_is_said_to(monkeypatch):
    monkeypatch.setattr(sgd_noise, "_SHRINK_LR", 1e200)
    moved = next(t for t in sgd_noise.trials(CONFIG, 1) if isinstance(t, Displacement))
    (rows,) = sgd_noise.run([moved])
    assert all(row["diverged"] for row in rows)


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


@pytest.mark.parametrize("what", ["collapsed", "missing"])
def test_a_decay_without_runs_that_fitted_promises_no_verdict(records, what):
    ideal, strongest = at_rest(records), pl.col("weight_decay") == max(CONFIG.weight_decay)
    if what == "missing":
        ideal = ideal.filter(~strongest)
    else:
        ideal = ideal.with_columns(
            pl.when(strongest).then(0.1).otherwise("train_accuracy").alias("train_accuracy")
        )
    verdict = sgd_noise.judge(ideal, CONFIG)
    assert verdict.outcome == "inconclusive"
    assert not named(verdict, "noise rises with decay").passed


def test_drift_that_ignores_the_order_of_the_data_is_not_noise(records):
    drift = at_rest(records).with_columns(
        pl.when(pl.col("of_the_order").is_not_null()).then(1e-7).alias("of_the_order")
    )
    verdict = sgd_noise.judge(drift, CONFIG)
    assert verdict.outcome == "refuted"
    assert named(verdict, "noise over displacement, late").refuted


def test_one_decay_has_no_trend(records):
    one = replace(CONFIG, weight_decay=(0.0, 2e-2))
    ideal = at_rest(records).filter(pl.col("weight_decay") != 5e-3)
    verdict = sgd_noise.judge(ideal, one)
    assert not named(verdict, "noise rises with decay").passed
    assert verdict.outcome == "inconclusive"


def test_a_ratio_to_nothing_is_unknown(records):
    still = at_rest(records).with_columns(
        pl.when(pl.col("method") == "GD").then(0.0).otherwise("tangential").alias("tangential")
    )
    verdict = sgd_noise.judge(still, CONFIG)
    assert verdict.outcome == "inconclusive"


def test_few_seeds_promise_no_verdict(records):
    few = replace(CONFIG, seeds=3)
    assert sgd_noise.judge(at_rest(records), few).outcome == "inconclusive"


def test_table_and_figures_can_be_drawn(records):
    assert "minimum over floor" in sgd_noise.table(records, CONFIG).columns
    names = [figure.name for figure in sgd_noise.figures(records, CONFIG)]
    assert names == ["floor", "displacement"]


@pytest.mark.parametrize(
    "knob",
    [
        {"weight_decay": (0.0,)},
        {"weight_decay": (1e-3,)},
        {"weight_decay": (0.0, -1e-3)},
        {"batch_sizes": (100,)},
        {"batch_sizes": (4,)},
        {"batch_sizes": (1, 4, 4)},
        {"weight_decay": (0.0, 1e-3, 1e-3)},
        {"weight_decay": (0.0, 10.0)},
        {"shrink_decay": 0.0},
        {"shrink_decay": 10.0},
        {"shrink_samples": 8},
        {"width": 1},
        {"seeds": 0},
        {"late_epochs": 0},
        {"fit": 1.5},
    ],
)
def test_a_knob_out_of_range_is_named(knob):
    with pytest.raises(ValueError, match=next(iter(knob))):
        Config(**knob)
