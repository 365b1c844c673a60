"""What measuring refuses, in words."""

from __future__ import annotations

from numbers import Integral


def whole_number(name: str, value: object, *, least: int) -> int:
    """The value, if it is a whole number that is not below `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)
