"""Names, numbers and columns of what is printed at a terminal of 80 characters."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

WIDTH = 80


def role(name: str) -> str:
    """A name without its layer number: `layers.3.mlp.weight` is `layers.*.mlp.weight`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def short_names(names: Sequence[str]) -> list[str]:
    """Names without what all of them share: the modules around them, and the last `.weight`."""
    stems = [name.removesuffix(".weight").split(".") for name in names]
    shared = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*stems, strict=False))))
    lead = min(shared, *(len(stem) - 1 for stem in stems)) if len(names) > 1 else 0
    if lead and any(stem[lead].isdigit() for stem in stems):
        lead -= 1  # a bare number says too little
    return [".".join(stem[lead:]) for stem in stems]


def aligned(cells: Mapping[str, Sequence[str]]) -> list[str]:
    """Columns in 80 characters: the first takes what the others leave, its names cut in front.

    It keeps twelve characters, so that very many columns take longer lines.
    """
    widths = [max(map(len, [head, *column])) for head, column in cells.items()]
    first = min(widths[0], max(12, WIDTH - sum(width + 1 for width in widths[1:])))
    lines = []
    for row in zip(*([head, *column] for head, column in cells.items()), strict=True):
        name = row[0] if len(row[0]) <= first else "…" + row[0][1 - first :]
        rest = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append(" ".join([f"{name:<{first}}", *rest]))
    return lines


def wrapped(lines: Iterable[str], indent: int = 0) -> list[str]:
    """The lines in 80 characters, continued two further in; long words stay whole."""
    lead = " " * indent
    wrapper = textwrap.TextWrapper(
        WIDTH,
        initial_indent=lead,
        subsequent_indent=f"{lead}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [part for line in lines for part in wrapper.wrap(line)]


def share(part: float, whole: float) -> str:
    """A percentage that says 100% only of all of it."""
    return "100%" if part >= whole else f"{min(part / whole, 0.994):.0%}"


def finite(value: float) -> float | None:
    """A number as JSON can hold it: infinities and NaN are null."""
    return value if math.isfinite(value) else None


def digits(value: float) -> str:
    """A rank as it is shown: with a decimal where that says something."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
