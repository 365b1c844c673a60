"""The claim deep-relu-limit: its verdict rule on made-up records, and its runs in miniature."""

from __future__ import annotations

import dataclasses
import math

import polars as pl
import pytest
import torch

from undertow import lab
from undertow.claims import Verdict, get
from undertow.claims.deep_relu_limit import (
    CLAIM,
    Config,
    Limit,
    Training,
    _generators,
    group,
    judge,
    run,
    trials,
)

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

CONFIG = dataclasses.replace(CLAIM.presets["small"], seeds=10)


def ideal(trial: Limit | Training) -> list[dict[str, object]]:
    """What the claim predicts, with a little spread over seeds."""
    wobble = 1e-3 * math.sin(trial.seed + 1)
    if isinstance(trial, Training):
        failing = trial.init == "he" and trial.net_depth == CONFIG.net_depth
        accuracy = (0.15 if failing else 0.97) + wobble
        return [{"diverged": False, "train_accuracy": accuracy, "test_accuracy": accuracy - 0.02}]
    slope = {
        "aligned": 1 - trial.power if trial.power > 1 else trial.scale,
        "random": 0.5 - trial.power,
        "bias": 0.5 - trial.power,
    }.get(trial.kind)
    stopped = trial.kind in ("shrinking", "mixing")
    facts = {
        "diverged": False,
        "slope": None if slope is None else slope + wobble,
        "excess": 0.6 + wobble if trial.kind == "mixed-sign" else 1e-17,
        "log_norm_ratio": -0.3 + wobble,
        "limit_ratio": 0.0 if trial.kind == "shrinking" else 0.87 + wobble,
        "off_average": 0.0 if trial.kind == "mixing" else 1.0,
        "last_ratio": 0.0 if stopped else 0.1,
    }
    shape = -1.0 if slope is None else slope
    return [{"layers": n, "doubling": float(n) ** shape, **facts} for n in (128, 256, 512)]


def frame(changes: dict[str, object] | None = None, **where: object) -> pl.DataFrame:
    """Ideal records, with some facts changed where the trial's fields are as given."""
    rows = []
    for trial in trials(CONFIG, 0):
        fields = dataclasses.asdict(trial)
        hit = changes is not None and all(fields.get(k) == v for k, v in where.items())
        rows += [fields | record | (changes if hit else {}) for record in ideal(trial)]
    return pl.DataFrame(rows, infer_schema_length=None)


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_the_prediction_is_supported() -> None:
    verdict = judge(frame(), CONFIG)
    assert verdict.outcome == "supported", failed(verdict)
    assert sum(check.control for check in verdict.checks) == 5
    assert all(not math.isnan(bound) for check in verdict.checks for bound in check.interval)


@pytest.mark.parametrize(
    ("where", "changes"),
    [
        ({"kind": "aligned", "power": 1.5}, {"slope": -0.4}),
        ({"kind": "aligned", "power": 1.0}, {"slope": -0.1}),
        ({"kind": "random", "power": 1.0}, {"slope": 0.0}),
        ({"kind": "bias", "power": 1.5}, {"slope": -1.1}),
        ({"kind": "random", "power": 2.0}, {"excess": 1e-6}),
        ({"kind": "bias", "power": 1.0}, {"log_norm_ratio": 0.1}),
        ({"kind": "mixing"}, {"last_ratio": 1e-3}),
        ({"kind": "mixing"}, {"limit_ratio": 0.0}),
        ({"kind": "mixing"}, {"off_average": 0.1}),
        ({"init": "identity-plus-noise"}, {"train_accuracy": 0.7}),
        ({"init": "identity-plus-noise"}, {"test_accuracy": 0.3}),
    ],
)
def test_evidence_against_any_part_refutes_it(
    where: dict[str, object], changes: dict[str, object]
) -> None:
    verdict = judge(frame(changes, **where), CONFIG)
    assert verdict.outcome == "refuted"
    assert len(failed(verdict)) == 1


@pytest.mark.parametrize(
    ("where", "changes"),
    [
        ({"kind": "random", "power": 0.0}, {"slope": -0.2}),
        ({"kind": "random", "power": 0.4}, {"slope": -0.1}),
        ({"kind": "mixed-sign"}, {"excess": 0.0}),
        ({"init": "he", "net_depth": CONFIG.net_depth}, {"train_accuracy": 0.8}),
        ({"init": "he", "net_depth": CONFIG.shallow_depth}, {"train_accuracy": 0.2}),
    ],
)
def test_a_broken_control_is_inconclusive_even_beside_a_refutation(
    where: dict[str, object], changes: dict[str, object]
) -> None:
    records = frame(changes, **where)
    assert judge(records, CONFIG).outcome == "inconclusive"
    wrong = pl.when(kind="aligned", power=1.5).then(-0.4).otherwise("slope").alias("slope")
    assert judge(records.with_columns(wrong), CONFIG).outcome == "inconclusive"


@pytest.mark.parametrize("changes", [{"excess": 1e-9}, {"excess": math.nan}])
def test_one_violation_in_one_network_refutes_it(changes: dict[str, object]) -> None:
    """A mean over seeds would hide it."""
    verdict = judge(frame(changes, kind="random", power=2.0, seed=4), CONFIG)
    assert verdict.outcome == "refuted"
    assert failed(verdict) == ["one-step bound violated"]


def test_a_rate_is_not_read_off_the_few_that_survived() -> None:
    records = frame()
    few = (pl.col("kind") == "random") & (pl.col("power") == 1.0) & (pl.col("seed") > 5)
    died = records.with_columns(pl.when(few).then(None).otherwise("slope").alias("slope"))
    assert judge(died, CONFIG).outcome == "inconclusive"


def test_networks_that_overflowed_are_left_out() -> None:
    lost = {"diverged": True, "slope": None, "excess": math.nan, "log_norm_ratio": math.nan}
    verdict = judge(frame(lost, kind="random", power=0.0), CONFIG)
    assert verdict.outcome == "inconclusive"
    assert failed(verdict) == ["random perturbations n^-0, slope of d(n)"]


def test_a_learning_rate_that_was_not_run_promises_nothing() -> None:
    """He's initialisation might have trained at it."""
    missing = (pl.col("init") == "he") & (pl.col("net_depth") == CONFIG.net_depth)
    missing &= pl.col("lr") == CONFIG.lrs[-1]
    kept = frame().filter(~missing.fill_null(value=False))
    assert failed(judge(kept, CONFIG)) == []
    assert judge(kept, CONFIG).outcome == "inconclusive"


def test_networks_that_died_are_left_out_and_counted() -> None:
    records = frame({"slope": None}, kind="random", power=1.0, seed=3)
    verdict = judge(records, CONFIG)
    assert verdict.outcome == "supported"
    assert verdict.summary.startswith("1 of ")


def test_he_is_judged_at_its_best_learning_rate() -> None:
    better = {"train_accuracy": 0.6, "test_accuracy": 0.55}
    records = frame(better, init="he", net_depth=CONFIG.net_depth, lr=CONFIG.lrs[1])
    assert judge(records, CONFIG).outcome == "inconclusive"


def test_too_few_seeds_promise_nothing() -> None:
    few = dataclasses.replace(CONFIG, net_seeds=2)
    records = frame().filter((pl.col("seed") < 2) | pl.col("init").is_null())
    assert judge(records, few).outcome == "inconclusive"


@pytest.mark.parametrize("preset", ["smoke", "small", "paper"])
def test_trials_are_distinct_and_seeds_apart(preset: str) -> None:
    config = CLAIM.presets[preset]
    first = [lab.trial_hash(trial) for trial in trials(config, 0)]
    second = [lab.trial_hash(trial) for trial in trials(config, 1)]
    assert len(set(first + second)) == len(first + second)


def test_the_registry_knows_it() -> None:
    assert get("deep-relu-limit") is CLAIM
    assert set(CLAIM.presets) == {"smoke", "small", "paper"}


def limit(kind: str, power: float, seed: int = 100, depth: int = 1024) -> Limit:
    return Limit(kind, power, 0.5, 6, depth, seed)


def test_aligned_perturbations_follow_their_closed_form() -> None:
    """Without ReLU cuts and at vanishing biases N_n is x times the product of 1 + c i^-p."""
    (rows,) = run([limit("aligned", 3.0)])
    growth = torch.cumprod(1 + 0.5 * torch.arange(1, 1025, dtype=torch.float64) ** -3.0, 0)
    for row in rows:
        n = row["layers"]
        expected = float((growth[2 * n - 1] - growth[n - 1]) / growth[-1]) * row["limit_ratio"]
        start = rows[-1]["doubling"] / rows[-1]["last_ratio"]
        assert row["doubling"] / start == pytest.approx(expected, rel=0.05)
    assert rows[0]["slope"] == pytest.approx(-2, abs=0.05)


def test_the_counterexamples_stop_without_approaching_the_identity() -> None:
    shrinking, mixing = run([limit("shrinking", 0.0), limit("mixing", 0.0)])
    assert shrinking[0]["limit_ratio"] < 1e-100
    x = torch.rand(6, generator=_generators(100)[0], dtype=torch.float64)
    expected = float(x.mean() * 6**0.5 / x.norm())
    assert mixing[0]["limit_ratio"] == pytest.approx(expected)
    assert mixing[0]["slope"] is None
    assert mixing[0]["off_average"] < 1e-12 < shrinking[0]["off_average"]
    assert mixing[-1]["last_ratio"] < 1e-12


def test_a_network_does_not_depend_on_its_group() -> None:
    crowd = [
        limit("random", 1.0, 101),
        limit("bias", 1.0, 100),
        limit("random", 1.0, 100),
        limit("mixed-sign", 0.0, 101),
    ]
    assert len({group(trial) for trial in crowd}) == 1
    alone = run([crowd[2]])[0]
    together = run(crowd)
    for row, other in zip(alone, together[2], strict=True):
        assert row["doubling"] == pytest.approx(other["doubling"], rel=1e-9)
    assert together[0][0]["excess"] <= 1e-12 < together[3][0]["excess"]


def test_a_network_that_overflows_says_so() -> None:
    """Perturbations that do not fall, of a size at which 1,024 layers leave float64's range."""
    (rows,) = run([dataclasses.replace(limit("random", 0.0), scale=50.0)])
    assert all(row["diverged"] for row in rows)
    assert rows[0]["slope"] is None


def test_a_network_whose_square_overflows_is_measured_all_the_same() -> None:
    """Constant perturbations at the depth of the paper preset grow beyond 1e154."""
    (rows,) = run([dataclasses.replace(limit("random", 0.0), width=20, scale=4.0)])
    assert 1e154 < rows[-1]["doubling"] < math.inf
    assert not rows[0]["diverged"]
    assert rows[0]["slope"] > 100
    assert rows[0]["excess"] <= 1e-12


def test_a_training_group_in_miniature() -> None:
    config = dataclasses.replace(
        CLAIM.presets["smoke"], net_depth=4, net_width=8, steps=5, lrs=(0.01, 1e30), net_seeds=2
    )
    tiny = [t for t in trials(config, 100) if isinstance(t, Training) and t.init != "he"]
    assert len({group(trial) for trial in tiny}) == 1
    found = [records[0] for records in run(tiny)]
    assert all(0 <= record["train_accuracy"] <= 1 for record in found)
    assert [record["diverged"] for record in found] == [False, False, True, True]
    assert all(r["train_accuracy"] == 0 for r in found if r["diverged"])


def test_bad_knobs_say_what_would_do() -> None:
    with pytest.raises(ValueError, match="depth must be at least 512, got 100"):
        Config(depth=100)
    with pytest.raises(ValueError, match=r"random_powers must all exceed 0\.5"):
        Config(random_powers=(0.5,))
    with pytest.raises(ValueError, match="lrs must be positive"):
        Config(lrs=())
    with pytest.raises(ValueError, match="random_powers must not hold a value twice"):
        Config(random_powers=(1.0, 1.0))
    for scale in (0.0, -0.5, math.inf):
        with pytest.raises(ValueError, match="scale must be positive"):
            Config(scale=scale)
    for name in ("width", "seeds", "net_seeds", "steps", "shallow_depth"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            dataclasses.replace(CLAIM.presets["small"], **{name: 0})
    with pytest.raises(ValueError, match="shallow_depth must be below net_depth = 3"):
        Config(net_depth=3)


def test_table_and_figures_are_made() -> None:
    records = frame()
    table = CLAIM.table(records, CONFIG)
    assert table.filter(kind="aligned", power=2.0)["predicted"].item() == -1.0
    assert table.filter(kind="random", power=0.4)["predicted"].item() is None
    assert [figure.name for figure in CLAIM.figures(records, CONFIG)] == ["rates", "training"]
