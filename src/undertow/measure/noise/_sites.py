"""A call that uses parameters, and where the samples lie in what it sees.

An axis is right only if each row along it belongs to one sample; `_layouts` says which are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from undertow.measure.noise._layer_gradients import Use


@dataclass(frozen=True)
class Layout:
    """Where the samples lie in what a parameter's layers see.

    Attributes:
        axis: of a layer's input that counts them, one or more rows in turn for each.
        shared: whether a table is looked up once for all of them, and its rows broadcast.
    """

    axis: int
    shared: bool = False


@dataclass(frozen=True, eq=False)
class Site:
    """A call that uses parameters.

    Attributes:
        names: of the parameters.
        shape: of the axes on which samples may lie.
        axes: those whose size is a multiple of the number of samples.
        uses: by formula, for the samples on one of these axes.
        shared: as of a `Layout`.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    uses: Callable[[int], list[Use]]
    shared: bool = False
