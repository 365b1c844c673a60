"""The fields of a dataclass as options: which have a flag, and how what they take is written."""

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


def positional(kind: type) -> list[str]:
    """The fields that are words without a flag, in order."""
    hints = get_type_hints(kind, include_extras=True)
    return [name for name, hint in hints.items() if (own := shown(hint)) and own.positional]


def flag_fields(kind: type) -> list[str]:
    """The fields that have a flag: a nested dataclass has none, its own fields do."""
    hints = get_type_hints(kind)
    fields = [field.name for field in dataclasses.fields(kind)]
    skipped = {*positional(kind), *(n for n in fields if dataclasses.is_dataclass(hints[n]))}
    return [name for name in fields if name not in skipped]


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return field.default is MISSING and field.default_factory is MISSING


def spelled(kind: type, name: str) -> str:
    """`PATH`, or `--batch-size N`."""
    value = metavar(kind, name)
    return value if name in positional(kind) else f"--{name.replace('_', '-')} {value}"


def metavar(kind: type, name: str) -> str:
    """What stands for its value in help."""
    hint = get_type_hints(kind, include_extras=True)[name]
    own = shown(hint)
    return own.metavar if own else _short(get_type_hints(kind)[name])


def shown(hint: Any) -> Shown | None:
    """How the annotation of a field says that it is shown."""
    return next((extra for extra in get_args(hint)[1:] if isinstance(extra, Shown)), None)


def without_none(hint: Any) -> Any:
    """The kind of a value that may be left out."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint


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


def _short(hint: Any) -> str:
    """What stands for a value in help; short, so that many options fit on a screen."""
    plain = without_none(hint)
    if get_origin(plain) is tuple:
        items = get_args(plain)
        if Ellipsis in items:
            return f"{_short(items[0])}..."
        return " ".join(map(_short, items))
    if get_origin(plain) is Literal:
        return "NAME"
    return {int: "N", float: "X", Path: "PATH"}.get(plain, "TEXT")
