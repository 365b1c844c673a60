"""What a trial is: a frozen dataclass of everything that determines a result.

Its content hash is its identity, so a result is computed once and found again by any later process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any


def trial_hash(trial: Any, kind: str = "") -> str:
    """The identity of a trial: 32 hexadecimal digits over its kind and its fields.

    The kind says what is done with the trial: a study gives its own name and the experiment's. By
    default it is the name of the trial's class. Where the class is defined plays no part, so that
    code can move and results are still found.

    Equal on every machine and Python version, whatever the order of fields and of dictionary keys.
    Fields may be None, booleans, integers, floats (NaN and infinities too), strings, enums, tuples,
    lists, dictionaries with string keys, and dataclasses of these. A list and a tuple of the same
    values are one trial. The integer 1, the float 1.0 and True are three different values: give a
    field the type that it declares. A field declared with `compare=False` takes no part, as it
    takes none in `==`.

    The code that runs a trial is not part of its identity: give the trial a field such as
    `version: int = 1` and raise it when results computed before must not be used again.

    Raises:
        TypeError: not a frozen dataclass, or a field holds anything else; the message names the
            field.
    """
    if not _is_dataclass_instance(trial) or not trial.__dataclass_params__.frozen:
        raise TypeError(
            f"trial: expected an instance of a frozen dataclass, got {type(trial).__qualname__}; "
            "declare the class with @dataclass(frozen=True)"
        )
    content = _canonical(trial, "")
    if kind:
        content["dataclass"] = kind
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def trial_columns(trial: Any) -> dict[str, Any]:
    """The fields of a trial as table columns: scalars, or lists of scalars.

    A nested dataclass or dictionary gives one column per leaf, named `outer.inner`; an enum gives
    its name; a sequence that is not a list of like scalars gives its JSON text.
    """
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(trial):
        _flatten(field.name, getattr(trial, field.name), columns)
    return columns


def _is_dataclass_instance(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _canonical(value: Any, where: str) -> Any:
    """`value` in JSON's own types; enums and dataclasses carry their class, so none collide."""
    if isinstance(value, Enum):  # before int and str, which an enum may also be
        return {"enum": type(value).__name__, "name": value.name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"trial field {where}: dictionary keys must be strings")
        return {"mapping": {key: _canonical(value[key], f"{where}.{key}") for key in value}}
    if _is_dataclass_instance(value):
        prefix = f"{where}." if where else ""
        fields = {
            field.name: _canonical(getattr(value, field.name), prefix + field.name)
            for field in dataclasses.fields(value)
            if field.compare
        }
        return {"dataclass": type(value).__name__, "fields": fields}
    raise TypeError(
        f"trial field {where}: cannot be part of a trial's identity: {type(value).__qualname__}; "
        "use plain numbers (int(x), float(x)), strings, enums, tuples, dictionaries or dataclasses"
    )


def _flatten(name: str, value: Any, columns: dict[str, Any]) -> None:
    if isinstance(value, Enum):
        columns[name] = value.name
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _flatten(f"{name}.{key}", item, columns)
    elif _is_dataclass_instance(value):
        for field in dataclasses.fields(value):
            _flatten(f"{name}.{field.name}", getattr(value, field.name), columns)
    elif isinstance(value, list | tuple):
        columns[name] = _list_column(value)
    else:
        columns[name] = value


def _list_column(values: Sequence[Any]) -> list[Any] | str:
    kinds = {type(value) for value in values}
    if len(kinds) == 1 and kinds <= {bool, int, float, str}:
        return list(values)
    if kinds == {int, float}:
        return [float(value) for value in values]
    return json.dumps(_canonical(values, ""), sort_keys=True)
