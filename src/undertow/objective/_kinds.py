"""What can be made anew of a value, and what is shared, where a module's structure is copied."""

from __future__ import annotations

import enum
import functools
import sys
import types
from typing import Any

import torch

_HEAP_TYPE = 1 << 9  # of a class's flags: made in Python
EMPTY = object()


def contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return EMPTY


def is_atomic(value: Any) -> bool:
    return value is None or type(value) in _ATOMIC or isinstance(value, type | enum.Enum)


_ATOMIC: frozenset[type] = frozenset(
    {bool, int, float, complex, str, bytes, range, slice, type(...), type(NotImplemented), object}
    | {types.BuiltinFunctionType, types.ModuleType, property, staticmethod, classmethod}
    | {torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size}
)


def numpys_own() -> tuple[type, ...]:
    """Arrays and generators, if NumPy has been loaded."""
    numpy = sys.modules.get("numpy")
    return (
        () if numpy is None else (numpy.ndarray, numpy.random.Generator, numpy.random.RandomState)
    )


@functools.cache
def is_plain_class(kind: type) -> bool:
    """Whether its objects are their attributes, and can come and go without anyone's noticing."""
    room = kind.__module__.partition(".")[0]
    return (
        room not in sys.stdlib_module_names
        and all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__)
        and not hasattr(kind, "__del__")
    )


@functools.cache
def slot_names(kind: type) -> tuple[str, ...]:
    found: list[str] = []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                hidden = name.startswith("__") and not name.endswith("__")
                found.append(f"_{base.__name__.lstrip('_')}{name}" if hidden else name)
    return tuple(found)


def own_dict(value: Any) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return found
