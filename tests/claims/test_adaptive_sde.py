"""The claim adaptive-sde: oscillator, scaled runs, and its verdict rule on made-up records."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from undertow import lab
from undertow.claims import _noisy_oscillator, adaptive_sde
from undertow.claims.adaptive_sde import Config, Limit, Oscillator, Run

CONFIG = Config(
    levels=(1, 2, 4),
    paths=2**10,
    blocks=6,
    limit_levels=(1, 2, 4),
    inits=6,
    samples=256,
    epochs=4,
    factors=(4, 16),
    text_samples=64,
    text_epochs=1,
    seeds=12,
    text_seeds=6,
)
TRIALS = adaptive_sde.trials(CONFIG, 3)


def named(verdict, name: str):
    (check,) = [check for check in verdict.checks if name in check.name]
    return check


# --- trials ---------------------------------------------------------------------------------


def test_trials_are_distinct_and_groups_share_a_batch_size():
    assert len({lab.trial_hash(trial) for trial in TRIALS}) == len(TRIALS)
    assert {type(trial) for trial in TRIALS} == {Oscillator, Limit, Run}
    groups: dict[Any, set[Any]] = {}
    for trial in TRIALS:
        if isinstance(trial, Run):
            facts = (trial.series, trial.batch_size * trial.factor, trial.optimizer)
            groups.setdefault(adaptive_sde.group(trial), set()).add(facts)
    assert all(len(facts) == 1 for facts in groups.values())


@pytest.mark.parametrize(
    "knob",
    [
        {"levels": (2, 4, 8)},
        {"limit_levels": (1, 4)},
        {"factors": (2, 8)},
        {"text_factors": (4, 1)},
        {"label_noise": 1.0},
        {"samples": 1000},
        {"text_samples": 1000},
        {"text_samples": 0},
        {"samples": 768, "factors": (4, 5, 16)},
        {"blocks": 0},
        {"inits": 0},
        {"seeds": 1},
    ],
)
def test_a_knob_out_of_range_is_named(knob: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(knob))):
        Config(**knob)


# --- the oscillator -------------------------------------------------------------------------


def oscillator(process: str, l: int, *, weights: str = "svag", paths: int = 2**15) -> dict:  # noqa: E741
    return adaptive_sde._oscillate(Oscillator(process, weights, l, paths, 5))


@pytest.mark.parametrize(("l", "weights"), [(1, "svag"), (4, "svag"), (4, "too weak")])
def test_the_sgd_oscillator_has_the_moment_of_its_recursion(l: int, weights: str):  # noqa: E741
    variance = {"svag": l, "too weak": (1 + l) / 2}[weights]
    rate, moment = 0.5 / l, 1.0
    for _ in range(4 * l):
        moment = (1 - rate) ** 2 * moment + rate**2 * variance
    assert oscillator("sgd", l, weights=weights)["moment"] == pytest.approx(moment, abs=0.01)


def test_the_sde_of_sgd_is_the_limit_of_that_recursion():
    l, moment = 10_000, 1.0  # noqa: E741
    for _ in range(4 * l):
        moment = (1 - 0.5 / l) ** 2 * moment + (0.5 / l) ** 2 * l
    assert _noisy_oscillator.sde_moment("sgd") == pytest.approx(moment, abs=1e-4)


@pytest.mark.parametrize("process", ["rmsprop", "adam", "adam from step 0"])
def test_the_sde_of_an_adaptive_rule_is_the_limit_of_its_linear_companion(process: str):
    level = 200
    companion = _noisy_oscillator._Companion(
        rate=0.5 / level,
        beta1=0.0 if process == "rmsprop" else 1 - 0.5 / level**2,
        scale=level * 2 * 1.1,
        corrected=process == "adam from step 0",
    )
    moment = companion.moment(0.0, (2 * level) ** 2, round(2 / (0.5 / level) ** 2))
    assert _noisy_oscillator.sde_moment(process) == pytest.approx(moment, rel=2e-3)


@pytest.mark.parametrize("corrected", [True, False])
def test_the_companions_moment_is_that_of_its_paths(corrected: bool):
    companion = _noisy_oscillator._Companion(rate=0.2, beta1=0.7, scale=1.5, corrected=corrected)
    generator = torch.Generator().manual_seed(1)
    x = torch.ones(200_000, dtype=torch.float64)
    mean = torch.zeros_like(x)
    for step in range(1, 6):
        noise = 2 * torch.randn(len(x), dtype=torch.float64, generator=generator)
        mean = 0.7 * mean + 0.3 * (x + noise)
        x = x - companion.gain(step) * mean
    assert companion.moment(1.0, 4.0, 5) == pytest.approx(float(x.square().mean()), rel=0.02)


@pytest.mark.parametrize("corrected", [True, False])
def test_a_bias_correction_from_step_0_adds_a_logarithm_to_the_weak_error(corrected: bool):
    def moment(l: int) -> float:  # noqa: E741
        companion = _noisy_oscillator._Companion(
            rate=0.25 / l, beta1=1 - 0.25 / l**2, scale=4.4 * l, corrected=corrected
        )
        return companion.moment(1.0, (4 * l) ** 2, 16 * l**2)

    # Of order 1/l^2 these would be equal; with log(l) / l^2 they go on in equal steps.
    scaled = [(moment(l) - moment(2 * l)) * l**2 for l in (8, 16, 32)]  # noqa: E741
    steps = np.abs(np.diff(scaled))
    if corrected:
        assert steps[1] == pytest.approx(steps[0], rel=0.1)
        assert steps[1] > 0.05 * abs(scaled[0])
    else:
        assert steps.max() < 0.01 * abs(scaled[0])


@pytest.mark.parametrize("process", ["rmsprop", "adam"])
def test_svag_brings_an_adaptive_oscillator_to_its_sde_and_weaker_noise_does_not(process: str):
    bare, fine, weak = (
        oscillator(process, *point)
        if len(point) == 1
        else oscillator(process, point[0], weights=point[1])
        for point in ((1,), (4,), (4, "too weak"))
    )
    errors = [abs(record["moment"] - record["sde"]) for record in (bare, fine, weak)]
    assert errors[1] < errors[0] / 10
    assert errors[2] > errors[0] / 2


def test_noise_values_have_the_moments_that_svag_promises():
    from undertow.train import rules

    for rule, power in ((rules.sgd, 1), (rules.adam, 2)):
        for level in (1, 3):
            right, weak = (
                _noisy_oscillator._noise_values(_noisy_oscillator.noisier(rule, level, weights))
                for weights in ("svag", "too weak")
            )
            assert float(right.mean()) == pytest.approx(0, abs=1e-12)
            assert float(right.square().mean()) == pytest.approx(level**power)
            expected = (1 + level) / 2 if power == 1 else level
            assert float(weak.square().mean()) == pytest.approx(expected)


# --- scaled runs ----------------------------------------------------------------------------


def scaled(scaling: str, *, factor: int = 4, beta1: float = 0.99) -> tuple[dict, bool]:
    (run,) = [
        trial
        for trial in TRIALS
        if isinstance(trial, Run)
        and (trial.series, trial.scaling, trial.factor) == ("noisy labels", "base", 1)
        and trial.seed == 30_000
    ]
    return adaptive_sde._scaled(replace(run, scaling=scaling, factor=factor, beta1=beta1))


def test_scalings_differ_as_their_names_say():
    base, _ = scaled("base", factor=1)
    assert base == {"lr": 1e-4, "beta1": 0.99, "beta2": 0.999, "eps": 1e-8}
    assert scaled("none") == (base, False)
    rule, clipped = scaled("square root")
    assert not clipped
    assert rule == pytest.approx({"lr": 2e-4, "beta1": 0.96, "beta2": 0.996, "eps": 5e-9})
    assert scaled("linear")[0] == pytest.approx({**rule, "lr": 4e-4})
    assert scaled("learning rate only")[0] == pytest.approx({**base, "lr": 2e-4})


def test_beta1_is_cut_off_only_where_the_rule_ends():
    values, clipped = scaled("square root", factor=16, beta1=0.9)
    assert clipped
    assert values == pytest.approx({"lr": 4e-4, "beta1": 0.0, "beta2": 0.984, "eps": 2.5e-9})
    assert not scaled("square root", factor=8, beta1=0.9)[1]


def test_one_network_and_data_order_for_every_batch_size(global_rng_untouched: None):
    small = replace(CONFIG, samples=256, epochs=1, seeds=2)
    runs = [
        trial
        for trial in adaptive_sde.trials(small, 1)
        if isinstance(trial, Run) and trial.series == "long memory"
    ]
    by_key: dict[Any, list[Run]] = {}
    for trial in runs:
        by_key.setdefault(adaptive_sde.group(trial), []).append(trial)
    rows = [
        {**asdict(trial), **row}
        for members in by_key.values()
        for trial, own in zip(members, adaptive_sde.run(members), strict=True)
        for row in own
    ]
    frame = pl.DataFrame(rows)
    first = frame.filter(pl.col("epoch") == 0)
    assert first.group_by("seed").agg(pl.col("log_loss").n_unique())["log_loss"].to_list() == [1, 1]
    assert first["log_loss"].n_unique() == 2
    last = frame.filter(pl.col("epoch") == 1, pl.col("seed") == 10_000)
    assert last["log_loss"].n_unique() == len(last)
    assert not frame["diverged"].any()


def test_replicas_of_a_limit_share_their_start(global_rng_untouched: None):
    trial = Limit("adam", 0.5, "svag", 2, 4, 3, 64, 1, 7)
    together = adaptive_sde.run([trial, replace(trial, seed=8)])
    alone = adaptive_sde.run([trial])
    assert [row["time"] for row in alone[0]] == [4 * step / 8 for step in range(9)]
    for ours, theirs in zip(together[0], alone[0], strict=True):
        assert ours["log_loss"] == pytest.approx(theirs["log_loss"], rel=1e-5)
    assert together[0][0]["log_loss"] != together[1][0]["log_loss"]


def test_the_transformer_runs_on_text():
    runs = [
        trial
        for trial in TRIALS
        if isinstance(trial, Run) and trial.series == "text" and trial.factor == 16
    ]
    records = adaptive_sde.run(runs[:2])
    assert all(row["log_loss"] < math.log(6) for row in records[0])
    assert records[0][-1]["log_loss"] < records[0][0]["log_loss"]


# --- the verdict on made-up records ---------------------------------------------------------


def world(trial: Oscillator | Limit | Run, generator: np.random.Generator) -> list[dict[str, Any]]:
    """What a trial records where every prediction holds."""
    jitter = 1 + 0.02 * generator.standard_normal()
    if isinstance(trial, Oscillator):
        power = 1 if trial.process == "sgd" else 2
        error = 0.1 / trial.l**power if trial.weights == "svag" else -0.2
        return [{"moment": 0.5 + error * jitter, "sde": 0.5}]
    if isinstance(trial, Limit):
        coarse = 1 / trial.l**2 if trial.weights == "svag" else 3.0
        gap = coarse * (0.05 if trial.label_noise == 0 else 0.01) * jitter
        return [
            {"time": time, "log_loss": 0.8 - time / 64 + gap * (time > 0), "lost": 0}
            for time in (0.0, 32.0, 64.0)
        ]
    sizes = {"square root": 0.003, "learning rate only": 0.02, "linear": 0.03, "none": 0.075}
    gap = sizes.get(trial.scaling, 0.0) * jitter
    if trial.scaling != "none":
        gap *= math.sqrt(trial.factor / 4)
    if trial.scaling == "square root":
        gap *= {"clean labels": 10, "short memory": trial.factor / 16}.get(trial.series, 1)
    accuracy = 0.9 - (0.1 if trial.scaling == "none" else 0.0)
    facts = {"diverged": False, "clipped": False, "accuracy": accuracy, "test_log_loss": 0.0}
    facts["noise_to_signal"] = 20.0 if trial.scaling == "base" else None
    return [
        {"epoch": epoch, "log_loss": 0.8 - 0.1 * epoch + gap * (epoch > 0), **facts}
        for epoch in (0.0, 1.0, 2.0)
    ]


@pytest.fixture(scope="module")
def records() -> pl.DataFrame:
    generator = np.random.default_rng(0)
    rows = [
        {"trial": lab.trial_hash(trial), **asdict(trial), **row}
        for trial in TRIALS
        for row in world(trial, generator)
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def changed(records: pl.DataFrame, rows: pl.Expr, column: str, value: pl.Expr) -> pl.DataFrame:
    return records.with_columns(pl.when(rows).then(value).otherwise(pl.col(column)).alias(column))


def test_a_world_in_which_everything_holds_is_supported(records):
    verdict = adaptive_sde.judge(records, CONFIG)
    assert verdict.outcome == "supported", [check for check in verdict.checks if not check.passed]
    assert named(verdict, "weak order of SVAG, SGD").value == pytest.approx(-1, abs=0.02)
    assert named(verdict, "weak order of SVAG, Adam").value == pytest.approx(-2, abs=0.05)


def test_a_rule_no_better_than_linear_scaling_is_refuted(records):
    moved = (pl.col("scaling") == "square root") & (pl.col("epoch") > 0)
    worse = changed(records, moved, "log_loss", pl.col("log_loss") + 0.06)
    verdict = adaptive_sde.judge(worse, CONFIG)
    assert named(verdict, "noisy labels, k = 4: square root over linear").refuted
    assert verdict.outcome != "supported"


def test_svag_that_converges_too_slowly_is_refuted(records):
    adaptive = (pl.col("process") == "adam") & (pl.col("weights") == "svag")
    slow = changed(records, adaptive, "moment", pl.col("sde") + 0.1 / pl.col("l"))
    verdict = adaptive_sde.judge(slow, CONFIG)
    assert verdict.outcome == "refuted"
    assert named(verdict, "weak order of SVAG, Adam").refuted


def test_noise_that_may_be_weaker_breaks_the_control(records):
    weak = (pl.col("process") == "sgd") & (pl.col("weights") == "too weak")
    harmless = changed(records, weak, "moment", pl.col("sde") + 1e-3)
    verdict = adaptive_sde.judge(harmless, CONFIG)
    assert verdict.outcome == "inconclusive"
    assert not named(verdict, "error kept with weaker noise, SGD").passed


def test_a_rule_that_never_breaks_breaks_the_control(records):
    clean = (pl.col("series") == "clean labels") & (pl.col("scaling") == "square root")
    base = pl.col("log_loss").filter(pl.col("scaling") == "base").first()
    perfect = changed(
        records,
        clean & (pl.col("epoch") > 0),
        "log_loss",
        base.over("series", "seed", "epoch") + 1e-4,
    )
    verdict = adaptive_sde.judge(perfect, CONFIG)
    assert verdict.outcome == "inconclusive"
    assert not named(verdict, "clean over noisy labels").passed


def test_few_seeds_promise_no_verdict(records):
    few = replace(CONFIG, seeds=3)
    assert adaptive_sde.judge(records, few).outcome == "inconclusive"


def test_diverged_runs_are_counted_and_left_out(records):
    one = (pl.col("scaling") == "linear") & (pl.col("series") == "text")
    lost = changed(records, one & (pl.col("seed") == 30_000), "diverged", pl.lit(True))
    verdict = adaptive_sde.judge(lost, CONFIG)
    assert verdict.summary.startswith("2 training runs diverged")
    assert verdict.outcome == "supported"


def test_starts_are_paired_by_seed_where_some_are_lost(records):
    limit = pl.col("replicas").is_not_null() & (pl.col("label_noise") == 0)
    first = pl.col("seed") == records.filter(limit)["seed"].min()
    # The first start's own curves lie far off; one of them failed and one became infinite.
    far = changed(records, limit & first, "log_loss", pl.col("log_loss") + 5)
    one = limit & first & (pl.col("optimizer") == "adam")
    failed = far.filter(~(one & (pl.col("l") == 1)).fill_null(value=False))
    lost = changed(
        failed,
        limit & first & (pl.col("optimizer") == "rmsprop") & (pl.col("l") == 1),
        "log_loss",
        pl.lit(math.nan),
    )
    for name in ("Adam, SVAG(", "RMSprop, SVAG("):
        whole, kept = (named(adaptive_sde.judge(own, CONFIG), name) for own in (records, lost))
        assert kept.value == pytest.approx(whole.value, rel=0.3)
    level = (pl.col("l") == CONFIG.limit_levels[1]) & limit
    gone = records.filter(~level.fill_null(value=False))
    names = [figure.name for figure in adaptive_sde.figures(gone, CONFIG)]
    assert names == ["order", "limit", "rule", "curves"]


def test_no_check_is_made_twice(records):
    config = replace(CONFIG, text_factors=(4,))
    names = [check.name for check in adaptive_sde.judge(records, config).checks]
    assert len(names) == len(set(names))


def test_no_scaling_is_predicted_to_run_the_base_curve_slower(records):
    predicted = adaptive_sde._predicted(records).filter(
        series="noisy labels", factor=4, seed=30_000
    )
    # A straight line at half the speed: behind by half of what the line fell, 0.05 and 0.1.
    assert predicted["predicted"].item() == pytest.approx(0.075)
    assert predicted["predicted share"].item() == pytest.approx(0.075 / 0.2)


def test_table_and_figures_can_be_drawn(records):
    assert "noise over signal" in adaptive_sde.table(records, CONFIG).columns
    names = [figure.name for figure in adaptive_sde.figures(records, CONFIG)]
    assert names == ["order", "limit", "rule", "curves"]
