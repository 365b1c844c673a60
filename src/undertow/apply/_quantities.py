"""Counts as people write them: 512, 5e5, 0.5M, 256 sequences, 0.5M tokens."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
SUFFIX |= {"ki": 2**10, "mi": 2**20, "gi": 2**30}
_UNITS = {
    **dict.fromkeys(("token", "tokens", "tok", "toks"), "tokens"),
    **dict.fromkeys(("sequence", "sequences", "seq", "seqs"), "sequences"),
    **dict.fromkeys(("sample", "samples", "sp", "example", "examples", "image", "images"), ""),
}
QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:(?:\d{1,3}(?:,\d{3})+|\d[\d_]*)\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*"
    r"(?P<suffix>[kmg]i(?!mage)|[kmbg]|t(?=tok|seq|sam|\s|$))?\s*(?P<unit>[a-z]+)?"
)


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
        found = QUANTITY.fullmatch(value.strip().lower())
        if found is None or (found["unit"] or "tokens") not in _UNITS:
            raise ValueError(
                f"{name} must be a number of samples such as 512, 5e5 or 0.5M, or with its unit, "
                f"'0.5M tokens' or '512 sequences', got {value!r}"
            )
        unit = _UNITS[found["unit"]] if found["unit"] else ""
        size = float(found["number"].replace("_", "").replace(",", ""))
        value = size * SUFFIX[found["suffix"] or ""]
        if math.isfinite(value) and abs(value - round(value)) < 1e-6:
            value = round(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    whole = float(value)
    if not whole.is_integer():
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return Quantity(int(value) if isinstance(value, Integral) else int(whole), unit)


def parse_count(name: str, word: str, *, sequence_length: int | None = None) -> int:
    """A count as people write it: `512`, `5e5`, `0.5M`, `2k`, `1B`, `256seq`, `0.5Mtok`.

    Args:
        name: of the argument, for its errors.
        word: what was written. M and others are powers of ten, Mi of two.
        sequence_length: tokens a sequence. The count is then one of tokens, unless it says
            sequences (or samples, which are the same), and what comes back is in sequences: the
            nearest whole number, where it lies within 1%.

    Raises:
        ValueError: it is none, or no whole number; or it counts tokens and `sequence_length` is not
            given, or they are not whole sequences.
    """
    if sequence_length is not None and sequence_length < 1:
        raise ValueError(f"sequence_length must be at least 1, got {sequence_length}")
    try:
        found = quantity(name, word)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {word!r}") from None
    if sequence_length is None:
        if found.unit == "tokens":
            raise ValueError(f"{name} counts tokens, got {word!r}: give sequence_length, too")
        return found.value
    bare = word.strip()[-1:].lower() in "0123456789.kmbgti"  # a number, with no unit after it
    if found.unit != "tokens" and not bare:
        return found.value
    sequences = round(found.value / sequence_length)
    if abs(sequences * sequence_length - found.value) > 0.01 * found.value:
        raise ValueError(
            f"{name}: {word} is {found.value / sequence_length:.4g} sequences of {sequence_length} "
            f"tokens, and must be whole ones; write {word}seq if it counts sequences"
        )
    return sequences
