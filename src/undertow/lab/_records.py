"""Tidy records: the rows that a trial gave, in one table with the trial's own fields.

A trial's records are a Parquet file, sealed under the trial's identity.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from undertow.lab._seal import kind_of, seal_parquet
from undertow.lab._trial import trial_columns

Record = Mapping[str, Any]
LARGEST = 2**31  # bytes of a trial's file; a larger one is not read

_SCALARS = (bool, int, float, str)
_COMPRESSED_FROM = 2**14  # bytes; compressing less costs more time than it saves space
# What is decoded at once: a call to the reader costs more than a small file.
_FILES_AT_ONCE, _BYTES_AT_ONCE = 250, 2**26


def encode_records(identity: str, trial: Any, rows: Sequence[Record]) -> bytes:
    """A trial's Parquet file: columns `trial` (its identity), its fields, then the records' keys.

    A value is None, a boolean, a number, a string, or a list of these at any depth; NumPy scalars,
    arrays and tensors are taken by their `tolist()`. Integers become floats in a column that also
    holds floats. A key that some rows lack is null there. No rows is a result too.

    Raises:
        TypeError: a record is not flat, or a column mixes kinds; the message names the column.
        ValueError: a record's key is also a field of the trial, or they take more than 2 GiB.
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
    frame = pl.DataFrame(series)
    buffer = io.BytesIO()
    small = frame.estimated_size() < _COMPRESSED_FROM
    frame.write_parquet(buffer, compression="uncompressed" if small else "zstd", statistics=False)
    if buffer.tell() > LARGEST - 2**10:
        raise ValueError(f"records: {buffer.tell():,} bytes are more than a trial's file may hold")
    return seal_parquet(buffer.getvalue(), identity, repr(frame.schema))


class Loaded:
    """The records of many trials. Files of one schema are decoded together, some at a time.

    Attributes:
        trials: whose files they are, in the order in which they were added.
    """

    def __init__(self) -> None:
        self.trials: dict[str, bytes] = {}  # to the kind of the file
        self._waiting: dict[bytes, list[bytes]] = {}
        self._frames: dict[bytes, list[pl.DataFrame]] = {}
        self._files = self._bytes = 0

    def add(self, trial: str, content: bytes) -> None:
        """Take one more file, whose seal has been checked."""
        kind = self.trials[trial] = kind_of(content)
        self._waiting.setdefault(kind, []).append(content)
        self._files += 1
        self._bytes += len(content)
        if self._files >= _FILES_AT_ONCE or self._bytes >= _BYTES_AT_ONCE:
            self._decode()

    def frame(self) -> pl.DataFrame:
        """The rows of all trials, in order; a column that some lack is null there.

        Raises:
            ValueError: a column is a list in one file and a scalar in another.
        """
        self._decode()
        joined = join_records(frame for alike in self._frames.values() for frame in alike)
        if len(self._frames) < 2:
            return joined
        place = {trial: index for index, trial in enumerate(self.trials)}
        places = np.array([place[trial] for trial in joined["trial"]], dtype=np.int64)
        return joined[np.argsort(places, kind="stable")]

    def schemas(self) -> dict[bytes, pl.Schema]:
        """The schema of each kind of file."""
        self._decode()
        return {kind: frames[0].schema for kind, frames in self._frames.items()}

    def without(self, trials: Collection[str]) -> Loaded:
        """The same without some trials."""
        self._decode()
        rest = Loaded()
        rest.trials = {trial: kind for trial, kind in self.trials.items() if trial not in trials}
        left_out, kinds = pl.col("trial").is_in(list(trials)), set(rest.trials.values())
        rest._frames = {
            kind: [frame.filter(~left_out) for frame in frames]
            for kind, frames in self._frames.items()
            if kind in kinds
        }
        return rest

    def _decode(self) -> None:
        for kind, contents in self._waiting.items():
            self._frames.setdefault(kind, []).append(pl.read_parquet(contents))
        self._waiting = {}
        self._files = self._bytes = 0


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
    if hasattr(value, "tolist") and type(plain := value.tolist()) is not type(value):
        return _plain(plain, column)  # a long double stays one: no Python number holds it
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
