"""The figures of deep-relu-limit: rates in depth, and accuracies of deep networks."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow.claims import Records
from undertow.claims.deep_relu_limit import DeepReluLimit
from undertow.claims.deep_relu_limit.predictions import KINDS, networks
from undertow.lab import Charts, figure, means

draw = Charts(layers="n, layers", doubling="d(n)", lr="learning rate", accuracy="training accuracy")


@figure("How fast the outputs settle as layers are added")
def rates(records: Records, knobs: DeepReluLimit) -> Any:
    """d(n) = ||N_2n - N_n||: points are geometric means over networks, dashed lines the predicted
    powers through the first point (none at p = 0.4, which must not converge). Aligned
    perturbations need powers above 1 and fall by the power less one; random ones need powers above
    1/2 only and fall by the power less one half.
    """
    d = pl.col("doubling")
    shown = pl.col("kind").is_in(list(KINDS)), d > 0, d.is_finite(), pl.col("power") > 0
    own = ("kind", "power")
    means = records["limits"].filter(*shown).group_by(*own, "layers").agg(d.log().mean().exp())
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


@figure("Starting near the identity makes a very deep plain network trainable")
def training(records: Records, knobs: DeepReluLimit) -> Any:
    """Training accuracy after the same number of steps, mean and range over seeds; a network that
    blew up counts as 0.
    """
    fit = pl.col("train_accuracy")
    network = pl.format("{}, {} layers", "init", "net_depth")
    runs = records["networks"].group_by("lr", network=network, maintain_order=True)
    rows = runs.agg(accuracy=fit.mean(), low=fit.min(), high=fit.max())
    return draw.lines(rows, "lr", "accuracy", "network", log="x", domain=(0, 1))


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
    limits = networks(records).filter(pl.col("kind").is_in(list(KINDS)))
    names = {"slope of d(n)": pl.col("slope").mean(), "spread over seeds": pl.col("slope").std()}
    slopes = limits.group_by("kind", "power").agg(**names).with_columns(predicted=predicted(knobs))
    columns = {"train_accuracy": "train accuracy", "test_accuracy": "test accuracy"}
    columns |= {"diverged": "share diverged"}
    nets = means(records["networks"], ["init", "net_depth", "lr"], columns)
    return pl.concat([slopes.sort("kind", "power"), nets.rename({"init": "kind"})], how="diagonal")
