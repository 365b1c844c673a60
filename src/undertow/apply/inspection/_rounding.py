"""How much of a difference is rounding: the edge of the spectrum that stored numbers' errors have.

A number in a format with eps and exponent e is off by a uniform error of up to half its spacing
eps 2^e, of variance spacing^2 / 12. Independent entries of variances v_ij have singular values up
to about max_i sqrt(sum_j v_ij) + max_j sqrt(sum_i v_ij) (Bandeira and van Handel, 1408.6185), which
is sigma (sqrt(rows) + sqrt(cols)), Marchenko and Pastur's edge, where all are alike.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.measure import WeightMatrix, matrix_spectrum

# Of Tracy and Widom's law beyond the edge: one matrix of pure noise in 10,000 passes it.
_FLUCTUATION = 4.5
# Entries of a matrix that are looked at for values of a coarser format.
_SAMPLE = 4096
_LEAST_VALUES = 256
_PIECE = 2**22
# Changes of at most so many directions, that leave at least this share of the entries where they
# were, are held against their echo, which may be out by this factor.
_FEW = 4
_STILL = 0.02
_ECHO = 1.25
_COARSER = {
    torch.float32: (torch.bfloat16, torch.float16),
    torch.float64: (torch.bfloat16, torch.float16, torch.float32),
}


def rounding_edge(
    one: WeightMatrix, other: WeightMatrix, difference: Float64[Tensor, "rows cols"]
) -> float:
    """The largest singular value that rounding alone gives the difference of two stored weights.

    Rows and columns that are the same in both were not rounded, and are left out.
    """
    moved = difference != 0
    rows, cols = moved.any(1), moved.any(0)
    if not rows.any():
        return 0.0
    kinds = [stored_type(item) for item in (one, other)]
    along = torch.zeros(difference.shape[0], dtype=torch.float64)
    down = torch.zeros(difference.shape[1], dtype=torch.float64)
    step = max(1, _PIECE // difference.shape[1])
    for start in range(0, difference.shape[0], step):
        piece = slice(start, start + step)
        variance = torch.zeros(difference[piece].shape, dtype=torch.float64)
        for item, kind in zip((one, other), kinds, strict=True):
            variance += _variances(item, piece, kind)
        variance = variance * rows[piece, None].cpu() * cols.cpu()
        along[piece] = variance.sum(1)
        down += variance.sum(0)
    edge = math.sqrt(float(along.max())) + math.sqrt(float(down.max()))
    return edge * _beyond(int(rows.sum()), int(cols.sum()))


def echo_edge(
    one: WeightMatrix,
    other: WeightMatrix,
    difference: Float64[Tensor, "rows cols"],
    spectrum: Float64[Tensor, " values"],
    edge: float,
) -> float:
    """The edge where rounding depends on the change, which gives it directions of its own.

    Where a change of very few directions is finer than the spacing of many entries, which of them
    move is a function of it, and no noise. So the leading directions alone are added to the other
    weight and rounded: what follows them then is an echo, and no direction of the change.
    """
    kept = int((spectrum > edge).sum())
    still = float((difference == 0).double().mean())
    if not 1 < kept <= _FEW or not _STILL < still < 1:
        return edge
    kind, base = stored_type(one), other.matrix.double().to(difference.device)
    rows, cols = difference.shape
    short = difference if rows <= cols else difference.mT
    vectors = torch.linalg.eigh(short @ short.mT).eigenvectors.flip(1)[:, :kept]
    for leading in range(1, kept):
        change = vectors[:, :leading] @ (vectors[:, :leading].mT @ short)
        change = change if rows <= cols else change.mT
        rounded = (base + change).to(kind).double() - base
        if float(spectrum[leading]) <= _ECHO * float(matrix_spectrum(rounded)[leading]):
            return float(spectrum[leading])
    return edge


def stored_type(item: WeightMatrix) -> torch.dtype:
    """The coarsest format that holds every value: float32 may hold what was bfloat16."""
    stored = item.stored
    for kind in _COARSER.get(stored.dtype, ()):
        flat = stored.flatten() if stored.is_contiguous() else stored.reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLE)][:_SAMPLE]
        # Zeros, ones and small whole numbers pass for any format.
        if len(torch.unique(sample.abs())) < min(_LEAST_VALUES, len(sample) // 4 + 2):
            continue
        if not torch.equal(sample.to(kind).to(stored.dtype), sample):
            continue
        if torch.equal(flat.to(kind).to(stored.dtype), flat):
            return kind
    return stored.dtype


def _variances(item: WeightMatrix, piece: slice, kind: torch.dtype) -> Tensor:
    values = item.stored[piece].cpu()
    if values.dtype.itemsize < 4:
        values = values.float()
    spacing = _spacing(values, kind)
    if item.scale is not None:
        # The spacing of what is stored, times its scale.
        rows = item.matrix[piece].abs().double().cpu()
        spacing *= rows / values.abs().double().clamp(min=torch.finfo(torch.float64).tiny)
    return spacing.square_().div_(12)


def _spacing(values: Tensor, kind: torch.dtype) -> Float64[Tensor, "rows cols"]:
    """The distance between neighbours of a format at each value."""
    info = torch.finfo(kind)
    _, exponents = torch.frexp(values)  # of a mantissa in [1/2, 1)
    least = round(math.log2(info.tiny))
    exponents = torch.where(values == 0, least, exponents - 1).clamp(min=least)
    return torch.exp2(exponents.double()).mul_(info.eps)


def _beyond(rows: int, cols: int) -> float:
    """How far beyond the edge noise of that size strays, as a factor."""
    centre = math.sqrt(rows) + math.sqrt(cols)
    scale = (1 / math.sqrt(rows) + 1 / math.sqrt(cols)) ** (1 / 3) / centre
    return math.sqrt(1 + _FLUCTUATION * scale)
