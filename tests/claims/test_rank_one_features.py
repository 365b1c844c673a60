"""The claim rank-one-features: its steps against autograd, its verdict rule on made-up records."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import polars as pl
import pytest
import torch

from undertow import lab, predict
from undertow.claims import Verdict, get
from undertow.claims.rank_one_features import (
    _ACTIVATIONS,
    _SIGN_POINTS,
    _SLOPES,
    CLAIM,
    Config,
    Net,
    Toy,
    _predict,
    _settled,
    _start,
    _trace,
    _train,
    figures,
    group,
    judge,
    run,
    table,
    trials,
)

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

CONFIG = replace(CLAIM.presets["small"], seeds=8)
TOY = Toy(
    part="collapse",
    activation="cubic",
    inputs="independent",
    noise="label",
    target=None,
    spread=None,
    lr=0.005,
    steps=16,
    samples=3,
    features=5,
    neurons=4,
    noise_std=1.0,
    seed=100,
)


def network_loss(theta, inputs, outputs, phi):
    return ((phi(theta @ inputs.mT)[0].sum(0) - outputs) ** 2).sum()


@pytest.mark.parametrize("activation", _ACTIVATIONS)
@pytest.mark.parametrize("point", [-1.3, 0.0, 0.7])
def test_the_slopes_that_plan_trials_are_those_of_the_runs(activation: str, point: float) -> None:
    slope = _ACTIVATIONS[activation](torch.tensor(point, dtype=torch.float64))[1]
    assert _SLOPES[activation](point) == pytest.approx(float(slope))


@pytest.mark.parametrize("activation", _ACTIVATIONS)
def test_values_and_slopes_belong_together(activation: str) -> None:
    phi = _ACTIVATIONS[activation]
    z = torch.linspace(-2, 2, 20, dtype=torch.float64)
    step = 1e-5
    central = (phi(z + step)[0] - phi(z - step)[0]) / (2 * step)
    torch.testing.assert_close(phi(z)[1], central, rtol=1e-8, atol=1e-8)


def test_named_slopes_are_those_of_the_prediction() -> None:
    """The signs of the trials come from undertow.predict, their steps from here: one phi."""
    for activation, z in _SIGN_POINTS:
        point = torch.tensor([[z - 1e-3, z, z + 1e-3]], dtype=torch.float64)
        slopes = _ACTIVATIONS[activation](point)[1][0]
        third = float(slopes[0] - 2 * slopes[1] + slopes[2]) / 1e-6
        rate = predict.rank_one_rate(0.01, 1.0, activation=activation, preactivation=z)
        assert rate == pytest.approx(2e-4 * float(slopes[1]) * third, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("activation", ["cubic", "tanh", "gelu"])
def test_steps_in_preactivations_are_sgd_on_the_weights(activation: str) -> None:
    phi, generator = _ACTIVATIONS[activation], torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    theta = 0.3 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    outputs = torch.randn(3, generator=generator, dtype=torch.float64)
    noise = torch.randn(6, 1, 1, 3, generator=generator, dtype=torch.float64)
    z, gram = (theta @ inputs.mT)[None], inputs @ inputs.mT
    _train(z, noise, 2 * 0.01 * gram[None], outputs[None, None], phi, isotropic=False)
    start = theta
    for drawn in noise[:, 0, 0]:
        own = theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network_loss(own, inputs, outputs + drawn, phi), own)
        theta = theta - 0.01 * gradient
    torch.testing.assert_close(z[0], theta @ inputs.mT, rtol=1e-12, atol=1e-12)
    beside_data = torch.eye(5).double() - torch.linalg.pinv(inputs) @ inputs
    torch.testing.assert_close(theta @ beside_data, start @ beside_data)


def test_the_trace_is_that_of_the_hessian_at_zero_loss() -> None:
    phi, generator = _ACTIVATIONS["cubic"], torch.Generator().manual_seed(1)
    inputs = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    theta = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    outputs = phi(theta @ inputs.mT)[0].sum(0)
    hessian = torch.autograd.functional.hessian(
        lambda flat: network_loss(flat.view(4, 5), inputs, outputs, phi), theta.flatten()
    )
    found = _trace((theta @ inputs.mT)[None], (inputs @ inputs.mT)[None], phi)
    assert float(found) == pytest.approx(float(hessian.trace()))


@pytest.mark.parametrize("inputs", ["orthonormal", "independent"])
def test_settling_ends_at_zero_loss_without_changing_who_is_apart(inputs: str) -> None:
    """For orthonormal inputs the flow keeps differences of u = 2 log(1 + z / 2), z + z^2 / 4."""
    toy = replace(TOY, activation="quadratic", inputs=inputs, spread=0.1)
    z, gram, goal = _start(toy)
    phi = _ACTIVATIONS["quadratic"]
    outputs = toy.neurons * phi(goal)[0] + 0.5
    at_rest = _settled(z[None], gram[None], outputs[None], phi)[0]
    torch.testing.assert_close(phi(at_rest)[0].sum(0), outputs[0], rtol=1e-9, atol=1e-9)
    if inputs == "orthonormal":
        before, after = (torch.log1p(one / 2) for one in (z, at_rest))
        torch.testing.assert_close(
            before - before.mean(0), after - after.mean(0), rtol=0.01, atol=1e-3
        )


def test_rates_of_correlated_inputs_are_eigenvalues_slowest_first() -> None:
    _, gram, goal = _start(TOY)
    found = _predict(TOY, gram, goal)
    rates = predict.rank_one_rate(
        TOY.lr, TOY.noise_std, activation="cubic", preactivation=goal[0].numpy()
    )
    matrix = gram.numpy() @ np.diag(rates)
    for mode in found.modes.numpy():
        moved = mode @ matrix
        np.testing.assert_allclose(moved, mode * (moved @ mode) / (mode @ mode), atol=1e-15)
    slowest = np.linalg.eigvals(matrix).real.min()
    assert found.facts["predicted_slowest"] == pytest.approx(slowest)
    assert found.facts["predicted"] == pytest.approx(np.trace(matrix) / 3)
    assert found.facts["predicted_at_lr"] is None


def test_starts_are_what_they_say() -> None:
    z, gram, goal = _start(replace(TOY, inputs="orthonormal", spread=0.01))
    torch.testing.assert_close(gram, torch.eye(3).double(), rtol=0, atol=1e-12)
    assert (z - goal).abs().max() < 0.1
    assert ((goal.abs() >= 0.3) & (goal.abs() <= 0.8)).all()
    z, gram, goal = _start(replace(TOY, inputs="crowded", samples=9))
    assert torch.linalg.matrix_rank(torch.cat([z, goal])) == 5
    z, gram, goal = _start(replace(TOY, inputs="digits", features=64, target=0.5))
    torch.testing.assert_close(gram.diagonal(), torch.ones(3).double())
    assert (goal.abs() == 0.5).all()


def test_a_network_does_not_depend_on_its_group() -> None:
    crowd = [
        replace(TOY, seed=101),
        TOY,
        replace(TOY, inputs="orthonormal", lr=0.01),
        replace(TOY, noise="none"),
    ]
    assert len({group(trial) for trial in crowd}) == 1
    together = run(crowd)
    for own, other in zip(run([TOY])[0], together[1], strict=True):
        assert own["step"] == other["step"]
        assert own["rank_ratio"] == pytest.approx(other["rank_ratio"], rel=1e-9)
    still = together[3]
    assert still[0]["log_spread"] == pytest.approx(still[-1]["log_spread"], abs=1e-9)
    assert together[1][0]["log_spread"] != pytest.approx(together[1][-1]["log_spread"], abs=1e-6)


def test_a_run_that_blows_up_is_recorded_and_leaves_the_others() -> None:
    calm, wild = run([TOY, replace(TOY, lr=0.1)])
    assert wild[-1]["diverged"]
    assert wild[-1]["rank_ratio"] is None
    assert not calm[-1]["diverged"]


def test_ordinary_networks_in_miniature() -> None:
    net = Net("net", "tanh", "digits", "label", 0.1, 16, 20, 4, 0.5, seed=100)
    assert group(net) == group(replace(net, seed=101)) != group(replace(net, noise="none"))
    first, second = run([net, replace(net, seed=101)])
    assert [row["step"] for row in first] == [2 * index for index in range(9)]
    assert first[-1]["rank_ratio"] != second[-1]["rank_ratio"]
    assert all(row["stable_rank"] >= 1 and row["trace"] > 0 for row in (*first, *second))


def ideal(trial: Toy | Net) -> list[dict[str, object]]:
    """What the claim predicts, at the start and at the end, with a little spread over seeds."""
    wobble = 1 + 1e-3 * (trial.seed % 7)
    if isinstance(trial, Net):
        facts = {"diverged": False, "rank_ratio": 0.3, "stable_rank": 1.1, "trace": 5.0}
        return [{"step": step, **facts} for step in (0, trial.steps)]
    _, gram, goal = _start(trial)
    facts = _predict(trial, gram, goal).facts
    rate = facts["predicted_at_lr"] or facts["predicted"]
    if trial.noise == "isotropic":
        rate = -1 / trial.steps
    slowest = facts["predicted_slowest"]
    moves = trial.part != "collapse" or trial.noise == "label"
    last = 0.01 if trial.part == "collapse" and moves else 0.7
    return [
        {
            "step": step,
            "diverged": False,
            "rank_ratio": 0.7 * wobble if step == 0 else last * wobble,
            "stable_rank": 1.5 if step == 0 else 1.0,
            "trace": 2.0 if step == 0 else 1.001,
            "least_trace": 1.0,
            "log_spread": -(rate or 0.0) * wobble * step,
            "log_spread_slowest": -(slowest or 0.0) * wobble * step,
            **facts,
        }
        for step in (0, trial.steps)
    ]


@pytest.fixture(scope="module")
def records() -> pl.DataFrame:
    rows = [asdict(trial) | record for trial in trials(CONFIG, 0) for record in ideal(trial)]
    return pl.DataFrame(rows, infer_schema_length=None)


def changed(records: pl.DataFrame, column: str, value: pl.Expr, **where: object) -> pl.DataFrame:
    hit = pl.all_horizontal(pl.col(key) == given for key, given in where.items())
    late = hit & (pl.col("step") > 0)
    return records.with_columns(pl.when(late).then(value).otherwise(pl.col(column)).alias(column))


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_the_prediction_is_supported(records: pl.DataFrame) -> None:
    verdict = judge(records, CONFIG)
    assert verdict.outcome == "supported", failed(verdict)
    assert sum(check.control for check in verdict.checks) == 4


SPREAD = pl.col("log_spread")


@pytest.mark.parametrize(
    ("column", "value", "where"),
    [
        ("rank_ratio", pl.lit(0.3), {"part": "collapse", "inputs": "independent"}),
        ("trace", pl.lit(1.1), {"part": "collapse", "inputs": "orthonormal", "noise": "label"}),
        ("log_spread", 1.3 * SPREAD, {"part": "rate", "inputs": "orthonormal"}),
        (
            "log_spread_slowest",
            0.5 * pl.col("log_spread_slowest"),
            {"part": "rate", "inputs": "independent"},
        ),
        ("log_spread", 1.1 * SPREAD, {"part": "rate", "lr": max(CONFIG.lrs)}),
        ("log_spread", -1.0 * SPREAD, {"part": "sign", "activation": "tanh", "target": 0.3}),
        ("log_spread", -1.0 * SPREAD, {"part": "sign", "activation": "gelu"}),
        ("log_spread", 1.3 * SPREAD, {"part": "sign", "activation": "softplus", "target": 1.0}),
    ],
)
def test_evidence_against_any_part_refutes_it(
    records: pl.DataFrame, column: str, value: pl.Expr, where: dict[str, object]
) -> None:
    assert judge(changed(records, column, value, **where), CONFIG).outcome == "refuted"


@pytest.mark.parametrize(
    ("column", "value", "where"),
    [
        ("rank_ratio", pl.lit(0.1), {"part": "collapse", "noise": "none"}),
        ("log_spread", pl.lit(-0.01), {"part": "collapse", "noise": "none"}),
        ("log_spread", pl.lit(-0.5), {"noise": "isotropic"}),
        ("log_spread", pl.lit(-0.5), {"activation": "quadratic"}),
    ],
)
def test_a_broken_control_is_inconclusive_even_beside_a_refutation(
    records: pl.DataFrame, column: str, value: pl.Expr, where: dict[str, object]
) -> None:
    broken = changed(records, column, value, **where)
    assert judge(broken, CONFIG).outcome == "inconclusive"
    far = {"part": "collapse", "noise": "label"}
    assert judge(changed(broken, "rank_ratio", pl.lit(0.5), **far), CONFIG).outcome == (
        "inconclusive"
    )


def test_what_lies_beyond_decides_nothing(records: pl.DataFrame) -> None:
    lost = changed(records, "diverged", pl.lit(True), part="beyond")
    spoiled = changed(lost, "rank_ratio", pl.lit(0.9), part="net")
    verdict = judge(spoiled, CONFIG)
    assert verdict.outcome == "supported"
    assert verdict.summary.startswith("0 of ")


def test_runs_that_diverged_are_left_out_and_counted(records: pl.DataFrame) -> None:
    lost = changed(records, "diverged", pl.lit(True), part="collapse", noise="label", seed=3)
    verdict = judge(lost, CONFIG)
    assert verdict.outcome == "supported"
    assert verdict.summary.startswith("2 of ")


def test_a_share_is_one_of_seeds_and_not_of_their_runs(records: pl.DataFrame) -> None:
    wrong = changed(records, "log_spread", pl.lit(9.0), part="sign", activation="cubic", seed=2)
    name = "the other signs of phi' phi"
    (check,) = [one for one in judge(wrong, CONFIG).checks if one.name.startswith(name)]
    expected = lab.proportion(CONFIG.seeds - 1, CONFIG.seeds)
    assert (check.value, check.interval) == (expected.value, expected.interval)


def test_few_seeds_or_steps_promise_nothing(records: pl.DataFrame) -> None:
    for few in (replace(CONFIG, seeds=7), replace(CONFIG, collapse_steps=1_000)):
        assert judge(records, few).outcome == "inconclusive"


@pytest.mark.parametrize("preset", ["smoke", "small", "paper"])
def test_trials_are_distinct_and_seeds_apart(preset: str) -> None:
    config = CLAIM.presets[preset]
    first = [lab.trial_hash(trial) for trial in trials(config, 0)]
    second = [lab.trial_hash(trial) for trial in trials(config, 1)]
    assert len(set(first + second)) == len(first + second)


def test_what_decides_nothing_can_be_left_out() -> None:
    bare = trials(replace(CONFIG, digits=0, net_steps=0), 0)
    assert not [trial for trial in bare if trial.inputs == "digits"]


def test_table_and_figures_are_made(records: pl.DataFrame) -> None:
    made = table(records, CONFIG)
    row = made.filter(part="sign", activation="tanh", target=0.3)
    assert row["predicted"].item() < 0
    assert made.filter(part="net").height == 6
    names = [figure.name for figure in figures(records, CONFIG)]
    assert names == ["sign", "rate", "collapse", "net"]


def test_bad_knobs_say_what_would_do() -> None:
    with pytest.raises(ValueError, match="samples must lie between 2 and features = 8, got 9"):
        Config(samples=9)
    with pytest.raises(ValueError, match="neurons must be at least 2"):
        Config(neurons=1)
    with pytest.raises(ValueError, match="noise_std must be positive"):
        Config(noise_std=0.0)
    with pytest.raises(ValueError, match="lrs must be two or more"):
        Config(lrs=(0.01,))
    with pytest.raises(ValueError, match="decay must be positive, got 0"):
        Config(decay=0.0)
    with pytest.raises(ValueError, match="sign_steps must be at least 160, got 10"):
        Config(sign_steps=10)
    with pytest.raises(ValueError, match="seeds must be at least 2, got 1"):
        Config(seeds=1)


def test_the_registry_knows_it() -> None:
    assert get("rank-one-features") is CLAIM
