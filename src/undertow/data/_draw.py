"""Draws by a seed: samples that hold as many of one class as of another, and random labels."""

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


def random_labels(
    labels: Int[Tensor, " samples"], label_noise: float, num_classes: int, *, seed: int
) -> Int[Tensor, " samples"]:
    """The labels, each with probability `label_noise` drawn anew, uniformly from all classes.

    A drawn label may be the right one: about label_noise (num_classes - 1) / num_classes of all are
    wrong. For one seed, those drawn anew with less noise are among those with more.

    Args:
        labels: of all samples; they stay as they are.
        label_noise: from 0 (the labels themselves) to 1 (all drawn).
        num_classes: labels run from 0 to one less.
        seed: which labels are drawn, and what.

    Raises:
        ValueError: label_noise outside 0 to 1.
    """
    import torch

    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise must be from 0 to 1, got {label_noise}")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(labels), generator=generator) < label_noise
    drawn = torch.randint(num_classes, (int(chosen.sum()),), generator=generator)
    return labels.masked_scatter(chosen.to(labels.device), drawn.to(labels))


def stream(seed: int, purpose: str = "") -> int:
    """The seed of what is drawn for one purpose: no other purpose has it.

    Nor has anything else that derives from the same seed by `numpy.random.SeedSequence.spawn`.
    """
    import numpy as np

    key = (int.from_bytes(purpose.encode(), "big"),) if purpose else ()
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
