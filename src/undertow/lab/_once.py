"""What is worked out of a frame, once for all readings that ask for it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import polars as pl

Given = ParamSpec("Given")
Found = TypeVar("Found")


def once(
    function: Callable[Concatenate[pl.DataFrame, Given], Found],
) -> Callable[Concatenate[pl.DataFrame, Given], Found]:
    """A function of a frame whose result is kept as long as the frame is.

    Twenty readings of one derived table derive it once. The frame must not change, nor what was
    found of it; further arguments must be hashable.
    """
    kept: dict[int, dict[Hashable, Found]] = {}

    @wraps(function)
    def asked(frame: pl.DataFrame, *args: Given.args, **named: Given.kwargs) -> Found:
        own = id(frame)
        if own not in kept:
            kept[own] = {}
            weakref.finalize(frame, kept.pop, own, None)
        key = (args, tuple(sorted(named.items())))
        if key not in kept[own]:
            kept[own][key] = function(frame, *args, **named)
        return kept[own][key]

    return asked
