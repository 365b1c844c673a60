"""What Local SGD over real workers refuses before it begins or goes on, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from undertow.train.local_sgd._carried import PARTS, check_wrappers, named_parameters
from undertow.train.local_sgd._meeting import Word
from undertow.train.local_sgd._outer import Outer
from undertow.train.local_sgd._outer_state import OuterState
from undertow.train.local_sgd._team import Team

HOOKED: WeakSet[torch.optim.Optimizer] = WeakSet()  # by a LocalSGD that is at work


def check_arguments(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    outer: Outer | None,
    average: Sequence[str],
    team: Team,
) -> None:
    """Raise where the arguments are not of their kinds, or do not belong together."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    if optimizer in HOOKED:
        raise ValueError(
            "optimizer is averaged by another LocalSGD already, and its rounds would be averaged "
            "twice; close() that one first"
        )
    if outer is not None and not isinstance(outer, Outer):
        raise TypeError(f"outer must be a train.Outer, got {outer!r}")
    if isinstance(average, str) or not set(average) <= set(PARTS):
        raise ValueError(f"average must hold names out of {', '.join(PARTS)}, got {average!r}")
    check_wrappers(model, named_parameters(model, optimizer), team.ranks, team.rank)


def check_state(state: dict[str, Any], num_workers: int, outer: OuterState) -> None:
    """Raise where a saved state cannot be gone on from."""
    if not isinstance(state, dict) or "num_workers" not in state:
        raise TypeError("state must be what LocalSGD.state_dict() gave")
    if state["num_workers"] != num_workers:
        raise ValueError(
            f"the state is of {state['num_workers']} workers and the group has {num_workers}: "
            "resume with as many, or begin a new LocalSGD from the averaged model"
        )
    outer.check(state["outer"], in_round=state["step_in_round"] > 0)


def check_places(words: dict[int, Word]) -> None:
    """Raise where ranks have not taken as many rounds and steps."""
    places = {rank: word["place"] for rank, word in words.items()}
    if len({tuple(place) for place in places.values()}) > 1:
        at = "; ".join(
            f"rank {rank} is after step {steps} and {rounds} rounds"
            for rank, (rounds, steps, *_) in places.items()
        )
        raise ValueError(f"ranks must be at the same step, but {at}")
