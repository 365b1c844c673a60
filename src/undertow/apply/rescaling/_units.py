"""Numbers as people write them: `"1e-4"`, `0.5M` tokens, `1000ba`, a batch in sequences."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from undertow.apply._quantities import QUANTITY, SUFFIX
from undertow.apply._quantities import Quantity as Quantity
from undertow.apply._quantities import quantity as quantity

_DURATION = re.compile(r"(?P<number>\d[\d_]*(?:\.\d+)?(?:e\+?\d+)?)\s*(?P<unit>[a-zA-Z]+)")


def number(name: str, value: Any) -> float | int:
    """A hyperparameter; texts that hold a number are one, as YAML reads 1e-4 as text.

    Raises:
        TypeError: it is neither.
        ValueError: a text that holds none.
    """
    if isinstance(value, str):
        found = QUANTITY.fullmatch(value.strip().lower())
        if found is None or found["unit"]:
            raise ValueError(f"{name} must be a number, got {value!r}")
        plain = found["number"].replace("_", "").replace(",", "")
        size = float(plain) * SUFFIX[found["suffix"] or ""]
        return int(size) if re.fullmatch(r"[+-]?\d+", plain) or found["suffix"] else size
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if isinstance(value, Integral):
        return int(value)
    try:
        plain_number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if math.isnan(plain_number):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return plain_number


def numbers(name: str, value: Any) -> tuple[float | int, ...]:
    """Several, as a sequence or as text: (0.9, 0.95), [0.9, 0.95], "0.9 0.95".

    Raises:
        TypeError: it is no sequence.
        ValueError: one of them is no number.
    """
    if isinstance(value, str):
        value = re.split(r"[\s,]+", value.strip().strip("()[]").strip())
    if not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence of numbers, got {value!r}")
    return tuple(number(name, one) for one in value)


def duration(value: Any) -> tuple[float, str] | None:
    """A number with its unit, as in "1000ba" (batches) or "2ep"; None where it is no such text."""
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or found["unit"].lower() in SUFFIX:
        return None
    return float(found["number"].replace("_", "")), found["unit"]


def as_given(present: Any, value: Any) -> Any:
    """A new value in the form of the present one: a list, the text of a tuple, a duration."""
    if isinstance(present, str):
        unit = duration(present)
        if unit is not None:
            return f"{value}{unit[1]}"
        if isinstance(value, tuple):
            literal = present.strip()
            if literal[:1] in "([":
                kind = list if literal[0] == "[" else tuple
                return str(kind(value))
            return " ".join(map(str, value))
        return value
    if isinstance(present, list):
        return list(value) if isinstance(value, tuple) else [value]
    return value
