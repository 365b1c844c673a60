"""Lanes: the places along the engines' axis. A member has one, or one for each of its K workers.

Engines step lanes and know nothing of members; what they do beyond that is to average the lanes of
the members whose round has ended, a run of neighbours at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undertow.train.ensemble._member import Member
from undertow.train.local_sgd import Workers


@dataclass(frozen=True)
class Run:
    """Neighbouring members with as many workers each, averaged alike at the same step.

    `workers` are those of one of them, for what all of them share.
    """

    members: slice
    lanes: slice
    workers: Workers

    def split(self, tensor: Tensor) -> Tensor:
        """A view of the run's part of a tensor `[lanes, ...]`, as `[members, workers, ...]`."""
        return tensor[self.lanes].unflatten(0, (-1, self.workers.num))


class Lanes:
    """Which lanes belong to which member."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.workers = [member.workers for member in members]
        self.counts = [1 if own is None else own.num for own in self.workers]
        self.firsts = [0, *np.cumsum(self.counts).tolist()[:-1]]
        self.total = sum(self.counts)
        self.member_of = torch.arange(len(members)).repeat_interleave(torch.tensor(self.counts))
        self._plain = self.total == len(members)

    def of(self, member: int) -> range:
        """A member's lanes."""
        return range(self.firsts[member], self.firsts[member] + self.counts[member])

    def repeat(self, values: Tensor, axis: int = 0) -> Tensor:
        """Values of members, one after another for each of their lanes."""
        if self._plain:
            return values
        return values.index_select(axis, self.member_of.to(values.device))

    def mean(self, values: Tensor) -> Tensor:
        """Values of lanes as the means of members; of whole numbers those of the first worker.

        Members with one lane, and those whose lanes agree, come out to the last bit.
        """
        if self._plain:
            return values
        firsts, counts = torch.tensor(self.firsts), torch.tensor(self.counts)
        mean = values[firsts]
        if _has_mean(values):
            for count in set(self.counts) - {1}:
                alike = torch.nonzero(counts == count).flatten()
                lanes = values[firsts[alike, None] + torch.arange(count)]
                mean[alike] += (lanes - lanes[:, :1]).mean(1)
        return mean

    def runs(self, due: Sequence[int]) -> list[Run]:
        """The members whose round has ended, in ascending order, as runs of neighbours.

        One worker alone with no outer step is its own average, and in none of them.
        """
        found: list[Run] = []
        for member in due:
            own = self.workers[member]
            assert own is not None
            if own.num == 1 and not own.steps_outer:
                continue
            lanes = self.of(member)
            last = found[-1] if found else None
            if (
                last is not None
                and last.members.stop == member
                and (last.workers.num, last.workers.average, last.workers.outer)
                == (own.num, own.average, own.outer)
            ):
                first = last.members.start, last.lanes.start
                found[-1] = Run(slice(first[0], member + 1), slice(first[1], lanes.stop), own)
            else:
                found.append(Run(slice(member, member + 1), slice(lanes.start, lanes.stop), own))
        return found


class RoundBook:
    """When the rounds of each member end, and how many have ended."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._ends: list[int | None] = [None] * len(lanes.workers)
        self.taken = [0] * len(lanes.workers)
        self._runs: dict[tuple[int, ...], list[Run]] = {}

    def averages(
        self, first_step: int, rates: Float[np.ndarray, "steps E"], alive: Sequence[int]
    ) -> dict[int, list[Run]]:
        """What is averaged after which of the next steps, counted from 0 for the first of them.

        The rate of a round is read where it starts.
        """
        due: dict[int, list[int]] = {}
        ends, taken = list(self._ends), list(self.taken)
        for member in alive:
            workers = self._lanes.workers[member]
            if workers is None:
                continue
            step, last, own = first_step, first_step + len(rates), rates[:, member]
            while step < last:
                end = ends[member]
                if end is None:
                    end = step + workers.length(step, float(own[step - first_step]))
                step = min(end, last)
                ends[member] = end
                if end <= last:
                    due.setdefault(end - first_step - 1, []).append(member)
                    ends[member] = None
                    taken[member] += 1
        self._ends, self.taken = ends, taken
        return {place: runs for place, own in due.items() if (runs := self._as_runs(tuple(own)))}

    def _as_runs(self, due: tuple[int, ...]) -> list[Run]:
        if due not in self._runs:
            self._runs[due] = self._lanes.runs(due)
        return self._runs[due]


class Averager:
    """What is done at the ends of rounds to tensors `[lanes, ...]`: mean, outer step, broadcast."""

    def __init__(self, lanes: Lanes, params: Sequence[Tensor]) -> None:
        firsts = torch.tensor(lanes.firsts)
        outer = [
            own.outer if own is not None and own.steps_outer else None for own in lanes.workers
        ]
        self._starts = [value[firsts].clone() for value in params] if any(outer) else []
        moving = any(own is not None and own.momentum for own in outer)
        self._velocities = [torch.zeros_like(start) for start in self._starts] if moving else []

    def average(
        self,
        runs: Sequence[Run],
        params: Sequence[Tensor],
        state: Sequence[Tensor],
        buffers: Sequence[Tensor],
        scales: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Average the lanes of each run, in place.

        Args:
            runs: the members whose round has ended.
            params: the trained parameters.
            state: the tensors of the optimizer's state.
            buffers: the buffers.
            scales: by what each of `params` is to be multiplied, `[lanes, ...]` of one value a
                lane, the same for all lanes of a member.
        """
        for run in runs:
            for place, param in enumerate(params):
                own = run.split(param)
                mean = own.mean(1)
                if run.workers.outer is not None and run.workers.steps_outer:
                    scale = None if scales is None else scales[place]
                    self._outer_step(run, place, mean, None if scale is None else run.split(scale))
                own.copy_(mean[:, None])
            others = [*state] * ("optimizer" in run.workers.average)
            others += [*buffers] * ("buffers" in run.workers.average)
            for tensor in others:
                if tensor.ndim and _has_mean(tensor):
                    own = run.split(tensor)
                    own.copy_(own.mean(1, keepdim=True))

    def _outer_step(self, run: Run, place: int, mean: Tensor, scale: Tensor | None) -> None:
        outer = run.workers.outer
        assert outer is not None
        if scale is not None:
            mean.mul_(scale[:, 0])
        start = self._starts[place][run.members]
        velocity = self._velocities[place][run.members] if outer.momentum else None
        outer.step_(start, mean, velocity)
        start.copy_(mean)
        if scale is not None:
            mean.div_(scale[:, 0])


def _has_mean(tensor: Tensor) -> bool:
    """Whether these are no counts, which all workers share."""
    return tensor.is_floating_point() or tensor.is_complex()
