"""Columns that hold one kind of value: which trials' records do not go with those of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import polars as pl

_Kind = tuple[int, str | None]  # depth of lists, and what is in them where that is known


def unlike(
    trials: Mapping[str, bytes], schemas: Mapping[bytes, pl.Schema], fields: Collection[str]
) -> dict[str, str]:
    """Why the records of some trials cannot stand in one table with those of most.

    Numbers go with numbers, whatever their type, and what is null or an empty list with all.
    Where as many trials have one kind as have another, the first are right.

    Args:
        trials: of each trial of an experiment, the kind of its records' file.
        schemas: the schema of each kind.
        fields: columns of the trials themselves, which may be of any kind.
    """
    kinds = {
        kind: {name: _kind(dtype) for name, dtype in schemas[kind].items() if name not in fields}
        for kind in dict.fromkeys(trials.values())
    }
    if len(kinds) < 2:
        return {}
    counts: dict[str, Counter[_Kind]] = {}
    for shape in trials.values():
        for column, kind in kinds[shape].items():
            if kind[1] is not None:
                counts.setdefault(column, Counter())[kind] += 1
    usual = {column: counted.most_common(1)[0][0] for column, counted in counts.items()}
    found: dict[str, str] = {}
    for trial, shape in trials.items():
        for column, kind in kinds[shape].items():
            if column in usual and not _goes_with(kind, usual[column]):
                found[trial] = (
                    f"record column {column!r} holds {_words(kind)}, that of other trials"
                    f" {_words(usual[column])}; give one kind of value per column"
                )
                break
    return found


def _kind(dtype: pl.DataType) -> _Kind:
    if isinstance(dtype, pl.List | pl.Array):
        depth, leaf = _kind(dtype.inner)  # type: ignore[arg-type]
        return depth + 1, leaf
    if dtype == pl.Null:
        return 0, None
    return 0, "numbers" if dtype.is_numeric() or dtype == pl.Boolean else "text"


def _goes_with(kind: _Kind, usual: _Kind) -> bool:
    depth, leaf = kind
    return depth <= usual[0] if leaf is None else kind == usual


def _words(kind: _Kind) -> str:
    depth, leaf = kind
    return "lists of " * depth + (leaf or "nothing")
