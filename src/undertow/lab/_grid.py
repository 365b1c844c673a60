"""Trials from a grid of values, the seeds they run with, and the records of several at once."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

Trial = TypeVar("Trial")

_APART = 10_000  # seeds of one base seed
_SEEDS = 2**63  # what a generator of PyTorch and a column of integers take


def seeds(base: int, count: int) -> list[int]:
    """`count` seeds that no other base seed gives; the first of a longer list are a shorter one.

    They are from 0 to 2^63 - 1, as the base is. Above 9 x 10^14 there are too few numbers for
    10,000 of each base's own: the seeds are then hashes, which differ almost surely.

    Raises:
        TypeError: a base that is no whole number.
        ValueError: one out of range, or more seeds than a base seed has, which is 10,000.
    """
    check_seed(base, "base")
    if count > _APART:
        raise ValueError(f"count must be at most {_APART:,}, the seeds of one base, got {count:,}")
    if base >= _SEEDS // _APART:
        hashes = np.random.SeedSequence(base).generate_state(_APART, np.uint64)[:count]
        return [int(found >> np.uint64(1)) for found in hashes]
    return [base * _APART + index for index in range(count)]


def check_seed(seed: int, name: str = "seed") -> None:
    """Refuse what seeds no generator.

    Raises:
        TypeError: no whole number.
        ValueError: one below 0, or of more than 63 bits.
    """
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"{name} must be a whole number, got {seed!r}")
    if not 0 <= seed < _SEEDS:
        raise ValueError(f"{name} must be from 0 to 2^63 - 1, got {seed}")


def grid(kind: type[Trial], knobs: Any, **axes: Iterable[Any]) -> list[Trial]:
    """A trial for each combination along the axes, the last axis fastest; no trial twice.

    Fields that no axis sets are the knobs of their names. A point of an axis that is a mapping sets
    the fields it names, whatever the axis is called; a later axis goes before an earlier one.

    Raises:
        TypeError: a field is neither a knob nor set by an axis, and has no default.
    """
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    shared = {name: getattr(knobs, name) for name in names if hasattr(knobs, name)}
    made: dict[Trial, None] = {}
    for point in itertools.product(*map(list, axes.values())):
        own = dict(shared)
        for name, value in zip(axes, point, strict=True):
            own |= value if isinstance(value, Mapping) else {name: value}
        made[kind(**own)] = None
    return list(made)


def rows_of(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A record for each of several runs, from facts that hold a value for each: `[runs, ...]`.

    Values are lists, arrays or tensors; a value for all runs is one that is none of these.
    """
    plain = {name: _listed(values) for name, values in facts.items()}
    counts = {len(values) for values in plain.values() if isinstance(values, list)}
    if len(counts) != 1:
        raise ValueError(f"facts must hold as many values each, got {sorted(counts)}")
    return [
        {
            name: values[run] if isinstance(values, list) else values
            for name, values in plain.items()
        }
        for run in range(counts.pop())
    ]


def _listed(values: Any) -> Any:
    if hasattr(values, "tolist"):
        return values.tolist()
    return list(values) if isinstance(values, list | tuple) else values
