"""Knobs: the numbers that a study can be turned by, each with its bounds in its annotation.

    @dataclass(frozen=True)
    class Coins(Knobs):
        flips: Annotated[tuple[int, ...], at_least(1), DISTINCT] = (64, 256)  # throws of each coin

The words of an error come from the bound. Nothing here imports anything heavy.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Self, get_args, get_type_hints


@dataclass(frozen=True)
class Bound:
    """What a knob's value must be, in words and as a test; of each item of a tuple.

    With `whole` the tuple itself is tested.
    """

    words: str
    holds: Callable[[Any], bool]
    whole: bool = False

    def allows(self, value: Any) -> bool:
        """Whether a knob may have this value; what cannot be compared it may not."""
        several = isinstance(value, tuple) and not self.whole
        try:
            return all(map(self.holds, value if several else (value,)))
        except TypeError:
            return False


def at_least(least: float) -> Bound:
    """`least` or more."""
    return Bound(f"at least {least:g}", lambda value: value >= least)


def above(least: float) -> Bound:
    """More than `least`."""
    return Bound(f"above {least:g}", lambda value: value > least)


def up_to(most: float) -> Bound:
    """`most` or less."""
    return Bound(f"at most {most:g}", lambda value: value <= most)


def between(low: float, high: float) -> Bound:
    """Strictly between the two."""
    return Bound(f"between {low:g} and {high:g}", lambda value: low < value < high)


def one_of(*choices: Any) -> Bound:
    """One of a few values."""
    return Bound(f"one of {', '.join(map(str, choices))}", lambda value: value in choices)


def some(least: int = 1) -> Bound:
    """A tuple of so many values or more."""
    words = f"at least {least} value{'s' * (least > 1)}"
    return Bound(words, lambda values: len(values) >= least, whole=True)


DISTINCT = Bound("values without one twice", lambda v: len(set(v)) == len(v), whole=True)
"""A bound on a tuple: no value twice."""
ASCENDING = Bound("ascending", lambda v: all(a < b for a, b in pairwise(v)), whole=True)
"""A bound on a tuple: each value above the one before."""
Count = Annotated[int, at_least(1)]
"""The type of a knob that counts something: 1 or more."""
Seeds = Annotated[int, at_least(2)]
"""The type of a number of repetitions: 2 or more, so that there is an interval."""
Share = Annotated[float, between(0, 1)]
"""The type of a share: strictly between 0 and 1."""


class Knobs:
    """What a frozen dataclass of knobs inherits.

    A knob may itself be a frozen dataclass, such as a source of data: its fields count as knobs of
    their own names. Rules between knobs go into `rules`.

    Raises:
        ValueError: on construction, for a value out of its bounds; the message names the knob,
            says what it must be and what was given.
        TypeError: on construction, where two knobs have one name, such as those of two texts.
    """

    def rules(self) -> Mapping[str, bool]:
        """What must hold between knobs: the message of an error, and whether it holds."""
        return {}

    def __post_init__(self) -> None:
        """See that every knob has a name of its own, and hold it against its bounds; the rules."""
        self._check_names()
        for name, bounds in _bounds(type(self)).items():
            value = getattr(self, name)
            for bound in bounds:
                if value is not None and not bound.allows(value):
                    raise ValueError(f"{name} must be {bound.words}, got {value}")
        for message, holds in self.rules().items():
            if not holds:
                raise ValueError(message)

    def flat(self) -> dict[str, Any]:
        """Every knob by name, those of nested dataclasses among them."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            nested = dataclasses.is_dataclass(value)
            found |= _flat_fields(value) if nested else {field.name: value}
        return found

    def _check_names(self) -> None:
        whose: dict[str, str] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            nested = _flat_fields(value) if dataclasses.is_dataclass(value) else (field.name,)
            for name in nested:
                if name in whose:
                    raise TypeError(
                        f"knobs must have names of their own, got {name!r} in {whose[name]} and in"
                        f" {field.name}; give one of them as a plain knob"
                    )
                whose[name] = field.name

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """The same with some knobs, by their flat names, set to other values.

        Raises:
            ValueError: no knob has that name, or a value is out of bounds.
        """
        known = self.flat()
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(name, known) or known
                raise ValueError(f"it has no knob {name!r}; it has {', '.join(close)}")
        changed: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if dataclasses.is_dataclass(value):
                own = {n: values[n] for n in _flat_fields(value) if n in values}
                if own:
                    changed[field.name] = dataclasses.replace(value, **own)  # type: ignore[type-var]
            elif field.name in values:
                changed[field.name] = values[field.name]
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]


def comments(kind: type) -> dict[str, str]:
    """What the comments beside or above a dataclass's fields say, by field.

    Empty where the source is not to be had.
    """
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):
        return {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {t.start[0]: t.string.lstrip("#: ") for t in tokens if t.type == tokenize.COMMENT}
    lines = source.splitlines()
    found: dict[str, str] = {}
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above = node.lineno - 1
        while above in said and lines[above - 1].lstrip().startswith("#"):
            above -= 1
        own = [said[n] for n in range(above + 1, node.lineno)]
        own += [said[n] for n in range(node.lineno, (node.end_lineno or 0) + 1) if n in said]
        if own:
            found[node.target.id] = " ".join(own)
    return found


def _flat_fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _bounds(kind: type) -> dict[str, tuple[Bound, ...]]:
    hints = get_type_hints(kind, include_extras=True)
    found = {name: tuple(_bounds_within(hint)) for name, hint in hints.items()}
    return {name: bounds for name, bounds in found.items() if bounds}


def _bounds_within(hint: Any) -> Iterator[Bound]:
    """The bounds of a type, of its items (`tuple[Count, ...]`), of what may be None."""
    yield from (extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Bound))
    for part in get_args(hint):
        yield from _bounds_within(part)
