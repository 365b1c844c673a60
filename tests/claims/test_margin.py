"""The claim margin: its world, and the laws of its runs."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import polars as pl
import pytest
import torch
from contract import Contract

from undertow import claims
from undertow.claims import Records
from undertow.claims.margin import BEYOND, Margin, experiments
from undertow.claims.margin.experiments import DEGREE, Descent, descend, networks_of
from undertow.data import Images

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

TINY = Margin(
    images=Images(train_size=12),
    width=10,
    channels=2,
    drops=(0.05, 1.28),
    descent=1.0,
    batch_size=6,
    epochs=2,
    log_loss=-2.0,
    shown=2,
    seeds=2,
)
KNOBS = Margin(seeds=12)
# Of an experiment a column: what it becomes at the end of which runs.
Changed = tuple[str, str, float, dict[str, object]]


def ideal(name: str, trial: Any) -> list[dict[str, Any]]:
    """What the claim predicts, with a little spread over seeds."""
    wobble = 1 + 1e-3 * (trial.seed % 7)
    if name == "epochs":
        better = trial.rule == "loss-based"
        margin = (0.006 if better else 0.004) * wobble
        log_loss = (-9.0 if better else -1.0) * wobble
        facts = {"normalized": margin, "smoothed": 0.9 * margin, "accuracy": 0.92}
        return [facts | {"log_loss": log_loss}]
    start = {"normalized": 0.005, "smoothed": 0.002, "kkt": 0.6}
    if name == "far":
        more = {"nearest": 0.6, "held_out": 1.1, "accuracy": 0.92, "growth": None}
        first = start | more | {"goal": -1.0, "reached": -1.2}
        middle = first | {"goal": -50.0, "reached": -51.0, "normalized": 0.0088 * wobble}
        middle |= {"growth": 0.0097, "kkt": None, "nearest": None, "held_out": None}
        last = first | {"goal": trial.log_loss, "reached": trial.log_loss - 1, "kkt": 0.1 * wobble}
        last |= {"normalized": 0.01 * wobble, "smoothed": 0.01, "growth": 0.0101, "nearest": 0.8}
        return [first, middle, last]
    start |= {"falls": 0.0, "deepest": 0.0}
    coarse = trial.kind == "plain" and trial.drop > 0.1
    end = {"normalized": 0.007 * wobble, "smoothed": 0.006, "kkt": 0.4, "falls": 20.0 * coarse}
    if trial.kind == "square":
        end |= {"smoothed": -0.5 * wobble}
    reading = {"step": 0, "log_loss": -2.0}
    return [start | reading, start | end | reading | {"step": 600, "log_loss": -12.0}]


def plain(trial: Any) -> dict[str, Any]:
    """Its fields, but for the images, which records name otherwise."""
    return {name: value for name, value in asdict(trial).items() if name != "images"}


def world(seeds: int = 12, changed: Changed | None = None) -> Records:
    """Records of a world in which every prediction holds, but for what is changed in it."""
    records: Records = {
        name: pl.DataFrame(
            [
                {"trial": str(trial)} | plain(trial) | row
                for trial in experiment.trials
                for row in ideal(name, trial)
            ],
            infer_schema_length=None,
        )
        for name, experiment in experiments.experiments(Margin(seeds=seeds), 0).items()
    }
    if changed:
        name, column, number, where = changed
        frame = records[name]
        last = pl.int_range(pl.len()).over("trial") == pl.len().over("trial") - 1
        late = pl.lit(True) if "goal" in where else last
        chosen = pl.all_horizontal(late, *(pl.col(key) == value for key, value in where.items()))
        new = pl.when(chosen).then(pl.lit(number)).otherwise(pl.col(column))
        records = {**records, name: frame.with_columns(new.alias(column))}
    return records


def broken(name: str, column: str, number: float, **where: object) -> dict[str, Changed]:
    return {"changed": (name, column, number, where)}


FALLS = "steps in which the smoothed margin falls, of a drop of"
ENTROPY: dict[str, Any] = {"network": "perceptron", "loss": "logistic", "classes": 10}
FAMILIES: dict[str, dict[str, Any]] = {
    "cross-entropy": ENTROPY,
    "exponential loss": ENTROPY | {"loss": "exponential", "classes": 2},
    "logistic loss": ENTROPY | {"classes": 2},
    "loss e^(-q^3)": ENTROPY | {"loss": "cubic", "classes": 2},
    "cross-entropy, convolutions": ENTROPY | {"network": "convolutional"},
}


CONTRACT = Contract(
    claim="margin",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        *(
            (broken("descents", column, number, kind="plain", **where), f"{family}, {check}")
            for family, where in FAMILIES.items()
            for column, number, check in (
                ("falls", 3.0, "steps in which"),
                ("normalized", 0.001, "least margin"),
                ("kkt", 0.9, "KKT residual"),
            )
        ),
        (broken("epochs", "log_loss", -0.5, rule="loss-based"), "log loss in as many epochs"),
        (broken("epochs", "normalized", 0.003, rule="loss-based"), "margin in as many epochs"),
        (broken("far", "normalized", 0.02, goal=-1.0), "normalised steps, margin"),
        (broken("far", "kkt", 0.7), "normalised steps, KKT residual"),
        (broken("far", "nearest", 0.5), "nearest training image"),
        (broken("far", "growth", 0.002, goal=-50.0), "margin foretold"),
    ],
    left_open=[
        (broken("descents", "falls", 0.0, drop=0.16), f"{FALLS} 0.16"),
        (broken("descents", "falls", 0.0, drop=1.28), f"{FALLS} 1.28"),
        (broken("descents", "smoothed", 0.003, kind="square"), "square loss, smoothed margin"),
        (broken("far", "normalized", 0.0089), "least margin at e^-50"),
    ],
    bad_knobs=[
        ({"width": 0}, "width must be at least 1"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"drops": (0.1,)}, "drops must be at least 2 values"),
        ({"drops": (0.1, 0.1)}, "drops must be"),
        ({"drops": (0.1, 20.0)}, "drops must be"),
        ({"descent": -1.0}, "descent must be between"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 500}, "batch_size must be at most train_size = 200, got 500"),
        ({"epochs": 1}, "epochs must be at least 2"),
        ({"log_loss": 1.0}, "log_loss must be between"),
        ({"shown": 0}, "shown must be at least 1"),
        ({"seeds": 1}, "seeds must be at least 2"),
    ],
)


def test_the_loss_that_is_to_be_reached_is_that_of_the_paper() -> None:
    assert math.isclose(BEYOND / math.log(10), -800)
    short = claims.get("margin").judge(world(), replace(KNOBS, log_loss=-100.0))
    assert short.outcome == "inconclusive"


def test_networks_are_homogeneous_and_of_their_seeds() -> None:
    trials = experiments.experiments(TINY, 1000)["descents"].trials
    same = [trial for trial in trials if trial.drop == 1.28]
    both, _ = networks_of(same)
    alone, _ = networks_of(same[1:2])
    for name, value in both.params.items():
        assert (value[1] == alone.params[name][0]).all()
    once = both.normalized_margins(DEGREE)["normalized"]
    both.params = {name: 2 * value for name, value in both.params.items()}
    assert (both.normalized_margins(DEGREE)["normalized"] - once).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["plain", "square"])
def test_a_descent_has_a_record_for_each_reading(kind: str) -> None:
    (rows,) = descend([descent(7, kind=kind)])
    assert [row["step"] for row in rows] == list(range(21))
    assert ("kkt" in rows[0]) == (kind == "plain")
    assert rows[0]["log_loss"] <= experiments.START


def test_a_network_that_does_not_separate_its_images_has_no_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And stops none of the others of its group."""
    whole = experiments.networks_of

    def same_images_of_two_labels(*args: Any, **kwargs: Any) -> Any:
        networks, drawn = whole(*args, **kwargs)
        networks.inputs[0, 1] = networks.inputs[0, 0]
        networks.labels[0, :2] = torch.tensor([0, 1])
        return networks, drawn

    monkeypatch.setattr(experiments, "networks_of", same_images_of_two_labels)
    monkeypatch.setattr(experiments, "PATIENCE", 1_000)
    lost, other = descend([descent(7), descent(8)])
    assert all(value is None for row in lost for value in row.values())
    assert all(value is not None for row in other for value in row.values())
    trials = experiments.experiments(TINY, 1000)["far"].trials[:2]
    lost, other = experiments.go_far([replace(trial, log_loss=-2.0) for trial in trials])
    assert [row["goal"] for row in lost] == [row["goal"] for row in other] == [-1.0, -2.0]
    assert lost[-1]["nearest"] is lost[-1]["kkt"] is lost[-1]["normalized"] is None
    assert other[-1]["nearest"] > 0


def descent(seed: int, kind: str = "plain") -> Descent:
    return Descent(
        images=TINY.images, width=10, seed=seed, channels=2, descent=0.1, drop=0.05, kind=kind
    )
