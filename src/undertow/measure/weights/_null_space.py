"""The directions of input space that a data set does not reach.

Every gradient of a layer's weights is a combination of the layer's inputs, so along what these do
not span weights only decay (Xu et al., CBMM Memo 144; `predict.null_space_decay` says how fast).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def null_projector(
    inputs: Float[Tensor, "samples ..."], *, rtol: float = 1e-10
) -> Float64[Tensor, "d d"]:
    """The orthogonal projector P on what the inputs do not span: x P = 0 for each of them.

    Of a first layer W, `[out, d]`, W P is the part that the data cannot see: no gradient on them
    reaches it, W - W P has the same outputs on them, and its trace is the number of unseen
    directions. A layer with bias sees a constant feature more than its inputs.

    Args:
        inputs: what the layer is given, flattened to d features a sample.
        rtol: singular values of the inputs up to this times the largest count as zero.

    Raises:
        ValueError: no samples, inputs without features, values that are not finite, or `rtol` not
            between 0 and 1.
    """
    if not 0 <= rtol < 1:
        raise ValueError(f"rtol must lie in [0, 1), got {rtol}")
    if inputs.ndim < 2 or inputs.numel() == 0:
        raise ValueError(f"inputs must be [samples, ...], got shape {tuple(inputs.shape)}")
    flat = inputs.detach().flatten(1).double()
    if not torch.isfinite(flat).all():
        raise ValueError("inputs hold infinities or NaN")
    _, singular, right = torch.linalg.svd(flat, full_matrices=False)
    span = right[singular > rtol * singular[0]]
    return torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device) - span.mT @ span
