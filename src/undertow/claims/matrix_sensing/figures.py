"""The figures of matrix-sensing: closest approaches, phases, times, and numbers of sensors."""

from __future__ import annotations

from typing import Any

import polars as pl

from undertow import lab, predict
from undertow.claims import Records
from undertow.claims.matrix_sensing import MatrixSensing
from undertow.claims.matrix_sensing.experiments import CURVE_EVERY
from undertow.claims.matrix_sensing.predictions import (
    CLOSEST,
    NEARNESS,
    SMALL,
    TRUNCATED,
    power_laws,
    shifts,
)
from undertow.lab import Charts, beside, figure, labels

draw = Charts(
    scale="scale of the start",
    distance="closest approach / ||Z_s||",
    time="steps x lr",
    distances="||U U^T - Z_s|| / ||Z_s||",
    predicted="predicted: log(1 / scale) x arrival",
    measured="measured: steps x lr to half the eigenvalue",
    measurements="measurements",
    apart="||Z_s - X*_s||",
    final_error="error of recovery",
)


@figure("A power of the scale, toward the minimiser of the measured loss")
def approach(records: Records, knobs: MatrixSensing) -> Any:
    """How near gradient descent comes to the minimiser of rank s. The dashed line has the slope
    that the spectra at the saddles predict for small scales; the truncated SVD is missed by the
    same amount at any scale. With every entry measured the law is another. With a column too few
    the way is the same, up to the minimiser at which it must end.
    """
    rank = len(knobs.spectrum)
    sensing, identity = (
        records[name].filter(pl.col("phase") < rank) for name in ("sensing", "identity")
    )
    narrow = records["narrow"].filter(pl.col("phase") < rank - 1)
    least = min(knobs.scales)
    anchors = sensing.filter(scale=least).select("seed", "phase", anchor="closest")
    small = sensing.filter(pl.col("scale") <= SMALL).join(anchors, on=["seed", "phase"])
    slope = pl.col("anchor") * ((pl.col("scale") / least).log() * pl.col("exponent")).exp()
    parts = [
        (sensing, CLOSEST, "to Z_s", "measured"),
        (sensing, TRUNCATED, "to X*_s (truncated SVD)", "measured"),
        (small, slope, "to Z_s", "predicted slope"),
        (identity, CLOSEST, "to Z_s, every entry measured", "measured"),
        (narrow, CLOSEST, f"to Z_s, {rank - 1} columns", "measured"),
    ]
    rows = pl.concat(
        frame.group_by("phase", "scale")
        .agg(distance=(value / pl.col("size")).mean())
        .sort("phase", "scale")
        .with_columns(
            target=pl.lit(target), kind=pl.lit(kind), panel=pl.format("phase {}", "phase")
        )
        for frame, value, target, kind in parts
    )
    return draw.lines(rows, "scale", "distance", "target", dash="kind", log="xy", columns="panel")


@figure("One minimiser after the other")
def phases(records: Records, knobs: MatrixSensing) -> Any:
    """One problem from starts of several sizes: the smaller the start, the longer descent stays at
    each minimiser and the nearer it comes.
    """
    chosen = {max(knobs.scales), 1e-3, 1e-6, min(knobs.scales)}
    runs = records["sensing"].filter(pl.col("seed") == pl.col("seed").min())
    curves = runs.filter(pl.col("scale").is_in(chosen)).explode("distances")
    shown = curves.select(
        "scale",
        "phase",
        "distances",
        time=pl.int_range(pl.len()).over("scale", "phase") * CURVE_EVERY * pl.col("lr"),
        target=pl.format("Z_{}", "phase"),
        start=labels("start of size {:g}", "scale"),
    ).filter(pl.col("time") <= 0.6 * knobs.steps * knobs.lr)
    ordered = shown.sort("scale", "phase", "time", descending=[True, False, False])
    ends = (1e-4, 2)
    return draw.lines(ordered, "time", "distances", "target", log="y", columns="start", domain=ends)


@figure("When each eigenvalue is learned")
def times(records: Records, knobs: MatrixSensing) -> Any:
    """Each point is one run. The predicted time adds up the stays at the saddles from their growth
    rates; the offset from the diagonal is a constant, not a slope.
    """
    small = records["sensing"].filter(pl.col("scale") <= SMALL).drop_nulls("learned_step")
    points = small.sort("phase").select(
        measured=pl.col("learned_step") * pl.col("lr"),
        predicted=-pl.col("scale").log() * pl.col("arrival"),
        phase=pl.format("phase {}", "phase"),
    )
    return draw.diagonal(points, "predicted", "measured", "phase")


@figure("More measurements: truer minimisers, and recovery that needs no bias")
def amounts(records: Records, knobs: MatrixSensing) -> Any:
    """Left: how far the minimiser of rank s is from the truncation of X*, root mean square over
    problems, and predicted. Right: the error of recovery, a point a problem. Up to the first line
    X* has more dimensions than there are measurements; beyond the second no other positive
    semidefinite matrix fits them, so that a start of size 1 recovers it in time, too.
    """
    keys, square = ("phase", "measurements"), pl.col("apart").pow(2)
    rms = records["amounts"].group_by(keys).agg(square.mean().sqrt()).sort(keys)
    named = shifts(rms, knobs).with_columns(name=pl.format("phase {}", "phase"))
    left = draw.measured_against_predicted(
        named, "measurements", "apart", "shift", "name", log="xy"
    )
    window = predict.recovery_window(knobs.dim, len(knobs.spectrum))
    ended = records["recovered"].with_columns(start=labels("start of size {:g}", "scale"))
    right = draw.points(ended, "measurements", "final_error", "start", log="y")
    for limit in (window.freedom, window.positive):
        right += draw.level(limit, "x", across="measurements")
    return beside(left, right)


FIGURES = (approach, phases, times, amounts)


def table(records: Records, knobs: MatrixSensing) -> pl.DataFrame:
    """Closest approaches by phase and scale, with exponents and times beside their predictions."""
    shown = {"nearness": "closest to Z_s", "off": "closest to X*_s", "closest_step": "at step"}
    relative = {"nearness": NEARNESS, "off": TRUNCATED / pl.col("size")}
    near = lab.means(records["sensing"].with_columns(**relative), ["phase", "scale"], shown)
    names = {"limit": "exponent", "exponent": "predicted exponent", "time": "time"}
    names["arrival"] = "predicted time"
    laws = power_laws(records["sensing"]).group_by("phase")
    means = laws.agg(pl.col(column).mean().alias(name) for column, name in names.items())
    return near.drop("runs").join(means, on="phase").sort("phase", -pl.col("scale"))
