"""What ranks compare before the first step: settings, and the values that they start from.

Equal starts are what averaging rests on: ranks that differ would be averaged all the same, and the
result be no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undertow.train.local_sgd._carried import Carried
from undertow.train.local_sgd._meeting import Word
from undertow.train.local_sgd._team import Team, check_alike, odd_ones


def settings_of(optimizer: torch.optim.Optimizer, **given: object) -> dict[str, Any]:
    """Names and values of what ranks must have alike; a function counts as any other."""
    found: dict[str, Any] = {
        name: "a function" if callable(value) else value if _plain(value) else repr(value)
        for name, value in given.items()
    }
    found["optimizer"] = type(optimizer).__name__
    for number, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if name == "params":
                found[f"number of parameters of group {number}"] = len(value)
            elif isinstance(value, Tensor):
                found[f"{name} of group {number}"] = str(value.tolist())
            else:
                found[f"{name} of group {number}"] = value if _plain(value) else repr(value)
    return found


def agree(team: Team, settings: dict[str, Any], parts: Sequence[Carried], values: bool) -> None:
    """Compare settings and layouts, and values where asked, over all ranks.

    Raises:
        ValueError: something differs; the same line on every rank.
        WorkerLost: a rank did not come.
    """
    shapes = {
        name: f"{tuple(tensor.shape)} of {tensor.dtype}".replace("torch.", "")
        for part in parts
        for name, tensor in part.tensors.items()
    }
    hashes = _hashes(parts) if values else {}
    word: Word = {
        "settings": settings,
        "shapes": _digest(repr(shapes).encode()),
        "hashes": _digest(repr(hashes).encode()),
    }
    words = team.meet(word, "the start", check=_check_settings)
    _, odd = odd_ones(words)
    if odd:
        team.meet({"shapes": shapes, "hashes": hashes}, "the start", check=_check_starts)


def _check_settings(words: dict[int, Word]) -> None:
    def line(rank: int, usual: int) -> str:
        return _difference(rank, usual, words, "settings", "settings")

    check_alike(words, "settings", line, ValueError)


def _check_starts(words: dict[int, Word]) -> None:
    def line(rank: int, usual: int) -> str:
        return _difference(rank, usual, words, "shapes", "parameters")

    check_alike(words, "shapes", line, ValueError)
    check_alike(words, "hashes", lambda rank, usual: _unequal(rank, usual, words), ValueError)


def _difference(rank: int, usual: int, words: dict[int, Word], key: str, what: str) -> str:
    """The first entry in which two ranks differ, in words."""
    ours, theirs = words[rank][key], words[usual][key]
    names = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
    if not names:
        return f"rank {rank} has the {what} of rank {usual} in another order"
    mine, other = (found.get(names[0], "none") for found in (ours, theirs))
    more = f", and {len(names) - 1} more {what}" if len(names) > 1 else ""
    return (
        f"ranks must have the same {what}, but rank {rank} has {names[0]} = {mine} where rank "
        f"{usual} has {other}{more}"
    )


def _unequal(rank: int, usual: int, details: dict[int, Word]) -> str:
    ours, theirs = details[rank]["hashes"], details[usual]["hashes"]
    names = [name for name in theirs if ours[name] != theirs[name]]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"ranks must start from the same values, but rank {rank} differs from rank {usual} in "
        f"{names[0]}{more}; seed all alike, or give sync=True to start from the first rank's "
        "(to go on with a saved run, make LocalSGD before the states are loaded)"
    )


def _plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _hashes(parts: Sequence[Carried]) -> dict[str, str]:
    return {
        name: _digest(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        for part in parts
        for name, tensor in part.tensors.items()
    }
