"""Names of matrices and their numbers, as results show them to people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise, takewhile

_SPANS = 3
ROWS_SHOWN = 24  # matrices that are listed one by one at a terminal
MEANS = "(n): means over n matrices whose names differ in their number alone."
_NUMBER = re.compile(r"(?<![^.\[ ])\d+(?![^.\],])")


def role(name: str) -> str:
    """A name without its layer number: `layers.3.mlp.weight` is `layers.*.mlp.weight`."""
    return _NUMBER.sub("*", name)


def ranged(names: Sequence[str]) -> str:
    """One name for several of one role, with all their numbers: `layers.0-5,7.mlp.weight`."""
    numbers = [[int(found) for found in _NUMBER.findall(name)] for name in names]
    spans = iter([_spans(column) for column in zip(*numbers, strict=True)])
    return _NUMBER.sub(lambda _: next(spans), names[0])


def _spans(numbers: Sequence[int]) -> str:
    """Numbers as spans, 0-5,7; an even step is said: 0-10:2."""
    ordered = sorted(set(numbers))
    steps = {after - before for before, after in pairwise(ordered)}
    if len(ordered) > 2 and len(steps) == 1 and steps != {1}:
        return f"{ordered[0]}-{ordered[-1]}:{steps.pop()}"
    spans: list[list[int]] = []
    for number in ordered:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    if len(spans) > _SPANS:
        return f"{ordered[0]}..{ordered[-1]}"
    return ",".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else str(s[0]) for s in spans)


def short_names(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Names without what all of them share, the modules around them and the last `.weight`.

    One that stands for several matrices says for how many.
    """
    stems = [name.removesuffix(".weight").split(".") for name in names]
    shared = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*stems, strict=False))))
    lead = min(shared, *(len(stem) - 1 for stem in stems)) if len(names) > 1 else 0
    if lead and any(stem[lead][0].isdigit() for stem in stems if stem[lead]):
        lead -= 1  # a bare number says too little
    return [
        ".".join(stem[lead:]) + (f" ({count})" if count > 1 else "")
        for stem, count in zip(stems, counts, strict=True)
    ]


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts names as people count: layers.2 before layers.10."""
    parts = re.split(r"([0-9]{1,18})", name)
    return tuple((0, int(p), "") if p.isdigit() and p.isascii() else (1, 0, p) for p in parts if p)


def share(part: float, whole: float) -> str:
    """A percentage that says 100% only of all of it, and 0% only of none."""
    if 0 < part < 0.005 * whole:
        return "<1%"
    return "100%" if part >= whole else f"{min(part / whole, 0.994):.0%}"


def digits(value: float) -> str:
    """A rank as it is shown: with a decimal where that says something."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
