"""Numbers as people write them: `"1e-4"`, `0.5M` tokens, `1000ba`, a batch in sequences."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

_SUFFIX = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "b": 10**9,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
}
_UNITS = {
    **dict.fromkeys(("token", "tokens", "tok", "toks"), "tokens"),
    **dict.fromkeys(("sequence", "sequences", "seq", "seqs"), "sequences"),
    **dict.fromkeys(("sample", "samples", "sp", "example", "examples", "image", "images"), ""),
}
_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:(?:\d{1,3}(?:,\d{3})+|\d[\d_]*)\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?P<suffix>[kmbg]i?|t(?=tok|seq|sam|\s|$))?"
    r"\s*(?P<unit>[a-z]+)?"
)
_DURATION = re.compile(r"(?P<number>\d[\d_]*(?:\.\d+)?(?:e\+?\d+)?)\s*(?P<unit>[a-zA-Z]+)")


@dataclass(frozen=True)
class Quantity:
    """A count of samples, sequences or tokens."""

    value: int
    unit: str = ""


def quantity(name: str, value: Any) -> Quantity:
    """A batch: 512, 5e5, "0.5M", "512 sequences", "0.5M tokens".

    Raises:
        TypeError: it is no number, and no text that holds one.
        ValueError: it is not a whole number of at least 1, or its unit is not known.
    """
    unit = ""
    if isinstance(value, str):
        found = _QUANTITY.fullmatch(value.strip().lower())
        if found is None or (found["unit"] or "tokens") not in _UNITS:
            raise ValueError(
                f"{name} must be a number of samples such as 512, 5e5 or 0.5M, or with its unit, "
                f"'0.5M tokens' or '512 sequences', got {value!r}"
            )
        unit = _UNITS[found["unit"]] if found["unit"] else ""
        size = float(found["number"].replace("_", "").replace(",", ""))
        value = size * _SUFFIX[found["suffix"] or ""]
        value = round(value) if abs(value - round(value)) < 1e-6 else value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    whole = float(value)
    if not whole.is_integer():
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return Quantity(int(value) if isinstance(value, Integral) else int(whole), unit)


def number(name: str, value: Any) -> float | int:
    """A hyperparameter; texts that hold a number are one, as YAML reads 1e-4 as text.

    Raises:
        TypeError: it is neither.
        ValueError: a text that holds none.
    """
    if isinstance(value, str):
        found = _QUANTITY.fullmatch(value.strip().lower())
        if found is None or found["unit"]:
            raise ValueError(f"{name} must be a number, got {value!r}")
        plain = found["number"].replace("_", "").replace(",", "")
        size = float(plain) * _SUFFIX[found["suffix"] or ""]
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
    if found is None or found["unit"].lower() in _SUFFIX:
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
