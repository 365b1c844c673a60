"""One averaging: copied in and checked, told of, reduced, and copied out on all ranks or on none.

A failure leaves every rank with its own parameters at the round's end, so that those who are left
can average again.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from undertow.train.local_sgd._carried import Carried, Part, carried, counters, digest
from undertow.train.local_sgd._flat import Flat
from undertow.train.local_sgd._meeting import Word, WorkerLost, named
from undertow.train.local_sgd._team import Team, check_alike, trouble


@dataclass(frozen=True)
class Averaged:
    """What an averaging reduced, in bytes, and how far this rank was from it; None: not asked."""

    nbytes: int
    distance: float | None


class Averager:
    """Averages `parts` of a model and its optimizer over a team, in buffers that it keeps."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, parts: Collection[Part]
    ) -> None:
        self.model, self.optimizer, self.parts = model, optimizer, tuple(parts)
        self._flats: dict[tuple[object, ...], Flat] = {}

    def carried(self) -> list[Carried]:
        """What is averaged now; an optimizer's state grows with its first step."""
        return carried(self.model, self.optimizer, self.parts)

    def average(self, team: Team, word: Word, about: str, *, far: bool) -> Averaged | None:
        """Average over the team; None where all have finished with nothing to average.

        Args:
            team: the workers.
            word: where this one stands.
            about: what for, in words.
            far: whether to measure how far this rank is from the average.

        Raises:
            WorkerLost: a rank did not come, has left, or ended its loop a round too early.
            Troubled: a rank cannot go on, such as with a parameter that is not finite.
            ValueError: ranks are at different steps, or hold different state.
        """
        parts: list[Carried] = []
        flats: list[Flat] = []
        try:
            parts = self.carried()
            flats = [self._flat(part) for part in parts] if team.size > 1 else []
            for part, flat in zip(parts, flats, strict=False):
                flat.fill(list(part.tensors.values()))
            counts = counters(self.optimizer) if "optimizer" in self.parts else {}
            word = word | {"layout": digest(parts), "counts": counts}
        except Exception as error:
            word = trouble(error)
        words = team.meet(word, about, check=_check_words)
        if not any(word["in_round"] for word in words.values()):
            return None
        odd: list[tuple[Carried, Flat]] = []

        def check() -> None:
            # A sum over workers is finite only where all of theirs are, so that all look or none.
            odd.extend(pair for pair in zip(parts, flats, strict=False) if not pair[1].finite())
            if odd or team.size == 1:
                _check_finite(parts)

        try:
            team.reduce_(flats, about, check=check)
        except WorkerLost:
            self._flats = {}  # a call that failed may still write to them
            raise
        for part, flat in odd:
            if part.part != "buffers" and not flat.buffer.isfinite().all():
                raise FloatingPointError(
                    f"the sum of {part.part} over workers is beyond {flat.buffer.dtype}; nothing "
                    "was averaged"
                )
        distance = self._distance(parts, flats, team.size) if far else None
        for part, flat in zip(parts, flats, strict=False):
            flat.empty(list(part.tensors.values()), team.size)
        return Averaged(sum(flat.nbytes for flat in flats), distance)

    def _distance(self, parts: list[Carried], flats: list[Flat], size: int) -> float:
        """From this rank's parameters to the average, over their norm."""
        if not flats:
            return 0.0
        squares = [
            flat.distance(list(part.tensors.values()), size)
            for part, flat in zip(parts, flats, strict=True)
            if part.part == "parameters"
        ]
        moved, norm = (sum(column) for column in zip(*squares, strict=True))
        return math.sqrt(moved / norm) if norm else 0.0

    def broadcast(self, team: Team) -> None:
        """Give all ranks the parameters, and what else is averaged, of the first."""
        for part in self.carried():
            flat, tensors = self._flat(part), list(part.tensors.values())
            flat.fill(tensors)
            team.broadcast_([flat])
            flat.empty(tensors)

    def _flat(self, part: Carried) -> Flat:
        if part.layout not in self._flats:
            self._flats = {
                layout: flat
                for layout, flat in self._flats.items()
                if layout[:3] != part.layout[:3]
            }
            self._flats[part.layout] = Flat(list(part.tensors.values()))
        return self._flats[part.layout]


def _check_finite(parts: list[Carried]) -> None:
    """Raise FloatingPointError at the first tensor that is not finite."""
    what = {"parameters": "parameter", "optimizer": "optimizer's", "buffers": "buffer"}
    for part in parts:
        if name := part.not_finite():
            raise FloatingPointError(
                f"{what[part.part]} {name} is no finite number any more; nothing was averaged, go "
                "back to a saved state or rebuild() without it"
            )


def _check_words(words: dict[int, Word]) -> None:
    _check_steps(words)
    _check_state(words)


def _check_steps(words: dict[int, Word]) -> None:
    """All at the same step; ranks that have ended their loops may be a round behind.

    A GradScaler skips steps on one rank alone, and loaders may differ by a batch.
    """
    running = {rank: word for rank, word in words.items() if not word["ended"]}
    ended = {rank: word["steps"] for rank, word in words.items() if word["ended"]}
    if running:
        check_alike(running, "steps", lambda rank, usual: _apart(running, rank, usual), ValueError)
    most = max((word["steps"] for word in running.values()), default=0)
    length = max((word["length"] for word in running.values()), default=0)
    behind = [rank for rank, steps in ended.items() if most - steps > length]
    if behind:
        after = ", ".join(sorted({str(ended[rank]) for rank in behind}, key=int))
        raise WorkerLost(
            f"{named(behind)} ended the loop after step {after}, where {named(list(running))} "
            f"went on to step {next(iter(running.values()))['steps']}: give every rank as many "
            "steps; rebuild() goes on without it",
            behind,
        )


def _apart(words: dict[int, Word], rank: int, usual: int) -> str:
    ours, theirs = words[rank], words[usual]
    return (
        f"ranks must average at the same step, but rank {rank} comes after step {ours['steps']}, "
        f"in a round of {ours['length']} from lr {ours['lr']:.6g}, where rank {usual} comes after "
        f"step {theirs['steps']}, in one of {theirs['length']} from lr {theirs['lr']:.6g}"
    )


def _check_state(words: dict[int, Word]) -> None:
    def layout(rank: int, usual: int) -> str:
        ours, theirs = words[rank]["layout"], words[usual]["layout"]
        return (
            f"ranks must have the same to average, but rank {rank} has {ours[0]} tensors of "
            f"{ours[1]:,} numbers where rank {usual} has {theirs[0]} of {theirs[1]:,}: parameters "
            "were added on some ranks only, or had no gradient yet on some"
        )

    def counts(rank: int, usual: int) -> str:
        ours, theirs = words[rank]["counts"], words[usual]["counts"]
        key = next(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
        return (
            f"ranks must count steps alike to average the optimizer's state, but rank {rank} has "
            f"{key} {ours.get(key)} where rank {usual} has {theirs.get(key)}"
        )

    check_alike(words, "layout", layout, ValueError)
    if len({word["steps"] for word in words.values()}) == 1:
        check_alike(words, "counts", counts, ValueError)
