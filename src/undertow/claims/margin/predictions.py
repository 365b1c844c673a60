"""What the margin must do past zero loss, and where steps or another loss must break it."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.margin import BEYOND, Margin
from undertow.claims.margin.experiments import FINER
from undertow.lab import Prediction, Reading, at_most, every_seed, near, no_less, of

EARLY = -50.0  # the goal at which the margin is foretold from the growth of the norm
FAMILIES: dict[str, dict[str, Any]] = {
    "cross-entropy": {"network": "perceptron", "loss": "logistic", "classes": 10},
    "exponential loss": {"network": "perceptron", "loss": "exponential", "classes": 2},
    "logistic loss": {"network": "perceptron", "loss": "logistic", "classes": 2},
    "loss e^(-q^3)": {"network": "perceptron", "loss": "cubic", "classes": 2},
    "cross-entropy, convolutions": {"network": "convolutional", "loss": "logistic", "classes": 10},
}


def predictions(knobs: Margin) -> dict[str, Prediction]:
    """Near the flow, away from it, in epochs, and far past zero loss."""
    rules = near_the_flow(min(knobs.drops)) | away_from_it(knobs) | in_epochs()
    return rules | far_past_zero(knobs)


def near_the_flow(drop: float) -> dict[str, Prediction]:
    """For each loss of the family and either network: no fall, a rise, the way to KKT points."""
    rules: dict[str, Prediction] = {}
    for family, where in FAMILIES.items():
        finer = FINER if where["network"] == "convolutional" else 1
        plain = {"drop": drop / finer, "kind": "plain"} | where
        falls = of("descents", "falls", how="last", **plain)
        rules[f"{family}, steps in which the smoothed margin falls"] = every_seed(
            falls <= 0, "none, as along the flow"
        )
        rules[f"{family}, least margin, end over start"] = no_less(
            1, change("descents", "normalized", **plain), "it follows"
        )
        rules[f"{family}, KKT residual, end over start"] = at_most(
            1, change("descents", "kkt", **plain), "the direction goes towards a KKT point"
        )
    return rules


def away_from_it(knobs: Margin) -> dict[str, Prediction]:
    """Steps that are not small, and a loss without an exponential tail."""
    entropy = FAMILIES["cross-entropy"]
    coarse = sorted(knobs.drops)[1:]
    rules = {
        f"steps in which the smoothed margin falls, of a drop of {drop:g}": no_less(
            1,
            of("descents", "falls", how="last", drop=drop, kind="plain", **entropy),
            "a step that is not small may lower it",
            control=True,
        )
        for drop in coarse
    }
    square = change("descents", "smoothed", kind="square", **entropy)
    return rules | {
        "square loss, smoothed margin, end over start": at_most(
            0.9, square, "it need not rise under another loss", control=True
        )
    }


def in_epochs() -> dict[str, Prediction]:
    """At a rate in proportion to 1 / loss, beside a constant one."""

    def value(column: str, rule: str) -> Reading:
        return of("epochs", column, rule=rule)

    def gap(column: str) -> Reading:
        return value(column, "loss-based") - value(column, "constant")

    ratio = value("normalized", "loss-based") / value("normalized", "constant")
    return {
        "log loss in as many epochs, at alpha / loss less at a constant rate": at_most(
            -1, gap("log_loss"), "alpha / loss goes on", against=0
        ),
        "margin in as many epochs, at alpha / loss over at a constant rate": no_less(
            1.2, ratio, "and so does the margin", against=1
        ),
        "test accuracy in as many epochs, at alpha / loss less at a constant rate": near(
            0, 0.02, gap("accuracy"), "what is decided hardly changes", against=math.inf
        ),
    }


def far_past_zero(knobs: Margin) -> dict[str, Prediction]:
    """By normalised steps to losses below any float, and what has become of the network there."""
    later = final("normalized", knobs)
    foretold, there = (of("far", column, goal=EARLY) / later for column in ("growth", "normalized"))
    rules = {
        "log loss at the end of normalised steps": every_seed(
            final("reached", knobs) <= max(BEYOND, knobs.log_loss),
            f"at most {max(BEYOND, knobs.log_loss):.0f}; a loss of 1e-800 in the preset small",
            against=math.inf,
        ),
        "normalised steps, margin, end over a loss of e^-1": no_less(
            1.5, change("far", "normalized"), "it goes on rising", against=1
        ),
        "normalised steps, KKT residual, end over a loss of e^-1": at_most(
            0.5, change("far", "kkt"), "towards a KKT point", against=1
        ),
        "nearest training image to the decision boundary, end over start": no_less(
            1.05, change("far", "nearest"), "robustness at it grows with the margin", against=1
        ),
    }
    if knobs.log_loss >= EARLY:
        return rules
    return rules | {
        "margin foretold from the growth of the norm at e^-50, over that at the end": near(
            1, 0.1, foretold, "the slope of log(1 / loss) in rho^L", against=0.5
        ),
        "least margin at e^-50, over that at the end": at_most(
            0.95, there, "the offset of the start still hides some of it", control=True
        ),
    }


def summary(records: Records, knobs: Margin) -> str:
    """How far the losses went."""
    if records["far"].is_empty():
        return "No network was trained far past zero loss."
    exponent = (records["far"]["reached"] / math.log(10)).to_list()
    return f"The least loss is 1e{min(exponent):.0f}; margins are over rho^L, L = 3."


def promises_verdict(records: Records, knobs: Margin) -> bool:
    """Whether losses go below 1e-800."""
    return knobs.log_loss <= BEYOND


# ---- readings


def change(experiment: str, column: str, **where: Any) -> Reading:
    """The last value of each seed's run over the first."""
    last, first = (of(experiment, column, how=how, **where) for how in ("last", "first"))
    return last / first


def final(column: str, knobs: Margin) -> Reading:
    """At the end of the far runs."""
    return of("far", column, pl.col("goal") == knobs.log_loss)
