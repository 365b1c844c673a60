"""Where the elements of pooling windows lie: sliding ones, and those that adapt to the output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

# Of each pooling window along one axis, where its elements lie; outside the axis there are none.
Axis = Int[Tensor, "windows taps"]


def sliding_axes(counts: tuple[int, ...], shape: Sequence[Any]) -> list[Axis]:
    """Of `counts` windows along each axis, given (kernel, stride, padding, dilation)."""
    dims = len(counts)
    given = [_per_axis(value, dims) for value in shape[:4]]
    kernel, stride, padding, dilation = given + [[], [0] * dims, [1] * dims][len(given) - 1 :]
    return [
        torch.arange(count)[:, None] * step - pad + torch.arange(taps) * gap
        for count, taps, step, pad, gap in zip(
            counts, kernel, stride or kernel, padding, dilation, strict=True
        )
    ]


def adaptive_axis(size: int, count: int) -> Axis:
    """Of `count` windows that divide up an axis."""
    window = torch.arange(count)[:, None]
    starts, ends = window * size // count, -(-(window + 1) * size // count)
    places = starts + torch.arange(int((ends - starts).max()))
    return torch.where(places < ends, places, -1)


def windows(
    sides: tuple[int, ...], axes: Sequence[Axis]
) -> tuple[Int[Tensor, "windows taps"], Tensor]:
    """Flat positions of each pooling window's elements, and which of them are inside the input."""
    dims = len(sides)
    flat = torch.zeros([1] * (2 * dims), dtype=torch.int64)
    inside = torch.ones([1] * (2 * dims), dtype=torch.bool)
    for axis, (size, place) in enumerate(zip(sides, axes, strict=True)):
        view = [1] * (2 * dims)
        view[axis], view[dims + axis] = place.shape
        place = place.view(view)
        inside = inside & (place >= 0) & (place < size)
        flat = flat * size + place.clamp(0, size - 1)
    table = (math.prod(len(axis) for axis in axes), math.prod(axis.shape[1] for axis in axes))
    return flat.reshape(table), inside.reshape(table)


def _per_axis(value: Any, dims: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * dims if len(values) == 1 else values
