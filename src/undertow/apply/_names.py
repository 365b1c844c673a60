"""Names of matrices and their numbers, as results show them to people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

ROWS_SHOWN = 24  # matrices that are listed one by one at a terminal
MEANS = "(n): means over n matrices whose names differ in their number alone."


def role(name: str) -> str:
    """A name without its layer number: `layers.3.mlp.weight` is `layers.*.mlp.weight`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def short_names(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Names without what all of them share, the modules around them and the last `.weight`.

    One that stands for several matrices says for how many.
    """
    stems = [name.removesuffix(".weight").split(".") for name in names]
    shared = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*stems, strict=False))))
    lead = min(shared, *(len(stem) - 1 for stem in stems)) if len(names) > 1 else 0
    if lead and any(stem[lead].isdigit() for stem in stems):
        lead -= 1  # a bare number says too little
    return [
        ".".join(stem[lead:]) + (f" ({count})" if count > 1 else "")
        for stem, count in zip(stems, counts, strict=True)
    ]


def share(part: float, whole: float) -> str:
    """A percentage that says 100% only of all of it."""
    return "100%" if part >= whole else f"{min(part / whole, 0.994):.0%}"


def digits(value: float) -> str:
    """A rank as it is shown: with a decimal where that says something."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
