"""What the paper predicts of depth, where its condition is needed, and what trains."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.deep_relu_limit import BURN_IN, DIVERGING, DeepReluLimit
from undertow.claims.deep_relu_limit.experiments import experiments, nets, sequences
from undertow.lab import PerSeed, Prediction, Reading, at_most, near, no_less, of, worst

KINDS = {
    "aligned": "aligned perturbations",
    "random": "random perturbations",
    "bias": "random biases",
}
LEAST_NETS = 8  # of each initialisation; with fewer no verdict is promised


def predictions(knobs: DeepReluLimit) -> dict[str, Prediction]:
    """Rates under every sequence of activation matrices, where there is no limit, and training."""
    return _rates(knobs) | _without_limit(knobs) | _training(knobs)


def summary(records: Records, knobs: DeepReluLimit) -> str:
    """How many networks have no slope."""
    every = stacks(records)
    return (
        f"{every['slope'].null_count()} of {len(every)} networks and products died or overflowed "
        f"and have no slope; {records['networks']['diverged'].sum()} of "
        f"{len(records['networks'])} trainings blew up and count as accuracy 0."
    )


def promises_verdict(records: Records, knobs: DeepReluLimit) -> bool:
    """Whether all trainings ran: a best learning rate is the best of all that were to be run."""
    planned = {name: len(made.trials) for name, made in experiments(knobs, 0).items()}
    found = {"networks": len(records["networks"]), "limits": len(stacks(records))}
    return knobs.net_seeds >= LEAST_NETS and found == planned


def _rates(knobs: DeepReluLimit) -> dict[str, Prediction]:
    """Summable norms are sufficient; of random ones, summable squares."""
    unsummable = "1/2 - p, not summable, and it converges"
    laws = [
        *(("aligned", p, 1 - p, "1 - p") for p in knobs.aligned_powers),
        *(("random", p, 0.5 - p, unsummable) for p in knobs.random_powers if p <= 1),
        *(("random", p, 0.5 - p, "1/2 - p") for p in knobs.random_powers if p > 1),
        *(("bias", p, 0.5 - p, "1/2 - p") for p in knobs.bias_powers),
    ]
    return {
        f"{KINDS[kind]} n^-{power:g}, slope of d(n)": near(
            target, 0.05, at_worst(knobs, kind, power, target), note, against=abs(target)
        )
        for kind, power, target, note in laws
    }


def _without_limit(knobs: DeepReluLimit) -> dict[str, Prediction]:
    """Where the conditions fail: a slope at least zero, and so no limit."""
    slow = {
        0.0: "W_n -> I and b_n -> 0 are necessary here",
        0.4: "and not sufficient: slower than n^-1/2 they do not converge",
    }
    aligned = near(knobs.scale, 0.05, slope(knobs, "aligned", 1.0), "c: it diverges", control=True)
    return {"aligned perturbations n^-1, slope of d(n)": aligned} | {
        f"{KINDS[kind]} n^-{power:g}, slope of d(n)": no_less(
            0, slope(knobs, kind, power), slow[power], control=True
        )
        for kind in ("random", "bias")
        for power in DIVERGING
    }


def _training(knobs: DeepReluLimit) -> dict[str, Prediction]:
    deep, c = knobs.net_depth, knobs.net_scale
    fit = {name: at_best(knobs, "train_accuracy", name) for name in nets(knobs)}
    gain = at_best(knobs, "test_accuracy", "decaying") - at_best(knobs, "test_accuracy", "he")
    best = "at the learning rate of the best mean"
    ours = f"{deep} layers, I + {c:g} n^-1 G"
    alike = {
        "identity": ("the exact identity", "no perturbation is needed"),
        "matched": (
            "I + c' G with c'^2 L the sum of (c / n)^2",
            "no decay where the squares add up to it",
        ),
    }
    return {
        f"{ours}, training accuracy": no_less(0.7, fit["decaying"], best, against=0.2),
        f"{ours}, test accuracy less He's": no_less(
            0.4, gain, "by seed, each at its own best learning rate", against=0
        ),
        **{
            f"{deep} layers, {words}, training accuracy": no_less(
                0.7, fit[name], why, against=math.inf
            )
            for name, (words, why) in alike.items()
        },
        f"{deep} layers, I + {c:g} G without decay, training accuracy": at_most(
            0.5, fit["constant"], "squares that add up to much do not train", control=True
        ),
        f"{deep} layers, He, training accuracy": at_most(
            0.5, fit["he"], f"without the initialisation it does not train, {best}", control=True
        ),
        f"{knobs.shallow_depth} layers, He, training accuracy": no_less(
            0.7, fit["shallow"], f"the recipe trains a shallow network, {best}", control=True
        ),
    }


# ---- readings


def stacks(records: Records) -> pl.DataFrame:
    """One row a network or product."""
    return records["limits"].filter(layers=BURN_IN)


def slope(knobs: DeepReluLimit, kind: str, power: float, activations: str = "own") -> Reading:
    """The slope of log d(n) on log n; the survivors of many that died are no fair sample."""
    where: dict[str, Any] = {
        "kind": kind,
        "power": power,
        "activations": activations,
        "layers": BURN_IN,
    }
    read = of("limits", "slope", ~pl.col("diverged"), **where)
    return read.then(lambda found: found.known(0.9, of=knobs.seeds))


def at_worst(knobs: DeepReluLimit, kind: str, power: float, target: float) -> Reading:
    """Of all sequences of activation matrices, the slope that is farthest from its target."""
    return worst((slope(knobs, kind, power, own) for own in sequences(kind)), target)


def at_best(knobs: DeepReluLimit, column: str, name: str) -> Reading:
    """Of an initialisation, at the learning rate whose mean training accuracy is the highest.

    The mean, so that a rate at which some networks blow up is not the best.
    """
    where = nets(knobs)[name]

    def read(records: Records) -> PerSeed:
        runs = records["networks"].filter(**where)
        fits = runs.group_by("lr").agg(pl.col("train_accuracy").mean())
        best = fits.sort("train_accuracy", "lr", descending=[True, False]).head(1)
        return lab.per_seed(runs.join(best.select("lr"), on="lr"), column)

    return Reading(read)
