"""The claim low-rank: its trials, what its records say, and what its verdict rule makes of them."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import polars as pl
import pytest

from undertow import lab, predict
from undertow.claims import low_rank
from undertow.claims.low_rank import CLAIM, RULES, Config, Identity, Problem, Training

PROBLEM = Problem("digits", None, 120, 0, (24, 24), "cpu")
CONFIG = Config(seeds=10, batch_sizes=(4, 64))


def records_of(trials, answers) -> pl.DataFrame:
    """A study's records, as the store would give them."""
    rows = []
    for trial, own in zip(trials, answers, strict=True):
        fields = {key: value for key, value in asdict(trial).items() if key != "problem"}
        rows += [{"trial": lab.trial_hash(trial), **fields, **row} for row in own]
    return pl.DataFrame(rows, infer_schema_length=None)


def synthetic(config: Config, *, batch_effect: bool = False, forgetting: bool = True):
    """Records of a world in which the survivor law holds, or one in which it does not."""
    trials = low_rank.trials(config, 0)
    answers = []
    for trial in trials:
        noise = np.random.default_rng(trial.seed + 1)
        if isinstance(trial, Identity):
            rank = 20 if trial.rule == "sgd" else 128
            answers.append([{"residual_rank": rank, "residual_bound": 20}])
            continue
        rows = []
        epochs = trial.epochs * max(config.batch_sizes) / trial.steps_as
        for part in (0.1, 0.25, 0.5, 1.0):
            rate = trial.lr * trial.weight_decay / (0.1 if trial.rule == "momentum" else 1)
            exponent = rate * epochs * part * 20
            survivors = 120 * np.exp(-exponent) if forgetting else 120.0
            if batch_effect:
                survivors *= 1 if trial.batch_size > 4 or trial.weight_decay == 0 else 0.4
            learned = 40.0 if trial.rule == "adamw" else 6.0
            rank = max(survivors, learned) * noise.uniform(0.99, 1.01)
            rows.append(
                {
                    "step": round(100 * part),
                    "final": part == 1.0,
                    "diverged": False,
                    "train_accuracy": 1.0,
                    "test_accuracy": 0.96 + noise.normal() / 1000,
                    "layer": 2,
                    "decay_exponent": exponent,
                    "rows": 128,
                    "cols": 128,
                    "rank": rank,
                    "survivors": survivors,
                    "survivors_theory": survivors,
                    "survivors_unforgotten": 120,
                    "learned_rank": learned,
                    "rank_fine": 126,
                    "initial_rank_fine": 127,
                    "spectrum": [0.5, 0.1],
                }
            )
        answers.append(rows)
    return records_of(trials, answers)


def passed(verdict, name: str) -> bool:
    (check,) = [check for check in verdict.checks if check.name == name]
    return check.passed


def test_trials_are_distinct_and_share_seeds_across_settings():
    trials = low_rank.trials(CONFIG, 3)
    assert len({lab.trial_hash(trial) for trial in trials}) == len(trials)
    settings = {}
    for trial in trials:
        settings.setdefault(replace(trial, seed=0), set()).add(trial.seed)
    assert len({frozenset(seeds) for seeds in settings.values()}) == 1
    assert not {trial.seed for trial in low_rank.trials(CONFIG, 4)} & {t.seed for t in trials}


@pytest.mark.parametrize("preset", ["smoke", "small", "paper"])
def test_presets_compare_what_the_checks_need(preset):
    config = CLAIM.presets[preset]
    training = [t for t in low_rank.trials(config, 0) if isinstance(t, Training)]
    assert {t.rule for t in training} == set(RULES)
    assert 0.0 in {t.weight_decay for t in training}
    assert {t.batch_size for t in training} == set(config.batch_sizes)


@pytest.mark.parametrize(
    "knob",
    [
        {"batch_sizes": (0,)},
        {"lr": (-0.1,)},
        {"weight_decay": (-1e-3, 1e-3)},
        {"weight_decay": (0.0,)},
        {"widths": (10,)},
        {"seeds": 0},
    ],
)
def test_a_knob_out_of_range_is_named(knob):
    with pytest.raises(ValueError, match=next(iter(knob))):
        Config(**knob)


def test_the_rules_forget_at_one_rate():
    for rule in RULES:
        lr, decay = low_rank._hyper(rule, 0.04, 2.5e-3)
        beta = 0.9 if rule == "momentum" else 0.0
        assert predict.decay_exponent(lr, decay, 1000, momentum=beta) == pytest.approx(0.1)


def test_the_learned_part_of_a_few_steps_has_the_rank_of_their_batches():
    """After T steps of batch size B the learned part is a sum of T matrices of rank at most B."""
    problem = replace(PROBLEM, widths=(48, 48))
    trial = Training(problem, "sgd", 6, 0.1, 1e-2, 1, 40, 1e-5, 5)
    (rows,) = low_rank.run([trial])
    (end,) = [row for row in rows if row["final"]]
    assert end["step"] == 3
    assert end["rank"] > 40
    assert end["learned_rank"] <= 3 * 6
    assert end["decay_exponent"] == pytest.approx(3 * 0.1 * 1e-2)


def test_a_member_of_a_group_has_the_records_it_has_alone():
    trials = [Training(PROBLEM, "sgd", 8, 0.1, 1e-3, 2, 8, 1e-2, seed) for seed in (1, 2, 3)]
    together = low_rank.run(trials)
    (alone,) = low_rank.run(trials[1:2])
    for one, other in zip(together[1], alone, strict=True):
        assert one["rank"] == other["rank"]
        np.testing.assert_allclose(one["spectrum"], other["spectrum"], atol=1e-5)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_identity_is_exact_for_sgd_and_broken_by_the_others(network):
    problem = replace(PROBLEM, train_size=200, widths=(64, 64))
    found = {}
    for rule in RULES:
        lr, decay = low_rank._hyper(rule, 0.05, 2e-3)
        batch, steps = (4, 5) if network == "mlp" else (1, 2)
        trial = Identity(problem, network, rule, batch, lr, decay, 20, steps, 1)
        ((record,),) = low_rank.run([trial])
        assert record["residual_bound"] == batch * steps * record["patches"]
        assert record["residual_bound"] < min(record["rows"], record["cols"])
        found[rule] = record["residual_rank"] <= record["residual_bound"]
    assert found == {"sgd": True, "momentum": False, "adamw": False}


def test_a_world_with_the_survivor_law_supports_the_claim():
    verdict = low_rank.judge(synthetic(CONFIG), CONFIG)
    assert verdict.outcome == "supported", verdict


def test_a_batch_effect_at_equal_decay_exponent_refutes_it():
    verdict = low_rank.judge(synthetic(CONFIG, batch_effect=True), CONFIG)
    assert verdict.outcome == "refuted"
    assert not passed(verdict, "rank, small over large batch, same E")


def test_without_forgetting_nothing_is_supported():
    verdict = low_rank.judge(synthetic(CONFIG, forgetting=False), CONFIG)
    assert verdict.outcome != "supported"
    assert not passed(verdict, "rank, small over large batch, same epochs")


def test_a_control_that_does_not_fail_leaves_the_claim_open():
    records = synthetic(CONFIG).with_columns(
        pl.when(pl.col("rule") == "momentum")
        .then(pl.col("residual_bound"))
        .otherwise(pl.col("residual_rank"))
        .alias("residual_rank")
    )
    verdict = low_rank.judge(records, CONFIG)
    assert verdict.outcome == "inconclusive"
    assert not passed(verdict, "rank identity broken, momentum")


def test_runs_that_did_not_fit_are_left_out_and_counted():
    records = synthetic(CONFIG)
    lost = (pl.col("seed") == 0) & pl.col("step").is_not_null()
    spoiled = records.with_columns(
        pl.when(lost).then(0.1).otherwise(pl.col("train_accuracy")).alias("train_accuracy"),
        pl.when(lost).then(1.0).otherwise(pl.col("rank")).alias("rank"),
    )
    verdict = low_rank.judge(spoiled, CONFIG)
    assert verdict.outcome == "supported"
    runs = records.filter(pl.col("step").is_not_null())["trial"].n_unique()
    assert f"{runs // CONFIG.seeds} of {runs} runs" in verdict.summary


def test_too_few_seeds_promise_no_verdict():
    few = replace(CONFIG, seeds=3)
    assert low_rank.judge(synthetic(few), few).outcome == "inconclusive"


def test_table_and_figures_hold_every_setting():
    records = synthetic(CONFIG)
    table = low_rank.table(records, CONFIG)
    assert set(table["rule"]) == set(RULES)
    assert table.filter(rule="sgd")["paper's bound"].str.contains("vacuous").all()
    names = [figure.name for figure in low_rank.figures(records, CONFIG)]
    assert names == ["batch-size", "collapse", "survivors", "spectra", "accuracy"]


def test_with_nothing_fitted_no_figure_is_drawn_and_no_verdict_given():
    unfit = synthetic(CONFIG).with_columns(
        pl.when(pl.col("step").is_not_null()).then(0.2).alias("train_accuracy")
    )
    assert low_rank.figures(unfit, CONFIG) == []
    assert low_rank.judge(unfit, CONFIG).outcome == "inconclusive"
    assert (low_rank.table(unfit, CONFIG)["fitted"] == 0).all()
