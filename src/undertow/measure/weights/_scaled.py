"""Weights of eight-bit floating point: each is its stored number times a scale.

The scale is one number, one a row or a column, one a group along the row, or one for each block
of 128 x 128 (DeepSeek-V3, arXiv 2412.19437, section 3.3). It multiplies, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_BLOCK = 128
_ENDINGS = ("_scale_inv", "_scale")


def scale_of(name: str, tensor: Tensor, sibling: Callable[[str], Tensor | None]) -> Tensor | str:
    """The scale that stands beside a tensor, or why there is none that fits, as a clause."""
    stem = name.removesuffix(".weight")
    candidates = [name + ending for ending in _ENDINGS]
    if stem != name:
        candidates += [f"{stem}.scale_weight", f"{stem}.scale"]
    found = [(one, scale) for one in candidates if (scale := sibling(one)) is not None]
    what = f"is quantised ({tensor.dtype})"
    if len(found) != 1:
        return f"{what} without a scale beside it" if not found else f"{what} with two scales"
    called, scale = found[0]
    if not scale.is_floating_point():
        return f"{what} with a scale of {scale.dtype}, {called}"
    if tensor.ndim == 2 and expanded(scale, tensor.shape[0], tensor.shape[1], probe=True) is None:
        return f"{what} with a scale {tuple(scale.shape)} that does not say for which entries"
    return scale


def part_of(scale: Tensor, index: int, count: int) -> Tensor:
    """The scale of one matrix of a stack."""
    return scale[index] if scale.ndim > 0 and scale.shape[0] == count else scale


def expanded(scale: Tensor, rows: int, cols: int, *, probe: bool = False) -> Tensor | None:
    """A scale as it multiplies a rows x cols matrix; None where its shape does not say how.

    With `probe` the values are not touched.
    """
    shape = tuple(scale.shape)
    fits = True
    repeat: tuple[int, int] | None = None
    if scale.numel() == 1:
        shape = (1, 1)
    elif shape == (rows,) and rows != cols:
        shape = (rows, 1)
    elif len(shape) == 2 and shape[0] in (1, rows) and shape[1] in (1, cols):
        pass
    elif shape == (-(-rows // _BLOCK), -(-cols // _BLOCK)):
        repeat = (_BLOCK, _BLOCK)
    elif len(shape) == 2 and shape[0] == rows and cols % shape[1] == 0:
        repeat = (1, cols // shape[1])
    elif shape == (rows,):  # of a square matrix: a row's, as every writer has it
        shape = (rows, 1)
    else:
        fits = False
    if not fits:
        return None
    if probe:
        return scale
    wide = scale.to(torch.float32).reshape(shape)
    if repeat is not None:
        wide = wide.repeat_interleave(repeat[0], 0).repeat_interleave(repeat[1], 1)
        wide = wide[:rows, :cols]
    return wide
