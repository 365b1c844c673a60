"""Tidy records: the rows that a trial gave, in one table with the trial's own fields."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from undertow.lab._trial import trial_columns

Record = Mapping[str, Any]

_SCALARS = (bool, int, float, str)


def encode_records(identity: str, trial: Any, rows: Sequence[Record]) -> bytes:
    """A trial's Parquet file: columns `trial` (its identity), its fields, then the records' keys.

    A value is None, a boolean, a number, a string, or a list of these at any depth; NumPy scalars,
    arrays and tensors are taken by their `tolist()`. Integers become floats in a column that also
    holds floats. A key that some rows lack is null there. No rows is a result too.

    Raises:
        TypeError: a record is not flat, or a column mixes kinds; the message names the column.
        ValueError: a record's key is also a field of the trial.
    """
    fields = {"trial": identity, **trial_columns(trial)}
    columns: dict[str, list[Any]] = {}
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"record {index}: expected a dictionary, got {type(row).__qualname__}")
        for key, value in row.items():
            if not isinstance(key, str):
                raise TypeError(f"record {index}: column names must be strings, got {key!r}")
            if key in fields:
                raise ValueError(
                    f"record {index}: {key!r} is already a column, from the trial itself; rename it"
                )
            column = columns.setdefault(key, [None] * len(rows))
            column[index] = _plain(value, key)
    series = [
        pl.Series(name, [value]).new_from_index(0, len(rows)) for name, value in fields.items()
    ]
    series += [pl.Series(name, _unified(name, values)) for name, values in columns.items()]
    buffer = io.BytesIO()
    pl.DataFrame(series).write_parquet(buffer)
    return buffer.getvalue()


def join_records(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The rows of all frames in the order given; a column that some lack is null there.

    Raises:
        ValueError: a column is a list in one frame and a scalar in another.
    """
    given = list(frames)
    if not given:
        return pl.DataFrame(schema={"trial": pl.String})
    try:
        return pl.concat(given, how="diagonal_relaxed")
    except pl.exceptions.SchemaError as error:
        raise ValueError(
            f"records: a column holds values of different kinds in different trials: {error}"
        ) from error


def _plain(value: Any, column: str) -> Any:
    if value is None or isinstance(value, _SCALARS):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, column) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), column)
    raise TypeError(
        f"record column {column!r}: cannot store {type(value).__qualname__}; "
        "give None, a boolean, a number, a string, or a list of these"
    )


def _unified(column: str, values: list[Any]) -> list[Any]:
    """One kind of value throughout: polars itself would cut 0.5 to 0 beside nested integers."""
    kinds: set[type] = set()
    _collect_kinds(values, kinds)
    if kinds == {int, float}:
        return _floats(values)
    if len(kinds) > 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(
            f"record column {column!r}: mixes {names}; give one kind of value per column"
        )
    return values


def _collect_kinds(value: Any, kinds: set[type]) -> None:
    if isinstance(value, list):
        for item in value:
            _collect_kinds(item, kinds)
    elif value is not None:
        kinds.add(next(kind for kind in _SCALARS if isinstance(value, kind)))


def _floats(value: Any) -> Any:
    if isinstance(value, list):
        return [_floats(item) for item in value]
    return None if value is None else float(value)
