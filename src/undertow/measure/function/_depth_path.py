"""States of stacks too deep to hold, followed layer by layer beside what the layers allow.

`depth_convergence` measures a module; this follows any iteration whose layers are W_n = I + P_n,
of which only ||P_n|| and ||b_n|| are known (Xu and Zhang, arXiv 2107.12530).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

Layer = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class DepthPath:
    """Where states got to, and how close they came to what the layers' norms allow.

    Attributes:
        states: h_n by n, `[runs, width]`, at the depths asked for; h_0 is the start.
        end: the state after the last layer.
        excess: `[runs]`, the most by which ||h_n - h_(n-1)|| exceeded ||P_n|| ||h_(n-1)|| +
            ||b_n||, per the larger of ||h_(n-1)|| and ||h_0||; at most rounding error where ReLU
            follows each layer and h_0 is not negative.
        log_norm_ratio: `[runs]`, the logarithm of ||h_N|| over its bound
            prod (1 + ||P_n||) (||h_0|| + sum ||b_n||).
    """

    states: Mapping[int, Float64[Tensor, "runs width"]]
    end: Float64[Tensor, "runs width"]
    excess: Float64[Tensor, " runs"]
    log_norm_ratio: Float64[Tensor, " runs"]


def follow_depth(
    start: Float64[Tensor, "runs width"], layers: Iterable[Layer], at: Collection[int] = ()
) -> DepthPath:
    """Follow several runs through layers that come one by one; memory does not grow with depth.

    Args:
        start: h_0.
        layers: for n = 1, 2, ...: h_n `[runs, width]`, ||P_n|| (spectral) and ||b_n||, `[runs]`.
        at: the depths whose states are kept.

    Raises:
        ValueError: `layers` end before a depth of `at`.
    """
    states = {0: start}
    state, norm = start, row_norms(start)
    excess = torch.full_like(norm, -math.inf)
    log_growth, pushed = torch.zeros_like(norm), norm.clone()
    for n, (after, perturbation, bias) in enumerate(layers, start=1):
        size = row_norms(state)
        over = row_norms(after - state) - perturbation * size - bias
        # A state that shrinks to nothing has only rounding errors in proportion to its start.
        excess = torch.maximum(excess, over / torch.maximum(size, norm))
        log_growth += perturbation.log1p()
        pushed += bias
        state = after
        if n in at:
            states[n] = state
    missing = sorted(set(at) - set(states))
    if missing:
        raise ValueError(f"layers must reach every depth of at, but they end before {missing[0]}")
    ratio = row_norms(state).log() - log_growth - pushed.log()
    return DepthPath(states, state, excess, ratio)


def row_norms(vectors: Float64[Tensor, "runs width"]) -> Float64[Tensor, " runs"]:
    """Euclidean norms, also of vectors whose squares leave the range of floating-point numbers."""
    size = vectors.abs().amax(1).clamp(min=torch.finfo(vectors.dtype).tiny)
    return size * (vectors / size[:, None]).norm(dim=1)
