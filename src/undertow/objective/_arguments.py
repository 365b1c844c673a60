"""Arguments of the objective's methods, and of those who measure and train with it, checked.

What is of the wrong kind is a TypeError, what is out of range a ValueError.
"""

from __future__ import annotations

from numbers import Integral


def whole_number(name: str, value: object, *, least: int = 1) -> int:
    """`value` as a whole number of at least `least`.

    Raises:
        TypeError: if it is no integer (a bool is none).
        ValueError: if it is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)
