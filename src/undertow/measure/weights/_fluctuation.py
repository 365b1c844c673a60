"""How much weights go on moving: at rest updates are all alike, under noise they are not."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def update_fluctuation(path: Float[Tensor, "times *runs rows cols"]) -> Float[Tensor, "*runs"]:
    """The spread of successive updates about their mean, per ||W|| at the path's start.

    sqrt(mean_t ||U_t - mean U||^2) / ||W_0|| with the updates U_t = W_(t+1) - W_t. A drift that
    all updates share does not count; gradient descent that has come to rest has zero, SGD with
    weight decay has not (Xu et al., CBMM Memo 144).

    Args:
        path: the weights after each of some updates in a row, of one run or several; times an
            orthogonal projector for the part that the projector keeps.

    Raises:
        ValueError: fewer than three times, of which no two updates can differ.
    """
    if path.ndim < 3 or len(path) < 3:
        raise ValueError(
            "path must be [times, *runs, rows, cols] with at least 3 times, got shape "
            f"{tuple(path.shape)}"
        )
    updates = path.diff(dim=0)
    spread = (updates - updates.mean(0)).square().sum((-2, -1)).mean(0).sqrt()
    return spread / torch.linalg.norm(path[0], dim=(-2, -1))
