"""Draws of samples that hold as many of one class as of another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor


def per_class(
    labels: Int[Tensor, " samples"], classes: Iterable[int], count: int, *, seed: int
) -> Int[Tensor, " drawn"]:
    """Positions of `count` samples of each class, without replacement; class after class.

    Args:
        labels: of all samples.
        classes: which ones, in the order in which they come.
        count: samples of each.
        seed: what is drawn.

    Raises:
        ValueError: a class has fewer samples.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in classes:
        members = (labels == label).nonzero()[:, 0]
        if len(members) < count:
            raise ValueError(
                f"count must be at most the {len(members)} samples of class {label}, got {count}"
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen)
