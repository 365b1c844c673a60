"""The workers that average with each other: their ranks, their meetings, their group.

A team of one needs no process group. What goes wrong on one rank is told to all of them in the
words of a meeting, and raised on each in the same line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import torch.distributed as dist

from undertow.train.local_sgd._flat import Flat, reduce_
from undertow.train.local_sgd._meeting import Meeting, Word, WorkerLost, named

# Groups of ours that work, by ranks, backend and timeout, and the default group that they are from:
# PyTorch gives the name of a group that was destroyed to the next one, which then meets its ghosts.
_GROUPS: dict[tuple[tuple[int, ...], str | None, float], tuple[Any, dist.ProcessGroup]] = {}
_RAISED = {kind.__name__: kind for kind in (ValueError, TypeError, FloatingPointError)}


def trouble(error: Exception) -> Word:
    """The word of a rank that cannot go on."""
    return {"trouble": [type(error).__name__, str(error)]}


class Troubled(Exception):
    """Some ranks have told trouble; `error` is what each rank raises."""

    def __init__(self, error: Exception, ranks: Sequence[int]) -> None:
        super().__init__(str(error))
        self.error, self.ranks = error, tuple(ranks)


class Team:
    """`ranks` of the default group that average with each other, of which this is `rank`."""

    def __init__(
        self,
        ranks: Sequence[int] = (0,),
        rank: int = 0,
        store: dist.Store | None = None,
        timeout: float = 600.0,
    ) -> None:
        self.ranks, self.rank, self.timeout = tuple(ranks), rank, timeout
        self._store = store
        self._group: dist.ProcessGroup | None = None
        self._backend: str | None = None
        self._gone = False  # from the meetings
        if store is not None and len(ranks) > 1:
            self._meeting = Meeting(store, ranks, rank)

    @classmethod
    def of(cls, group: dist.ProcessGroup | None, timeout: float) -> Team:
        """The team of a process group; of all processes by default, of one where there are none.

        Raises:
            ValueError: this process is not in the group.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls(timeout=timeout)
        group = group if group is not None else dist.group.WORLD
        if not isinstance(group, dist.ProcessGroup):
            raise ValueError(f"group must be a group that this process is in, got {group!r}")
        rank = dist.get_rank()
        store = group.get_group_store()
        # Which of its rank's objects this is: the same on all ranks that make as many.
        made = store.add(f"undertow/local_sgd/made by {rank}", 1)
        store = dist.PrefixStore(f"undertow/local_sgd/{made}", store)
        team = cls(dist.get_process_group_ranks(group), rank, store, timeout)
        team._backend = None if group is dist.group.WORLD else dist.get_backend(group)
        return team

    def without(self, lost: Sequence[int]) -> Team:
        """The team of those who are left, who all know of the same losses."""
        ranks = [rank for rank in self.ranks if rank not in lost]
        store = self._store and dist.PrefixStore(f"without {sorted(lost)}", self._store)
        team = Team(ranks, self.rank, store, self.timeout)
        team._backend = self._backend
        return team

    @property
    def size(self) -> int:
        """K, the number of workers."""
        return len(self.ranks)

    def connect(self) -> None:
        """Take a group of our own: its timeout, and no failure in the caller's. All ranks call."""
        if self.size == 1:
            return
        default, group = _GROUPS.get(self._key, (None, None))
        kept = group is not None and default is dist.group.WORLD
        words = self.meet({"kept": kept}, "the start")
        if kept and all(word["kept"] for word in words.values()):
            self._group = group
            return
        try:
            self._group = dist.new_group(
                list(self.ranks),
                timeout=timedelta(seconds=self.timeout / 3),
                backend=self._backend,
                use_local_synchronization=True,
            )
        except RuntimeError as error:
            raise WorkerLost(
                f"the group of {named(self.ranks)} could not be made: {str(error).splitlines()[0]}"
            ) from error

    def disconnect(self, *, works: bool) -> None:
        """Leave the group of our own, to be taken again where it `works`, and the meetings."""
        if self._group is not None and works:
            _GROUPS[self._key] = dist.group.WORLD, self._group
        else:
            _GROUPS.pop(self._key, None)
        self._group = None
        self.farewell()

    def farewell(self, lost: Sequence[int] = ()) -> None:
        """The last of the meetings, once; nobody waits for those who are lost."""
        if self.size > 1 and not self._gone:
            self._gone = True
            self._meeting.farewell(lost)

    @property
    def _key(self) -> tuple[tuple[int, ...], str | None, float]:
        return self.ranks, self._backend, self.timeout

    def meet(
        self,
        word: Word,
        about: str,
        patience: float = 1.0,
        check: Callable[[dict[int, Word]], None] = lambda words: None,
    ) -> dict[int, Word]:
        """The words of all ranks; where it raises, this was the last of the meetings.

        Args:
            word: this rank's.
            about: what for, in words.
            patience: how long to wait for the others, in timeouts.
            check: raises where what the ranks say does not go together, the same on all of them.

        Raises:
            WorkerLost: a rank did not come in time, or had left.
            Troubled: a rank told trouble.
        """
        self._gone = False
        try:
            words = {self.rank: word}
            if self.size > 1:
                words = self._meeting.meet(word, about, patience * self.timeout)
            self._check_told(words)
            check(words)
        except Exception as error:
            self.farewell(error.ranks if isinstance(error, WorkerLost) else ())
            raise
        return words

    def _check_told(self, words: dict[int, Word]) -> None:
        if told := {rank: word["trouble"] for rank, word in words.items() if "trouble" in word}:
            raise self._troubled(told)
        if left := {rank: word["left"] for rank, word in words.items() if "left" in word}:
            line = "; ".join(f"rank {rank} {text}" for rank, text in left.items())
            raise WorkerLost(f"{line}; rebuild() goes on without it", list(left))

    def _troubled(self, told: dict[int, list[str]]) -> Troubled:
        lines: dict[str, list[int]] = {}
        for rank, (_, text) in told.items():
            lines.setdefault(text, []).append(rank)
        line = "; ".join(f"{named(ranks)}: {text}" for text, ranks in lines.items())
        kind = next(iter(told.values()))[0]
        error = _RAISED.get(kind, RuntimeError)(line if self.size > 1 else told[self.rank][1])
        return Troubled(error, list(told))

    def leave(self, word: Word) -> None:
        """Say something to the others' next meeting without waiting for what they say."""
        if self.size > 1:
            with suppress(RuntimeError):  # a store that is gone has nobody to tell
                self._meeting.leave(word)
            self._gone = False
            self.farewell()

    def reduce_(
        self, flats: Sequence[Flat], about: str, *, check: Callable[[], None] = lambda: None
    ) -> None:
        """Sum the buffers over the team; on return all ranks have the sums.

        Args:
            flats: the buffers.
            about: what for, in words.
            check: raises where this rank finds what came out wrong.

        Raises:
            WorkerLost: they have not, on any rank.
            Troubled: some rank's check has raised.
        """
        word: Word = {"failed": None}
        try:
            if self._group is not None:
                reduce_(flats, self._group)
        except RuntimeError as error:
            word = {"failed": str(error).splitlines()[0]}
        else:
            try:
                check()
            except Exception as error:
                word = trouble(error)
        # A third of the timeout has gone at most where a rank waits for the call to fail.
        self.meet(word, about, 2 / 3, check=partial(_check_reduced, about))

    def broadcast_(self, flats: Sequence[Flat]) -> None:
        """Give all ranks the buffers of the first."""
        if self._group is not None:
            for flat in flats:
                for part in flat.slices():
                    dist.broadcast(part, src=self.ranks[0], group=self._group)


def _check_reduced(about: str, words: dict[int, Word]) -> None:
    if failed := {rank: word["failed"] for rank, word in words.items() if word["failed"]}:
        raise WorkerLost(
            f"the all-reduce of {about} failed on {named(list(failed))}, though all are there: "
            f"{next(iter(failed.values()))}; rebuild() tries again"
        )


def odd_ones(values: dict[int, Any]) -> tuple[int, list[int]]:
    """A rank of the largest group of equal values, the first of equals, and the ranks not in it."""
    counts = Counter(repr(value) for value in values.values())
    usual = counts.most_common(1)[0][0]
    first = next(rank for rank, value in values.items() if repr(value) == usual)
    return first, [rank for rank, value in values.items() if repr(value) != usual]


def check_alike(
    words: dict[int, Word], key: str, line: Callable[[int, int], str], kind: type[Exception]
) -> None:
    """Raise where the words of ranks differ under `key`; `line` tells how one does from another."""
    usual, odd = odd_ones({rank: word[key] for rank, word in words.items()})
    if odd:
        raise kind("; ".join(line(rank, usual) for rank in odd))
