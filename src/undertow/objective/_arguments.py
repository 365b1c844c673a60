"""Arguments of the objective's methods, checked.

What is of the wrong kind is a TypeError, what is out of range a ValueError.
"""

from __future__ import annotations

from numbers import Integral


def positive_count(name: str, value: object) -> int:
    """`value` as a whole number of at least 1.

    Raises:
        TypeError: if it is no integer (a bool is none).
        ValueError: if it is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)
