"""Over the records of each cell: means, and lines such as power laws through logarithms; orders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl


def slopes(
    frame: pl.DataFrame,
    x: pl.Expr,
    y: pl.Expr,
    *conditions: pl.Expr | str,
    by: Sequence[str] = ("seed",),
    smallest: int | None = None,
    **where: Any,
) -> pl.DataFrame:
    """The least-squares line of y on x in each cell: `slope`, `misfit` (1 - R^2) and `points`.

    NaN where a cell has fewer than two x.

    Args:
        frame: records.
        x: an expression of columns; a row where it or y is null is not there.
        y: likewise.
        conditions: expressions or names of boolean columns, all of which must hold.
        by: the columns that make a cell, in whose order they come.
        smallest: how many rows of a cell to fit, those of the smallest x; by default all.
        where: what columns must equal.
    """
    if frame.is_empty():
        names = *by, "slope", "misfit", "points"
        return pl.DataFrame(schema=dict.fromkeys(names, pl.Float64))
    rows = frame.filter(*conditions, **where).select(*by, x=x, y=y)
    there = pl.col("x").is_not_null() & pl.col("y").is_not_null()
    chosen = (pl.col(name).filter(there).sort_by(pl.col("x").filter(there)) for name in "xy")
    across, up = (values if smallest is None else values.head(smallest) for values in chosen)
    fits = rows.group_by(by).agg(
        several=across.n_unique() > 1,  # rounding makes a line of equal x, too
        slope=pl.cov(across, up) / across.var(),
        misfit=1 - pl.corr(across, up) ** 2,
        points=across.len(),
    )
    lines = pl.when("several").then(pl.col("slope", "misfit"))
    fits = fits.with_columns(lines).drop("several")
    return fits.with_columns(pl.col("slope", "misfit").fill_null(math.nan)).sort(by)


def means(
    frame: pl.DataFrame, by: Sequence[str], columns: Mapping[str, str] | Sequence[str]
) -> pl.DataFrame:
    """The means of some columns in each cell, and the number of its trials, in the cells' order.

    Args:
        frame: records.
        by: the columns that make a cell.
        columns: which to average; as a mapping, what each is called.
    """
    names = columns if isinstance(columns, Mapping) else {name: name for name in columns}
    averaged = [pl.col(column).mean().alias(name) for column, name in names.items()]
    runs = pl.col("trial").n_unique().alias("runs")
    return frame.group_by(by).agg(*averaged, runs).sort(by)


def leading_power(
    sizes: Sequence[float], errors: Sequence[float] | np.ndarray, powers: tuple[float, float]
) -> float:
    """The power of x in the leading term of errors C x^p + D x^q, measured without D (Richardson).

    Of two sizes a and b, e(b) (a / b)^q - e(a) = C a^p ((b / a)^(p - q) - 1) is free of D. The
    slope of its logarithm between two such pairs is p where p and q are as given; the raw errors'
    own slope is bent by D.

    Args:
        sizes: three x, such as steps or their reciprocals, from coarse to fine or back.
        errors: one for each, with its sign.
        powers: p and q as theory has them. p itself matters only where sizes are no geometric
            progression.
    """
    x, found, (leading, following) = np.asarray(sizes, float), np.asarray(errors), powers
    if x.shape != (3,) or found.shape != (3,):
        raise ValueError(f"sizes and errors must be three each, got {x.shape} and {found.shape}")
    ratios = x[1:] / x[:-1]
    eliminated = found[1:] * ratios**-following - found[:-1]
    first, second = np.abs(eliminated / (ratios ** (leading - following) - 1))
    return float(np.log(second / first) / np.log(ratios[0]))
