"""Cells and words for people: numbers with sensible digits, nothing that could mislead the eye.

Names come from files, and files from strangers: what would move a terminal's cursor or turn the
direction of reading is written out, an escape character as a backslash and `x1b`.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from undertow.lab._document import Table

_LONGEST_LIST = 4
_JOINERS = "\u200c\u200d"  # scripts and emoji need them


@dataclass(frozen=True)
class Column:
    """A column as it is printed: whether it holds numbers, and the text of each cell."""

    head: str
    numeric: bool
    cells: tuple[str, ...]


def columns_of(table: Table) -> dict[str, Column]:
    """The columns of a table by their names."""
    return {
        name: Column(
            head=printable(name.replace("_", " ")),
            numeric=_is_numeric(values),
            cells=tuple(printable(table.formats.get(name, cell)(value)) for value in values),
        )
        for name, values in table.values().items()
    }


def cell(value: Any) -> str:
    """A value as a cell shows it: four digits, yes or no, – for none, a long list by its length."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if len(value) > _LONGEST_LIST:
            return f"{len(value)} values"
        return f"[{', '.join(cell(item) for item in value)}]"
    return str(value)


def format_number(value: float, digits: int = 4) -> str:
    """A number with at most so many significant digits: 0.1235, 12340, 1.2e-5."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def percent(share: float) -> str:
    """A share in percent, three digits: 99.5%; what is not all is never 100%, nor some 0%."""
    if share in (0, 1):
        return f"{share:.0%}"
    return f"{min(max(100 * share, 0.1), 99.9):.3g}%"


def printable(text: str) -> str:
    """Text in one line; control characters and marks that turn its direction are written out."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_written(character) for character in text)


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, parted by empty lines, each printable and in one line."""
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            parts[-1].append(line)
        else:
            parts.append([])
    return [printable(" ".join(" ".join(part).split())) for part in parts if part]


def _written(character: str) -> str:
    kind = unicodedata.category(character)
    if kind not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in _JOINERS:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _is_numeric(values: Sequence[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in known
    )
