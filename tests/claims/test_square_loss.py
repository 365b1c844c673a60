"""The claim square-loss: its flow against autograd and a closed form, and its verdict rule."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import pairwise

import polars as pl
import pytest
import torch

from undertow import lab
from undertow.claims import square_loss
from undertow.claims.square_loss import Config, Flow, Norms, Toeplitz

CONFIG = Config(
    samples=12,
    width=10,
    initial_rho=(1.0, 20.0, 100.0),
    rho_decay=(0.0, 3e-3, 1e-2),
    horizon=4.0,
    norms_steps=200,
    collapse_per_class=3,
    collapse_width=16,
    collapse_steps=60,
    seeds=8,
)


def flow(**changes) -> Flow:
    plain = Flow("digits", None, None, (3, 8), 16, 12, 1.0, 1e-2, 300.0, False, "scaled", 5)
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def records() -> pl.DataFrame:
    """A whole study at a size that takes a few seconds."""
    study = lab.Study(
        "square-loss",
        tuple(square_loss.trials(CONFIG, 9)),
        square_loss.run,
        square_loss.group,
        group_size=64,
    )
    rows = []
    for positions in study.groups():
        trials = [study.trials[position] for position in positions]
        for trial, own in zip(trials, square_loss.run(trials), strict=True):
            rows += [{"trial": lab.trial_hash(trial), **asdict(trial), **row} for row in own]
    return pl.DataFrame(rows, infer_schema_length=None, strict=False)


def named(verdict, name: str):
    (check,) = [check for check in verdict.checks if name in check.name]
    return check


def random_layers(seed: int, sizes=(7, 6, 5, 1), members=3):
    generator = torch.Generator().manual_seed(seed)
    layers = [
        torch.randn(members, b, a, generator=generator, dtype=torch.float64)
        for a, b in pairwise(sizes)
    ]
    inputs = torch.randn(members, 4, sizes[0], generator=generator, dtype=torch.float64)
    return square_loss._unit(layers), inputs


def outputs(inputs, layers):
    """One member's f, of layers made unit; what autograd differentiates."""
    hidden = inputs
    for layer in layers[:-1]:
        hidden = (hidden @ (layer / layer.norm()).T).relu()
    return (hidden @ (layers[-1] / layers[-1].norm()).T)[:, 0]


def test_directions_are_the_gradient_on_the_product_of_spheres():
    layers, inputs = random_layers(0)
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    now = square_loss._forward(inputs, layers)
    found = square_loss._directions(now, layers, weights)
    for e in range(3):
        own = [layer[e].clone().requires_grad_() for layer in layers]
        f = outputs(inputs[e], own)
        assert torch.allclose(now.f[e], f, atol=1e-14)
        expected = torch.autograd.grad((weights[e] * f).sum(), own)
        for direction, gradient in zip(found, expected, strict=True):
            assert torch.allclose(direction[e], gradient, atol=1e-13)


def test_the_speed_bound_is_the_trace_of_the_dense_tangent_kernel():
    layers, inputs = random_layers(2)
    bound = square_loss._forward(inputs, layers).speed_bound()
    for e in range(3):
        own = tuple(layer[e] for layer in layers)
        pieces = torch.autograd.functional.jacobian(lambda *w, x=inputs[e]: outputs(x, w), own)
        jacobian = torch.cat([piece.flatten(1) for piece in pieces], dim=1)
        kernel = jacobian @ jacobian.T / len(jacobian)
        assert float(bound[e]) == pytest.approx(float(kernel.trace()), rel=1e-12)
        assert float(bound[e]) >= float(torch.linalg.eigvalsh(kernel)[-1])


@pytest.mark.parametrize("speed", ["scaled", "own"])
def test_two_opposite_points_have_an_equilibrium_in_closed_form(monkeypatch, speed):
    """Two paths, one for x and one for -x, share the norm of each layer, so y f is 2^(-3/2)."""
    point = torch.zeros(16, dtype=torch.float64)
    point[0] = 1
    inputs = torch.stack([point, -point]).expand(4, 2, 16)
    labels = torch.tensor([[1.0, -1.0]], dtype=torch.float64).expand(4, 2)
    monkeypatch.setattr(square_loss, "_two_classes", lambda trials: (inputs, labels))
    trials = [
        flow(initial_rho=rho, rho_decay=0.04, time=500.0, speed=speed, seed=3, width=32)
        for rho in (1.0, 1.5, 2.0, 4.0)
    ]
    for rows in square_loss.run(trials):
        assert rows[-1]["margin"] == pytest.approx(2**-1.5, rel=1e-2)
        assert rows[-1]["rho"] == pytest.approx(2**-1.5 / (2**-3 + 0.04), rel=1e-2)


def test_a_flow_does_not_depend_on_those_that_run_beside_it():
    trials = [flow(), flow(rho_decay=0.0, time=100.0), flow(initial_rho=20.0, seed=6)]
    together = square_loss.run(trials)
    for trial, rows in zip(trials, together, strict=True):
        (alone,) = square_loss.run([trial])
        assert [row["at"] for row in rows] == [row["at"] for row in alone]
        assert rows[-1]["rho"] == pytest.approx(alone[-1]["rho"], rel=1e-6)


def test_readings_are_taken_at_their_times_and_the_last_is_final():
    (rows,) = square_loss.run([flow(time=50.0)])
    assert [row["at"] for row in rows] == [50.0 * f for f in square_loss._READINGS]
    assert [row["final"] for row in rows] == [False] * (len(rows) - 1) + [True]
    assert rows[-1]["moved"] == pytest.approx(abs(math.log(rows[-1]["rho"] / rows[-2]["rho"])))


def test_a_flow_that_runs_out_of_steps_is_left_out(monkeypatch):
    monkeypatch.setattr(square_loss, "_MAX_STEPS", 3)
    (rows,) = square_loss.run([flow()])
    assert rows[-1] == {"final": True, "diverged": True, "steps_taken": 3}


def test_shuffling_changes_labels_and_not_images():
    inputs, labels = square_loss._two_classes([flow(), flow(shuffled=True)])
    assert torch.equal(inputs[0], inputs[1])
    assert not torch.equal(labels[0], labels[1])
    assert labels.sum(1).tolist() == [0, 0]


def test_trials_are_distinct_and_their_groups_are_of_one_shape():
    trials = square_loss.trials(CONFIG, 3)
    assert len({lab.trial_hash(trial) for trial in trials}) == len(trials)
    groups = {}
    for trial in trials:
        groups.setdefault(square_loss.group(trial), []).append(trial)
    for members in groups.values():
        assert len({type(member) for member in members}) == 1
        if isinstance(members[0], Flow):
            assert len({member.initial_rho for member in members}) == 1


def test_trained_layers_are_equal_at_the_derived_equilibrium():
    source = ("digits", None, None, (3, 8), 16, 12)
    (decayed,), (free,) = square_loss.run(
        [Norms(*source, 3e-2, 6_000, 4), Norms(*source, 0.0, 6_000, 4)]
    )
    assert decayed["norm_spread"] < 0.02
    assert free["norm_spread"] > 0.1
    assert decayed["rho"] == pytest.approx(decayed["equilibrium"], rel=1e-2)


def test_the_written_out_convolution_has_the_measured_toeplitz_norm():
    ((plain,), (padded,)) = square_loss.run([Toeplitz(0, 1), Toeplitz(1, 1)])
    assert plain["positions"] == 36
    assert plain["ratio"] == pytest.approx(1, abs=1e-12)
    assert padded["ratio"] < 0.99
    for row in (plain, padded):
        assert row["measured_ratio"] == pytest.approx(row["ratio"], abs=1e-12)


def test_global_random_state_is_left_alone(global_rng_untouched):
    square_loss.run([flow(time=5.0)])
    square_loss.run([Toeplitz(0, 1)])


def test_the_laws_pass_on_a_small_study(records):
    verdict = square_loss.judge(records, CONFIG)
    for name in (
        "no decay over lambda",
        "log-gap of rho from 100 and 1,",
        "kept without decay",
        "V at its own speed",
        "positions",
        "zero padding",
    ):
        assert named(verdict, name).passed, named(verdict, name)


def test_a_rho_that_stays_with_decay_refutes_it(records):
    stuck = records.with_columns(
        pl.when(pl.col("margin_cv").is_not_null() & (pl.col("rho_decay") > 0))
        .then(pl.col("initial_rho"))
        .otherwise("rho")
        .alias("rho")
    )
    verdict = square_loss.judge(stuck, CONFIG)
    assert named(verdict, "log-gap of rho from 100 and 1,").refuted


def test_a_rho_that_shrinks_without_decay_breaks_the_control(records):
    shrunk = records.with_columns(
        pl.when(pl.col("rho_decay") == 0).then(10.0).otherwise("rho").alias("rho")
    )
    verdict = square_loss.judge(shrunk, CONFIG)
    assert not named(verdict, "kept without decay").passed
    assert verdict.outcome != "supported"


def test_an_equilibrium_that_is_off_is_refuted(records):
    off = records.with_columns(pl.col("equilibrium") * 1.1)
    verdict = square_loss.judge(off, CONFIG)
    assert named(verdict, "rho against mu").refuted
    assert named(verdict, "trained networks against equilibrium").refuted


def test_a_spread_that_falls_only_because_the_fit_begins_is_not_read(records):
    first = (pl.col("fraction") == square_loss._READINGS[0]) & pl.col("margin_cv").is_not_null()
    unfit = records.with_columns(pl.when(first).then(0.6).otherwise("fitted").alias("fitted"))
    check = named(square_loss.judge(unfit, CONFIG), "spread of the margins, end over early")
    assert math.isnan(check.value)
    assert not check.passed


def test_nets_that_have_not_fitted_are_no_evidence_of_collapse_or_equal_norms(records):
    dead = records.with_columns(
        pl.when(pl.col("nc1").is_not_null()).then(0.5).otherwise("accuracy").alias("accuracy"),
        pl.when(pl.col("norm_spread").is_not_null()).then(0.5).otherwise("fitted").alias("fitted"),
    )
    verdict = square_loss.judge(dead, CONFIG)
    for name in ("NC1", "NC3, end", "NC4", "squared layer norms", "trained networks against"):
        check = named(verdict, name)
        assert not check.passed, check
        assert not check.refuted, check


def test_a_ratio_unknown_in_one_seed_is_unknown():
    first, second = {1: 1.0, 2: 1.0, 3: 1.0}, {1: 2.0, 2: 2.0, 3: math.nan}
    assert math.isnan(square_loss._ratio(first, second).value)
    assert math.isnan(square_loss._ratio(second | {3: 0.0}, first).value)
    assert square_loss._ratio(first, second | {3: 2.0}).value == pytest.approx(0.5)


def test_flows_that_never_come_to_rest_promise_no_verdict(records, monkeypatch):
    """Every check made to pass, so that only what is promised can differ."""
    monkeypatch.setattr(square_loss, "_flow_checks", lambda flows, config: [])
    for kind in ("_norm_checks", "_collapse_checks"):
        monkeypatch.setattr(square_loss, kind, lambda part, config: [])
    resting = records.with_columns(moved=pl.lit(1e-4), diverged=pl.lit(False))
    assert square_loss.judge(resting, CONFIG).outcome == "supported"
    moving = resting.with_columns(moved=pl.lit(0.5))
    assert square_loss.judge(moving, CONFIG).outcome == "inconclusive"
    some = resting.filter(pl.col("trial").rank("dense") > 0.2 * pl.col("trial").n_unique())
    assert square_loss.judge(some, CONFIG).outcome == "inconclusive"


def test_too_few_seeds_promise_no_verdict(records):
    assert square_loss.judge(records, replace(CONFIG, seeds=3)).outcome == "inconclusive"


@pytest.mark.parametrize("kind", ["margin_cv", "norm_spread", "nc1", "ratio"])
def test_a_kind_of_trial_that_is_missing_leaves_the_rest(records, kind):
    rest = records.filter(pl.col(kind).is_null())
    verdict = square_loss.judge(rest, CONFIG)
    assert verdict.outcome != "supported"
    assert verdict.checks
    assert len(square_loss.figures(rest, CONFIG)) < 5
    square_loss.table(rest, CONFIG)


def test_nothing_to_draw_gives_no_figure(records):
    lost = records.with_columns(diverged=pl.lit(True))
    assert square_loss.figures(lost, CONFIG) == []
    assert square_loss.judge(lost, CONFIG).outcome == "inconclusive"


def test_table_and_figures_can_be_drawn(records):
    assert {"lambda", "rho at start", "rho"} <= set(square_loss.table(records, CONFIG).columns)
    names = [figure.name for figure in square_loss.figures(records, CONFIG)]
    assert names == ["rho", "margins", "layer-norms", "collapse"]


@pytest.mark.parametrize(
    "knob",
    [
        {"initial_rho": (5.0,)},
        {"initial_rho": (0.5, 5.0)},
        {"rho_decay": (1e-4, 1e-3)},
        {"rho_decay": (0.0,)},
        {"samples": 7},
        {"classes": (3, 3)},
        {"horizon": 0.0},
        {"norms_decay": math.inf},
        {"width": 0},
        {"seeds": 0},
        {"collapse_per_class": 1},
        {"collapse_steps": 5},
    ],
)
def test_a_knob_out_of_range_is_named(knob):
    with pytest.raises(ValueError, match=next(iter(knob))):
        Config(**knob)


def test_more_images_than_there_are_says_what_to_lower():
    with pytest.raises(ValueError, match="lower samples"):
        square_loss.run([flow(samples=1000)])
