"""Inner products and lengths of long vectors, in pieces that are added up in float64.

PyTorch's float32 norm of 2e7 numbers is off by 1e-3: a square no longer counts beside their sum.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

# Numbers of a vector that are taken together; a few vectors' worth of them stay in the cache.
PIECE = 2**16
# A dot product of so many is still exact.
_DOT = 2**18


def inner(one: Float[Tensor, " size"], other: Float[Tensor, " size"]) -> Float64[Tensor, ""]:
    """<one, other>."""
    if len(one) <= _DOT:
        return torch.dot(one, other).double()
    pieces = zip(one.split(_DOT), other.split(_DOT), strict=True)
    return torch.stack([torch.dot(*piece) for piece in pieces]).double().sum()


def inners(
    rows: Float[Tensor, "rows size"], others: Float[Tensor, "rows size"]
) -> Float64[Tensor, " rows"]:
    """<row, other> of each pair."""
    return torch.stack([inner(*pair) for pair in zip(rows, others, strict=True)])


def length(vector: Float[Tensor, " size"]) -> Float64[Tensor, ""]:
    """||vector||."""
    return inner(vector, vector).sqrt()


def lengths(rows: Float[Tensor, "rows size"]) -> Float64[Tensor, " rows"]:
    """The length of each row."""
    pieces = [torch.linalg.vector_norm(piece, dim=1) for piece in rows.split(PIECE, dim=1)]
    return pieces[0].double() if len(pieces) == 1 else torch.stack(pieces).double().norm(dim=0)
