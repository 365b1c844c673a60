"""The options of a command as the fields of a dataclass, and how each is written.

A claim's knobs are such fields too. A field's type says what its flag takes.
"""

from __future__ import annotations

import dataclasses
import types
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Shown:
    """How help shows the value of a field; one that is positional has no flag."""

    metavar: str
    positional: bool = False


def positional_fields(kind: type) -> list[str]:
    """Those that have no flag, in the order of their words."""
    hints = get_type_hints(kind, include_extras=True)
    return [name for name, hint in hints.items() if (shown := how_shown(hint)) and shown.positional]


def flag_fields(kind: type) -> list[str]:
    """The fields that have a flag: a nested dataclass has none, its own fields do."""
    hints = get_type_hints(kind)
    fields = [field.name for field in dataclasses.fields(kind)]
    skipped = {*positional_fields(kind), *(n for n in fields if dataclasses.is_dataclass(hints[n]))}
    return [name for name in fields if name not in skipped]


def how_shown(hint: Any) -> Shown | None:
    """What a field's annotation says of it."""
    return next((extra for extra in get_args(hint)[1:] if isinstance(extra, Shown)), None)


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether it has no default."""
    return field.default is MISSING and field.default_factory is MISSING


def spelled(kind: type, name: str) -> str:
    """`PATH`, or `--batch-size N`."""
    metavar = metavar_of(kind, name)
    return metavar if name in positional_fields(kind) else f"--{name.replace('_', '-')} {metavar}"


def metavar_of(kind: type, name: str) -> str:
    """What stands for its value in help."""
    hint = get_type_hints(kind, include_extras=True)[name]
    shown = how_shown(hint)
    return shown.metavar if shown else placeholder(get_type_hints(kind)[name])


def without_none(hint: Any) -> Any:
    """A type that is there or not, as what it is where it is there."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint


def placeholder(hint: Any) -> str:
    """What stands for a value in help; short, so that many options fit on a screen."""
    plain = without_none(hint)
    if get_origin(plain) is tuple:
        items = get_args(plain)
        if Ellipsis in items:
            return f"{placeholder(items[0])}..."
        return " ".join(map(placeholder, items))
    if get_origin(plain) is Literal:
        return "NAME"
    return {int: "N", float: "X", Path: "PATH"}.get(plain, "TEXT")


def takes(hint: Any) -> str:
    """What a flag takes, in words."""
    plain = without_none(hint)
    if get_origin(plain) is tuple:
        items = get_args(plain)
        if Ellipsis in items:
            return f"a list, each {takes(items[0])}"
        return " and ".join(map(takes, items))
    if get_origin(plain) is Literal:
        return f"one of {', '.join(map(str, get_args(plain)))}"
    return {int: "a whole number", float: "a number", Path: "a path"}.get(plain, "a value")
