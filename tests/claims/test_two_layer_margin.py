"""The claim two-layer-margin: its world, and the laws of its runs."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from contract import Contract

from undertow import claims, lab, predict
from undertow.claims import Records
from undertow.claims.two_layer_margin import TwoLayerMargin, experiments, predictions
from undertow.claims.two_layer_margin.experiments import (
    EARLY,
    ESCAPED,
    Network,
    Starts,
    lasted,
    made,
)

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

TINY = TwoLayerMargin(
    points=8,
    features=3,
    widths=(3, 5),
    scales=(1e-9, 1e-7, 1e-4, 1.0),
    few=(2, 3),
    starts=3,
    depth=1.1e3,
    pictures=4,
    seeds=2,
)
KNOBS = TwoLayerMargin(seeds=12)
LEVEL, KAPPA = 2 / 3, 0.3
# Of an experiment a column, what it becomes or is multiplied with, and in which runs.
Changed = tuple[str, str, str, float | bool, dict[str, object]]


def margin(trial: Network, level: float) -> float:
    """The margin over the ceiling that the claim predicts."""
    if trial.start == "one-sign":
        return LEVEL
    small_hint = trial.data in ("hinted", "halved") and trial.scale < 1
    held = small_hint and (level > -1e5 or trial.scale < 1e-25)
    return (LEVEL if trial.data == "hinted" else 0.85) if held else 1.0


def network(trial: Network) -> list[dict[str, Any]]:
    """What the claim predicts of a network, with a little spread over seeds."""
    wobble = 1 - 1e-3 * (trial.seed % 7) / 7
    folds, mirrored = -math.log(trial.scale), trial.data not in ("hinted", "halved")
    one = 0.85 if trial.data == "halved" else LEVEL
    rows = []
    for level in (ESCAPED, -EARLY, -trial.depth):
        ratio = margin(trial, level) * wobble
        held = ratio < 0.9
        rows.append(
            {
                "diverged": False,
                "level": level,
                "log_loss": level,
                "log_time": math.log(3 + folds / 0.3),
                "ratio": 0.3 if level == ESCAPED else ratio,
                "over_one": ratio / one,
                "rank_ratio": 0.5 if trial.scale == 1 else 1e-4 * wobble,
                "angle_svm": 0.4 if level == ESCAPED else 0.002 if mirrored else 0.2,
                "angle_mean": 0.02 if level == ESCAPED else 0.4,
                "angle_one": 0.002 if held else 0.2,
                "bend": 0.1 if held else 1e-6,
                "forecast": (trial.start == "one-sign") if mirrored else None,
                "growth": 0.3,
                "kappa": KAPPA if trial.data == "hinted" else None,
                "lasted": KAPPA * folds * wobble - 1 if 0 < folds < 60 else None,
                "svm_to_one": 0.2,
                "svm_to_mean": 0.4,
            }
        )
    return rows


def starts(trial: Starts) -> list[dict[str, Any]]:
    """As many of them stuck as coins fall alike."""
    expected = 2.0 ** (1 - trial.neurons)
    facts = {"diverged": False, "expected": expected, "log_loss": -trial.depth}
    stuck = [index < round(expected * trial.starts) for index in range(trial.starts)]
    return [
        facts | {"forecast": own, "stuck": own, "ratio": (LEVEL if own else 1.0) - 1e-6}
        for own in stuck
    ]


@cache
def ideal(seeds: int) -> Records:
    found = {}
    for name, experiment in experiments.experiments(replace(KNOBS, seeds=seeds), 0).items():
        rows = []
        for trial in experiment.trials:
            facts = asdict(trial)
            facts.pop("images", None)
            of_trial = starts(trial) if isinstance(trial, Starts) else network(trial)
            rows += [{"trial": str(trial)} | facts | row for row in of_trial]
        found[name] = pl.DataFrame(rows, infer_schema_length=None)
    return found


def changed_in(records: Records, change: Changed) -> Records:
    name, column, how, number, where = change
    given = (pl.col(key).eq_missing(value) for key, value in where.items())
    which = pl.all_horizontal(pl.lit(True), *given)
    value = pl.lit(number) if how == "is" else pl.col(column) * number
    new = pl.when(which).then(value).otherwise(pl.col(column))
    return {**records, name: records[name].with_columns(new.alias(column))}


def world(seeds: int = 12, *changes: Changed, changed: Changed | None = None) -> Records:
    """Records of a world in which every prediction holds, but for what is changed in it."""
    records = ideal(seeds)
    for change in (*changes, *([changed] if changed else [])):
        records = changed_in(records, change)
    return records


def broken(
    name: str, column: str, how: str, number: float | bool, **where: object
) -> dict[str, Changed]:
    return {"changed": (name, column, how, number, where)}


OWN: dict[str, object] = {"scale": 1e-8, "start": "normal"}
FORCED: dict[str, object] = {"start": "one-sign"}
END: dict[str, object] = {"level": -1e8}
SOON: dict[str, object] = {"level": -EARLY}
STUCK: dict[str, object] = {"forecast": True}
FREE: dict[str, object] = {"forecast": False}
CONTRACT = Contract(
    claim="two-layer-margin",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        *[
            (broken("symmetric", "ratio", "is", 0.7, neurons=m, **OWN, **END), f"m = {m}, margin")
            for m in (4, 16, 64)
        ],
        (broken("symmetric", "angle_svm", "is", 0.6, **OWN, **END), "angle to the SVM over"),
        (broken("symmetric", "bend", "is", 0.1, **OWN, **END), "share of f that is not linear"),
        (broken("starts", "stuck", "is", True), "ends that the signs"),
        (broken("starts", "expected", "times", 0.4), "stuck starts over"),
        (broken("starts", "ratio", "is", 0.4, **STUCK), "stuck runs, least"),
        (broken("starts", "ratio", "is", 0.7, seed=3, **STUCK), "stuck runs, largest"),
        (broken("starts", "ratio", "is", 0.7, **FREE), "other runs, least"),
        (broken("symmetric", "growth", "times", 2.0), "time to leave zero"),
        (broken("symmetric", "rank_ratio", "is", 0.7, **OWN), "on leaving zero, s2 / s1"),
        (broken("symmetric", "angle_mean", "is", 0.6, **OWN), "on leaving zero, angle"),
        (
            broken("manipulated", "over_one", "is", 1.5, data="hinted", scale=1e-30),
            "one more sample, margin over one neuron's",
        ),
        (
            broken("manipulated", "ratio", "is", 1.01, data="hinted", scale=1e-30),
            "one more sample, margin over ceiling",
        ),
        (
            broken("manipulated", "over_one", "is", 1.5, data="halved", scale=1e-30),
            "no mirror images, margin over one neuron's",
        ),
        (
            broken("manipulated", "angle_one", "is", 0.3, data="halved", scale=1e-30),
            "no mirror images, angle",
        ),
        (
            broken("manipulated", "ratio", "is", 0.7, data="hinted", scale=1e-10, **END),
            "one more sample, s = 1e-10, margin over ceiling in the end",
        ),
        (broken("manipulated", "kappa", "times", 3.0), "power of 1 / s"),
        (broken("pictures", "ratio", "is", 0.7, start="normal"), "images, margin over"),
        (broken("pictures", "angle_svm", "is", 0.6, start="normal"), "images, angle to the SVM"),
        (
            broken("pictures", "ratio", "is", 0.4, **FORCED),
            "images, all a_k of one sign, margin over 2",
        ),
    ],
    left_open=[
        (broken("symmetric", "ratio", "is", 0.95, **FORCED), "all a_k of one sign, margin"),
        (broken("symmetric", "rank_ratio", "is", 1e-4, scale=1.0), "s = 1, s2 / s1"),
        (broken("symmetric", "ratio", "is", 0.7, scale=1e-30), "without it, margin"),
        (
            broken("manipulated", "over_one", "is", 1.0, data="hinted", scale=1.0),
            "one more sample, s = 1, margin",
        ),
        (
            broken("manipulated", "over_one", "is", 1.0, data="halved", scale=1.0),
            "no mirror images, s = 1, margin",
        ),
        (
            broken("pictures", "ratio", "is", 0.95, **FORCED),
            "images, all a_k of one sign, margin over ceiling",
        ),
    ],
    bad_knobs=[
        ({"slope": 1.0}, "slope must be between 0 and 1, got 1"),
        ({"points": 1}, "points must be at least 2"),
        ({"features": 1}, "features must be at least 2"),
        ({"widths": ()}, "widths must be at least 1 value"),
        ({"widths": (8, 4)}, "widths must be ascending"),
        ({"scale": 1e-30}, "scale must be above 1e-30 and below 1, got 1e-30"),
        ({"scales": (1e-9, 1.0)}, "scales must be at least 3 values"),
        ({"few": (0,)}, "few must be at least 1"),
        ({"starts": 0}, "starts must be at least 1"),
        ({"hint": 0.0}, "hint must be above 0"),
        ({"depth": 100.0}, "depth must be between 1000 and 1e"),
        ({"pictures": 0}, "pictures must be at least 1"),
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
    ],
)
TRIAL = Network("mirrored", 4, 1e-8, 0.5, 10, 5, 4.0, 1e3, TINY.images, seed=10_000_000)


def judged(*changes: Changed, knobs: TwoLayerMargin = KNOBS) -> lab.Verdict:
    return claims.get("two-layer-margin").judge(world(12, *changes), knobs)


# ---- data and starts


def test_starts_differ_in_nothing_but_their_scale() -> None:
    one, other = (made(replace(TRIAL, scale=scale)) for scale in (1.0, 1e-30))
    torch.testing.assert_close(one[0], other[0])
    torch.testing.assert_close(1e-30 * one[2], other[2])
    forced = made(replace(TRIAL, start="one-sign"))
    assert (forced[3] >= forced[2].norm(dim=1)).all()


@pytest.mark.parametrize("data", ["mirrored", "hinted", "halved", "pictures"])
def test_data_are_what_they_say(data: str) -> None:
    trial = replace(TRIAL, data=data, points=6)
    x, y, *_ = made(trial)
    known = predict.two_layer_margin(x.numpy(), y.numpy(), slope=0.5)
    assert (known.ceiling is not None) == (data in ("mirrored", "pictures"))
    assert len(x) == {"mirrored": 12, "hinted": 13, "halved": 7, "pictures": 24}[data]
    if data == "hinted":
        assert known.positive.margin / known.linear == pytest.approx(2 / 3)
        np.testing.assert_allclose(known.positive.direction, known.direction, atol=1e-9)
    if data == "halved":
        assert known.positive.margin < 0.9 * known.linear
        assert known.positive.direction @ known.direction < math.cos(math.radians(10))
        assert known.positive.growth is not None
        assert known.negative.growth is not None
        assert known.negative.growth <= 0.85 * known.positive.growth


def test_pictures_are_of_two_classes_that_the_seed_draws() -> None:
    trial = replace(TRIAL, data="pictures")
    drawn = [made(replace(trial, seed=seed))[0] for seed in (1, 1, 2)]
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])
    torch.testing.assert_close(drawn[0].norm(dim=1), torch.ones(len(drawn[0])).double())


def test_lifetimes_are_read_between_readings() -> None:
    facts = {
        "ratio": torch.tensor([0.1, 2 / 3, 0.7, 0.9, 1.0]),
        "log_loss": torch.tensor([-0.7, -10.0, -100.0, -1_000.0, -10_000.0]),
    }
    known: dict[str, Any] = {"kappa": 0.3, "one_over_linear": 2 / 3}
    found = lasted(facts, known)
    assert found is not None
    assert found / math.log(10) == pytest.approx(2 + (5 / 6 - 0.7) / 0.2, rel=1e-5)
    assert lasted(facts, known | {"kappa": None}) is None
    never = facts | {"ratio": torch.full((5,), 2 / 3)}
    assert lasted(never, known) is None


# ---- the verdict


def test_a_broken_control_leaves_it_open_even_beside_a_refutation() -> None:
    far: Changed = ("starts", "ratio", "is", 0.7, FREE)
    same: Changed = ("symmetric", "rank_ratio", "is", 1e-4, {"scale": 1.0})
    assert judged(far).outcome == "refuted"
    assert judged(same, far).outcome == "inconclusive"


def test_a_margin_short_of_its_limit_is_no_evidence_against_it() -> None:
    short: Changed = ("symmetric", "ratio", "is", 0.97, OWN | END)
    assert judged(short).outcome == "inconclusive"


def test_starts_that_are_foretold_to_fail_are_left_out_of_the_ceiling() -> None:
    stuck: Changed = ("symmetric", "ratio", "is", 0.6, {"seed": 2, "neurons": 4})
    told: Changed = ("symmetric", "forecast", "is", True, {"seed": 2, "neurons": 4})
    assert judged(stuck, told).outcome == "supported"


def test_lifetimes_too_short_for_a_power_are_not_read() -> None:
    short: Changed = ("manipulated", "lasted", "is", 1.0, {"scale": 1e-5})
    assert judged(short).outcome == "supported"


def test_shallow_runs_and_large_starts_promise_nothing() -> None:
    for knobs in (replace(KNOBS, depth=1e5), replace(KNOBS, scales=(1e-10, 1e-8, 1e-5, 1.0))):
        knobs = replace(knobs, scale=1e-9)
        assert not predictions.promises_verdict(world(), knobs)


def test_table_and_figures_hold_every_kind_of_run() -> None:
    claim, records = claims.get("two-layer-margin"), world()
    table = claim.table(records, KNOBS)
    assert set(table["part"]) == set(records)
    names = [drawn.name for drawn in claim.figures(records, KNOBS)]
    assert names == ["margins", "order", "lifetime"]


@pytest.mark.parametrize("missing", ["symmetric", "manipulated", "pictures", "starts"])
def test_an_experiment_without_records_leaves_the_rest(missing: str) -> None:
    empty = world()[missing].clear()
    rest = {**world(), missing: empty}
    claim = claims.get("two-layer-margin")
    assert claim.judge(rest, KNOBS).outcome == "inconclusive"
    assert len(claim.figures(rest, KNOBS)) >= 1
    assert missing not in claim.table(rest, KNOBS)["part"]
    nothing = {name: frame.clear() for name, frame in rest.items()}
    assert claim.figures(nothing, KNOBS) == ()
    assert claim.table(nothing, KNOBS).is_empty()
