"""Weights that are spread over processes (`DTensor`), gathered into the memory of each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from undertow.objective import is_sharded


def gathered(value: Any, seen: dict[Any, Tensor]) -> Any:
    """The whole tensor; anything else as it is. All processes have to come here together.

    One that has been `seen`, as weights are under two names, is given again.
    """
    if not is_sharded(value):
        return value
    place = (value.to_local().data_ptr(), value.shape, value.placements)
    if place not in seen:
        seen[place] = value.full_tensor().detach()
    return seen[place]
