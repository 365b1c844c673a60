"""The figures of deep-relu-limit: rates in depth, and accuracies of deep networks."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.deep_relu_limit import DeepReluLimit
from undertow.claims.deep_relu_limit.experiments import nets
from undertow.claims.deep_relu_limit.predictions import KINDS, at_best, stacks
from undertow.lab import Charts, figure, intervals, means

draw = Charts(
    layers="n, layers",
    doubling="d(n)",
    squares="sum of squares of ||W_n - I||",
    accuracy="training accuracy",
)
_EDGE = 0.05  # where a sum of zero is drawn


@figure("How fast the outputs settle as layers are added")
def rates(records: Records, knobs: DeepReluLimit) -> Any:
    """d(n) = ||N_2n - N_n|| of the input that moves most: points are geometric means over networks,
    dashed lines the predicted powers through the first point (none at p = 0.4, which must not
    converge). Aligned perturbations need powers above 1 and fall by the power less one; random ones
    need powers above 1/2 only and fall by the power less one half.
    """
    d = pl.col("doubling")
    shown = pl.col("kind").is_in(list(KINDS)), d > 0, d.is_finite(), pl.col("power") > 0
    own = ("kind", "power")
    networks = records["limits"].filter(*shown, activations="own")
    means = networks.group_by(*own, "layers").agg(d.log().mean().exp())
    growth = pl.col("layers") / pl.col("layers").first().over(own)
    law = d.first().over(own) * growth.pow(predicted(knobs))
    rows = means.sort("power", "kind", "layers").with_columns(predicted=law)
    if rows.is_empty():
        return None
    named = rows.with_columns(
        pl.col("kind").replace_strict(KINDS), power=pl.format("p = {}", "power")
    )
    return draw.measured_against_predicted(
        named, "layers", "doubling", "predicted", "power", log="xy", columns="kind"
    )


@figure("It is how near the identity a deep plain network starts that makes it trainable")
def training(records: Records, knobs: DeepReluLimit) -> Any:
    """Training accuracy after the same number of steps, each initialisation at its best learning
    rate, median over seeds with its interval, over the sum of the squares of the perturbations'
    norms. A network that blew up counts as 0. The identity, whose sum is 0, is at the left edge.
    """
    near = {name: net for name, net in nets(knobs).items() if net["init"] != "he"}
    fits = {name: at_best(knobs, "train_accuracy", name)(records) for name in near}
    sums = {name: squares(knobs, net["net_scale"], net["net_power"]) for name, net in near.items()}
    words = {
        name: "{net_scale:.2g} n^-{net_power:g} G".format(**net).replace(" n^-0 ", " ")
        for name, net in near.items()
    } | {"identity": "identity"}
    rows = intervals(fits, "name", value="accuracy").with_columns(
        network=pl.col("name").replace_strict(words),
        squares=pl.col("name").replace_strict(sums, return_dtype=pl.Float64).clip(_EDGE),
    )
    return draw.points(rows, "squares", "accuracy", "network", log="x", domain=(0, 1))


def squares(knobs: DeepReluLimit, scale: float, power: float) -> float:
    """What the squares of the perturbations' norms add up to at the start of a training."""
    layers = range(1, knobs.net_depth + 1)
    return scale**2 * math.fsum(n ** (-2 * power) for n in layers)


FIGURES = (rates, training)


def predicted(knobs: DeepReluLimit) -> pl.Expr:
    """The power of n as which d(n) goes; null where there is only no limit."""
    aligned, power = pl.col("kind") == "aligned", pl.col("power")
    return (
        pl.when(aligned, power == 1)
        .then(knobs.scale)
        .when(aligned)
        .then(1 - power)
        .when(power > 0.5)
        .then(0.5 - power)
    )


def table(records: Records, knobs: DeepReluLimit) -> pl.DataFrame:
    """Slopes beside their predictions, then accuracies at each learning rate."""
    limits = stacks(records).filter(pl.col("kind").is_in(list(KINDS)))
    names = {"slope of d(n)": pl.col("slope").median(), "spread over seeds": pl.col("slope").std()}
    own = ("kind", "activations", "power")
    slopes = limits.group_by(own).agg(**names).with_columns(predicted=predicted(knobs))
    columns = {"train_accuracy": "train accuracy", "test_accuracy": "test accuracy"}
    columns |= {"diverged": "share diverged"}
    trained = means(
        records["networks"], ["init", "net_scale", "net_power", "net_depth", "lr"], columns
    )
    return pl.concat([slopes.sort(own), trained.rename({"init": "kind"})], how="diagonal")
