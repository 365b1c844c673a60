"""Streams of random numbers of one seed, one for each purpose, that have nothing in common.

PyTorch's generators count by the lowest 32 bits of their seed alone: 2^40 + seed is seed again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator


def stream(seed: int, purpose: int) -> Generator:
    """A seed's generator for a purpose, numbered from 0.

    A `train.Member` of that seed takes the first two, and two for each batch that its rule takes a
    step: what runs beside one begins beyond.
    """
    from undertow.train import spawn_generators

    return spawn_generators(seed, purpose + 1)[purpose]
