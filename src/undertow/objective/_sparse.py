"""Tensors that are not strided: the strided ones that they consist of."""

from __future__ import annotations

import torch
from torch import Tensor


def parts(tensor: Tensor) -> list[Tensor]:
    """Indices and values of a sparse tensor, as stored; a strided one itself; none of any other."""
    if tensor.layout is torch.strided:
        return [tensor]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]  # noqa: SLF001, the public ones coalesce
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return []


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether shapes, layouts and values are the same; sparse ones also stored alike."""
    if one.shape != other.shape or one.layout != other.layout:
        return False
    pairs = list(zip(parts(one), parts(other), strict=True))
    return bool(pairs) and all(torch.equal(mine, theirs) for mine, theirs in pairs)
