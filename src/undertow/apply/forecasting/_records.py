"""Forecast beside measurement: the surviving rank against what a run has recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from undertow import predict
from undertow.apply._start import initial_values, running_exponent
from undertow.predict import Initializer

# Names that records may use, and what they stand for here.
_NAMES = {"threshold_rank": "rank", "frobenius_norm": "norm", "layer": "name"}
_CLOSE = 0.1
_NEEDED = ("rows", "cols", "norm", "rank")
_SHOWN = (
    *("name", "step", "rows", "cols", "norm", "decay_exponent"),
    *("rank", "forecast", "error", "learned_rank"),
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Forecast and measured ranks.

    Attributes:
        table: a row per record: name, step, rows, cols, norm, decay_exponent, rank (measured),
            forecast, error (relative), and learned_rank where the records have it.
        mean_error: mean of |forecast - rank| / rank; NaN without records that it can be given for.
        dominated: the same over records where survivors are at least twice the learned part; None
            where the records do not have that.
        dominated_count: how many those are.
        dominated_within: the share of them whose error is at most a tenth.
    """

    table: pl.DataFrame
    mean_error: float
    dominated: float | None
    dominated_count: int
    dominated_within: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON can hold them."""
        return {
            "records": len(self.table),
            "mean_error": self.mean_error if math.isfinite(self.mean_error) else None,
            "mean_error_where_survivors_dominate": self.dominated,
            "records_where_survivors_dominate": self.dominated_count,
            "share_of_these_within_a_tenth": self.dominated_within,
        }

    def __repr__(self) -> str:
        said = (
            f"Forecast rank off by {self.mean_error:.1%} on average over {len(self.table)} records"
        )
        if self.dominated is not None:
            said += (
                f"; by {self.dominated:.1%} over the {self.dominated_count:,} where survivors are "
                f"at least twice the learned part, {self.dominated_within:.1%} of these within 10%"
            )
        return f"{said}."


def compare_records(
    records: pl.DataFrame | str | PathLike[str],
    *,
    lr: float | np.ndarray | None = None,
    weight_decay: float | None = None,
    momentum: float = 0.0,
    threshold: float | None = None,
    init: Initializer = "pytorch",
) -> Comparison:
    """The forecast of the surviving rank for each record of a run, beside the measured rank.

    The norm is the measured one, so what is tested is the initial spectrum and the decay.

    Args:
        records: a polars frame, a .parquet, .csv or .jsonl file, or a folder of `undertow
            reproduce low-rank`. Columns: rows, cols, norm (or frobenius_norm), rank (or
            threshold_rank), and either decay_exponent or step; optionally name (or layer),
            threshold, learned_rank, diverged.
        lr: one value per step, for records that have a step and no decay_exponent.
        weight_decay: for those, too.
        momentum: for those, of SGD.
        threshold: of the measured rank, where the records do not say.
        init: how the weights were initialised.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a column is missing or holds something else than numbers >= 0, there is no
            record left, or the file is of another kind.
    """
    frame = _usable(_read(records))
    frame = frame.with_columns(_exponents(frame, lr, weight_decay, momentum))
    if "threshold" not in frame.columns:
        frame = frame.with_columns(threshold=pl.lit(1e-3 if threshold is None else threshold))
    columns = ("rows", "cols", "decay_exponent", "norm", "threshold")
    forecasts = [
        predict.surviving_rank(
            initial_values(init, rows, cols), exponent, final_norm=norm, threshold=limit
        )
        for rows, cols, exponent, norm, limit in frame.select(columns).iter_rows()
    ]
    table = frame.with_columns(pl.Series("forecast", forecasts, dtype=pl.Int64)).with_columns(
        error=(pl.col("forecast") - pl.col("rank")).abs() / pl.col("rank")
    )
    table = table.select(name for name in _SHOWN if name in table.columns)
    nonzero = table.filter(pl.col("rank") > 0)
    mean = float(np.mean(nonzero["error"].to_numpy())) if len(nonzero) else math.nan
    if "learned_rank" not in table.columns:
        return Comparison(table, mean, None, 0)
    ruled = nonzero.filter(
        (pl.col("forecast") > 0) & (pl.col("forecast") >= 2 * pl.col("learned_rank"))
    )
    errors = ruled["error"].to_numpy()
    if not len(errors):
        return Comparison(table, mean, None, 0)
    within = float(np.mean(errors <= _CLOSE))
    return Comparison(table, mean, float(np.mean(errors)), len(errors), within)


def _usable(frame: pl.DataFrame) -> pl.DataFrame:
    """The records that have not diverged and lack nothing, columns named as they are here."""
    frame = frame.rename({a: b for a, b in _NAMES.items() if a in frame.columns})
    missing = [name for name in _NEEDED if name not in frame.columns]
    if missing:
        raise ValueError(
            f"records lack {', '.join(missing)}; they have {', '.join(frame.columns[:12])}"
        )
    if "diverged" in frame.columns:
        frame = frame.filter(~pl.col("diverged"))
    clock = "decay_exponent" if "decay_exponent" in frame.columns else "step"
    used = [*_NEEDED, *(name for name in (clock, "threshold") if name in frame.columns)]
    frame = frame.drop_nulls(used)
    numbers = [name for name in used if not frame[name].dtype.is_numeric()]
    if numbers:
        raise ValueError(
            f"records: {numbers[0]} must hold numbers; it is {frame[numbers[0]].dtype}"
        )
    for name in used:
        values = frame[name].cast(pl.Float64)
        if not (values.is_finite() & (values >= 0)).all():
            raise ValueError(f"records: {name} must hold finite numbers >= 0")
    if not len(frame):
        raise ValueError(f"records hold no row with {', '.join(used)} that has not diverged")
    return frame


def _exponents(
    frame: pl.DataFrame,
    lr: float | np.ndarray | None,
    weight_decay: float | None,
    momentum: float,
) -> pl.Series:
    if "decay_exponent" in frame.columns:
        return frame["decay_exponent"]
    if "step" not in frame.columns:
        raise ValueError("records need decay_exponent, or step together with the hyperparameters")
    if lr is None or weight_decay is None:
        raise ValueError("records without decay_exponent need lr and weight_decay")
    last = int(frame["step"].max() or 0)  # type: ignore[arg-type]
    rates = np.full(last, lr) if np.ndim(lr) == 0 else np.asarray(lr, dtype=np.float64)
    if len(rates) < last:
        raise ValueError(f"records go to step {last}, beyond the {len(rates)} steps of the run")
    running = running_exponent(rates, weight_decay, momentum)
    # A table from a file may hold counts as 1000.0.
    return pl.Series("decay_exponent", running[frame["step"].cast(pl.Int64).to_numpy()])


def _read(records: pl.DataFrame | str | PathLike[str]) -> pl.DataFrame:
    if isinstance(records, pl.DataFrame):
        return records
    place = Path(records)
    if not place.exists():
        raise FileNotFoundError(f"there is no file or folder {str(place)!r}")
    if place.is_dir():
        return _run_folder(place)
    try:
        if place.suffix == ".parquet":
            return pl.read_parquet(place)
        if place.suffix == ".csv":
            return pl.read_csv(place, infer_schema_length=None)
        if place.suffix in (".jsonl", ".ndjson"):
            return pl.read_ndjson(place, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{place.name} cannot be read: {str(error).splitlines()[0]}") from error
    raise ValueError(f"{place.name}: give a .parquet, .csv or .jsonl file, or a run's folder")


def _run_folder(folder: Path) -> pl.DataFrame:
    from undertow import lab

    try:
        store = lab.Store(folder, create=False)
    except lab.StoreError as error:
        raise ValueError(f"{folder} is no folder of a run: {error}") from error
    frame = store.records()
    if "rank" not in frame.columns:
        study = store.study or "another study"
        raise ValueError(f"{folder} holds records of {study}, which have no ranks; low-rank's do")
    return frame.filter(pl.col("rank").is_not_null())
