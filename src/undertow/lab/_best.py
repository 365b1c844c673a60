"""Tuned against tuned: what is best, chosen by other seeds than the one that it is read in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from undertow.lab._per_seed import PerSeed
from undertow.lab._readings import Reading, Records


def best_elsewhere(
    readings: Sequence[Reading], best: Literal["smallest", "largest"] = "smallest"
) -> Reading:
    """In each seed, of several readings the one whose mean over the other seeds is best.

    For two methods that each run at several learning rates: no seed chooses the rate at which it
    is read, so that nothing is gained by having more rates to choose from. A reading that some
    seed lacks is never chosen: a rate at which a run was lost is not the best one.

    Args:
        readings: each to one number a seed.
        best: of their means.

    Returns:
        A reading of the seeds that any of them has; of none where fewer than two are left, or no
        reading has them all.
    """

    def read(records: Records) -> PerSeed:
        found = [reading(records).values for reading in readings]
        seeds = sorted(set().union(*found))
        table = np.array([[own[s] for s in seeds] for own in found if len(own) == len(seeds)])
        if len(seeds) < 2 or len(table) == 0:
            return PerSeed({})
        elsewhere = table.sum(1, keepdims=True) - table
        chosen = elsewhere.argmin(0) if best == "smallest" else elsewhere.argmax(0)
        return PerSeed({seed: float(table[chosen[i], i]) for i, seed in enumerate(seeds)})

    return Reading(read)
