"""Random starts for products of factors, each of a scale of the product."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.objective import whole_number


def gaussian_factors(
    rows: int, cols: int, *, depth: int, scale: float, generator: torch.Generator
) -> list[Float64[Tensor, "_ cols"]]:
    """W_1 `[rows, cols]` and W_2, ..., W_L `[cols, cols]`, all entries independent.

    Their standard deviation is scale^(1/L) / sqrt(cols), with which W_1 ... W_L is of the size of
    `scale` where entries of a single factor of scale 1 have the variance 1 / cols.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if an argument is out of range.
    """
    whole_number("rows", rows, least=1)
    whole_number("cols", cols, least=1)
    size = _root(scale, depth) / math.sqrt(cols)
    heights = [rows, *[cols] * (depth - 1)]
    drawn = torch.randn(sum(heights), cols, generator=generator, dtype=torch.float64)
    return list((size * drawn).split(heights))


def balanced_factors(
    dim: int, *, depth: int, scale: float, generator: torch.Generator
) -> list[Float64[Tensor, "dim dim"]]:
    """L equal factors, the L-th root of a random positive definite matrix of a scale.

    That is scale x G G^T / (2 dim) with G gaussian, `[dim, 2 dim]`. Gradient flow keeps factors
    balanced: W_i^T W_i = W_(i+1) W_(i+1)^T.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if an argument is out of range.
    """
    whole_number("dim", dim, least=1)
    _root(scale, depth)
    sample = torch.randn(dim, 2 * dim, generator=generator, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(sample @ sample.T / (2 * dim))
    return [vectors * (scale * values) ** (1 / depth) @ vectors.T] * depth


def _root(scale: float, depth: int) -> float:
    whole_number("depth", depth, least=1)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a finite number above 0, got {scale}")
    return float(scale ** (1 / depth))
