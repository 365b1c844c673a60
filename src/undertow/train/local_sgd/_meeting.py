"""Where the ranks of a group meet: each brings a word, all hear the same words or the same loss.

Words go through the group's store, where a rank that does not come can be named. Who is lost is
decided once, by the first to run out of patience, so that all who are left agree on it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

Word = dict[str, Any]
_FIRST_PAUSE, _PAUSE = 0.0005, 0.02  # seconds between two looks at who has come
_FAREWELL = 5.0  # seconds that the holder of the store waits for the others to have read it


class WorkerLost(RuntimeError):
    """A worker has ended, is paused or came too late; `ranks` are those known to be lost."""

    def __init__(self, message: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)


def named(ranks: Sequence[int]) -> str:
    """The ranks in words: `rank 2`, `ranks 0, 1 and 3`."""
    words = [str(rank) for rank in sorted(ranks)]
    if len(words) == 1:
        return f"rank {words[0]}"
    return f"ranks {', '.join(words[:-1])} and {words[-1]}"


class Meeting:
    """Meetings of `ranks`, numbered from 0; each rank must come to all of them, in order."""

    def __init__(self, store: dist.Store, ranks: Sequence[int], rank: int) -> None:
        self.store, self.ranks, self.rank = store, tuple(ranks), rank
        self._number = 0

    def meet(self, word: Word, about: str, patience: float) -> dict[int, Word]:
        """The words of all ranks, by rank; `patience` is how many seconds to wait for them.

        Raises:
            WorkerLost: a rank has not come in time, or this one came too late.
        """
        number, self._number = self._number, self._number + 1
        keys = {rank: f"{number}/{rank}" for rank in self.ranks}
        try:
            self.store.set(keys[self.rank], json.dumps(word))
            proposal = self._wait(keys, f"{number}/verdict", patience)
            verdict = self.store.compare_set(f"{number}/verdict", "", proposal).decode()
            if verdict != "all here":
                self._tell_lost([int(rank) for rank in verdict.split()], about, patience)
            words = self.store.multi_get(list(keys.values()))
            if number:  # all have left the meeting before this one
                self.store.delete_key(f"{number - 1}/{self.rank}")
                if self.rank == self.ranks[0]:
                    self.store.delete_key(f"{number - 1}/verdict")
        except dist.DistNetworkError as error:
            raise WorkerLost(
                f"the store that workers meet in is gone, before {about}: the process that holds "
                "it, rank 0 or torchrun, has ended"
            ) from error
        return {rank: json.loads(word) for rank, word in zip(self.ranks, words, strict=True)}

    def leave(self, word: Word) -> None:
        """Leave a word for the next meeting without waiting for it."""
        self.store.set(f"{self._number}/{self.rank}", json.dumps(word))
        self._number += 1

    def farewell(self, lost: Sequence[int] = ()) -> None:
        """Tell that this rank reads no more, or wait a little until the others have.

        The store may live in the first process of all, and would end with it before the others have
        read there why.
        """
        try:
            place = f"farewell/{self._number}"
            if self.rank:
                self.store.set(f"{place}/{self.rank}", "")
                return
            keys = [f"{place}/{rank}" for rank in self.ranks if rank and rank not in lost]
            deadline = time.monotonic() + _FAREWELL
            while keys and not self.store.check(keys) and time.monotonic() < deadline:
                time.sleep(_PAUSE)
        except RuntimeError:  # gone, and with it whom to tell
            return

    def _wait(self, keys: dict[int, str], verdict: str, patience: float) -> str:
        """What to propose: `all here`, or the ranks that have not come, in digits."""
        deadline, pause = time.monotonic() + patience, _FIRST_PAUSE
        # Looked for in turns: the store's own wait writes warnings where it runs out of time.
        while not self.store.check(list(keys.values())):
            over = time.monotonic() >= deadline
            if over or (pause >= _PAUSE and self.store.check([verdict])):
                lost = [rank for rank, key in keys.items() if not self.store.check([key])]
                if lost:
                    return " ".join(map(str, lost))
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE)
        return "all here"

    def _tell_lost(self, lost: list[int], about: str, patience: float) -> None:
        if self.rank in lost:
            others = [rank for rank in self.ranks if rank not in lost]
            raise WorkerLost(
                f"rank {self.rank} came to {about} more than {patience:.3g} s after "
                f"{named(others)}, which went on without it",
                lost,
            )
        raise WorkerLost(
            f"{named(lost)} did not come to {about} within {patience:.3g} s: it has ended, is "
            "paused or is slower than timeout; rebuild() goes on without it",
            lost,
        )
