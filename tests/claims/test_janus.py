"""The claim janus: its trials, what its records say, and what its verdict rule makes of them."""

from __future__ import annotations

from dataclasses import asdict, replace

import polars as pl
import pytest
import torch

from undertow import lab
from undertow.claims import janus
from undertow.claims.janus import Config, Deep, Regression

CONFIG = Config(
    batch_sizes=(1, 10),
    samples=20,
    dimension=50,
    epochs=5,
    weight_decay=(0.0, 2e-4, 2e-3),
    late_steps=400,
    deep_samples=60,
    deep_steps=60,
    deep_weight_decay=(0.0, 2e-2),
    seeds=8,
)


def regression(**changes) -> Regression:
    plain = Regression("gaussian", "", None, 20, 50, 4, "epochs", 2.0, 2e-3, 40, 1)
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def records() -> pl.DataFrame:
    """A whole study at a size that takes a few seconds."""
    study = lab.Study(
        "janus", tuple(janus.trials(CONFIG, 9)), janus.run, janus.group, group_size=64
    )
    rows = []
    for positions in study.groups():
        trials = [study.trials[position] for position in positions]
        for trial, own in zip(trials, janus.run(trials), strict=True):
            rows += [{"trial": lab.trial_hash(trial), **asdict(trial), **row} for row in own]
    return pl.DataFrame(rows, infer_schema_length=None)


def named(verdict, name: str):
    (check,) = [check for check in verdict.checks if check.name == name]
    return check


def test_trials_are_distinct_and_groups_share_their_data():
    trials = janus.trials(CONFIG, 3)
    assert len({lab.trial_hash(trial) for trial in trials}) == len(trials)
    groups = {}
    for trial in trials:
        groups.setdefault(janus.group(trial), []).append(trial)
    for members in groups.values():
        if isinstance(members[0], Regression):
            first, *others = (janus._regression_data(member)[0] for member in members)
            assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("order", ["epochs", "cyclic", "replacement", "full"])
@pytest.mark.parametrize("inputs", ["gaussian", "real"])
def test_the_null_space_decays_at_the_predicted_rate(order, inputs):
    batch_size = 20 if order == "full" else 7
    trial = regression(order=order, batch_size=batch_size, inputs=inputs, data="digits")
    if inputs == "gaussian":
        trial = replace(trial, data="")
    (rows,) = janus.run([trial])
    for row in rows:
        assert row["null_dimension"] >= 30
        assert row["null_ratio"] == pytest.approx(row["null_predicted"], rel=1e-10)
    assert rows[-1]["null_predicted"] == pytest.approx((1 - 2.0 * 2e-3) ** 40)


def test_initial_weights_and_inputs_come_from_different_streams():
    """From one stream the weights would lie in the inputs' span, and nothing could be forgotten."""
    inputs, _ = janus._regression_data(regression())
    projector = janus._null_projector(inputs)
    assert torch.linalg.norm(inputs @ projector) < 1e-12
    (rows,) = janus.run([regression(weight_decay=0.0)])
    assert rows[-1]["null_ratio"] == pytest.approx(1, abs=1e-12)


def test_the_law_holds_in_the_first_layer_of_a_deep_network():
    trial = Deep("digits", None, 60, 16, 8, 0.1, 2e-2, 50, 4)
    ((record,),) = janus.run([trial])
    assert record["null_dimension"] > 0
    assert record["null_ratio"] == pytest.approx((1 - 0.1 * 2e-2) ** 50, rel=1e-10)


def test_the_exact_laws_pass_on_a_small_study(records):
    verdict = janus.judge(records, CONFIG)
    for name in (
        "null-space decay rate, error",
        "decay per epoch, SGD over GD",
        "null space lost without decay",
        "null space, SGD over GD, same steps",
        "SGD's fluctuation with decay",
        "deep net, null-space rate, error",
    ):
        assert named(verdict, name).passed, name
    assert named(verdict, "decay per epoch, SGD over GD").value == pytest.approx(20)


def test_a_rate_that_depends_on_the_order_refutes_it(records):
    off = pl.when(pl.col("order") == "cyclic").then(1.01).otherwise(1.0)
    bent = records.with_columns(pl.col("null_ratio") * off)
    check = named(janus.judge(bent, CONFIG), "null-space decay rate, error")
    assert check.refuted


def test_noise_without_decay_breaks_the_control(records):
    noisy = records.with_columns(
        pl.when(pl.col("weight_decay") == 0)
        .then(1e-3)
        .otherwise("fluctuation")
        .alias("fluctuation")
    )
    verdict = janus.judge(noisy, CONFIG)
    assert not named(verdict, "SGD's fluctuation without decay").passed
    assert verdict.outcome != "supported"


def test_too_few_seeds_promise_no_verdict(records):
    assert janus.judge(records, replace(CONFIG, seeds=3)).outcome == "inconclusive"


def test_table_and_figures_can_be_drawn(records):
    assert {"null space left", "predicted"} <= set(janus.table(records, CONFIG).columns)
    names = [figure.name for figure in janus.figures(records, CONFIG)]
    assert names == ["null-space", "noise", "deep"]


@pytest.mark.parametrize(
    "knob", [{"dimension": 10}, {"batch_sizes": (40,)}, {"weight_decay": (-1.0, 1.0)}]
)
def test_a_knob_out_of_range_is_named(knob):
    with pytest.raises(ValueError, match=next(iter(knob))):
        Config(**knob)
