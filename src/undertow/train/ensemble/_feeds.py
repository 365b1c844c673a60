"""The batches of all lanes: every member's streams, and how they are dealt to its workers.

A worker's generators are its own. Those of the first are the plain member's, so that one worker is
that member; workers that share an order are dealt the batches of a member with K times the size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from undertow.train.ensemble._checks import BatchShape
from undertow.train.ensemble._member import Member
from undertow.train.ensemble._sampling import (
    Batch,
    BatchStream,
    NoisyStream,
    batch_sizes,
    by_step,
    spawn_generators,
)
from undertow.train.local_sgd import partition
from undertow.train.rules import Rule

_MAX_PERTURBED = 2**22  # numbers in the perturbed targets that are kept at once


def lane_generators(member: Member, batches: int) -> list[list[torch.Generator]]:
    """The generators of each lane of a member whose rule takes so many `batches` a step.

    For weights, order, forward pass, label noise; then order and noise of each further batch.
    """
    count = 2 + 2 * batches
    lanes = [spawn_generators(member.seed, count)]
    for worker in range(1, member.workers.num if member.workers is not None else 1):
        lanes.append([_generator(member.seed, place, worker) for place in range(count)])
    return lanes


def _generator(seed: int, place: int, worker: int) -> torch.Generator:
    """A generator below the member's own at that place; worker 0 draws none, the partition does."""
    own = np.random.SeedSequence(seed, spawn_key=(place, worker))
    return torch.Generator().manual_seed(int(own.generate_state(1, np.uint64)[0] >> np.uint64(1)))


def worker_rows(
    member: Member,
    rows: Int[Tensor, " n"] | None,
    targets: Shaped[Tensor, "all ..."],
) -> list[Int[Tensor, " share"] | None]:
    """The rows of the data that each worker draws from; None: all. One entry where all share."""
    workers = member.workers
    if workers is None or workers.num == 1 or workers.data == "shared":
        return [rows]
    if workers.data == "own":
        return [rows] * workers.num
    own = targets.cpu() if rows is None else targets.cpu()[rows]
    try:
        shards = partition(own, workers.num, workers.data, generator=_generator(member.seed, 0, 0))
    except ValueError as error:
        raise ValueError(f"data={workers.data!r} of Workers: {error}") from error
    return [shard if rows is None else rows[shard] for shard in shards]


@dataclass(frozen=True, eq=False)
class _Source:
    """A member's streams, one for each worker (or for all of them) and each batch of a step."""

    streams: Sequence[Sequence[BatchStream | NoisyStream]]
    hands: int  # how many workers each stream is dealt to

    def take(self, sizes: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """Indices, and targets where they are perturbed: a lane's batches after another's."""
        total = sum(sizes) * self.hands
        taken: list[tuple[Tensor, ...]] = []
        for own in self.streams:
            batches = [stream.take(total) for stream in own]
            parts = [part if isinstance(part, tuple) else (part,) for part in batches]
            if self.hands == 1:
                taken += parts
            else:
                dealt = [[_deal(flat, self.hands, sizes) for flat in part] for part in parts]
                taken += [
                    tuple(flat[hand] for flat in part)
                    for hand in range(self.hands)
                    for part in dealt
                ]
        return taken


def _deal(
    flat: Shaped[Tensor, "total ..."], hands: int, sizes: Sequence[int]
) -> Shaped[Tensor, "hands part ..."]:
    """What a stream gave for steps of `hands` times these sizes, as each worker's parts of them."""
    steps = flat.split([hands * size for size in sizes])
    return torch.cat([own.unflatten(0, (hands, -1)) for own in steps], dim=1)


class Feed:
    """What all lanes see, step after step.

    Args:
        members: the members.
        generators: those of each lane, see `lane_generators`; of members, of lanes.
        rows: the rows of the data that each member trains on; None: all.
        targets: the targets of all data.
        shape: the batches that all lanes take.
        rule: tells how many batches a step takes, and how targets are perturbed.
        check: raises where targets are not such as the loss takes.
    """

    def __init__(
        self,
        members: Sequence[Member],
        generators: Sequence[Sequence[Sequence[torch.Generator]]],
        rows: Sequence[Int[Tensor, " n"] | None],
        targets: Shaped[Tensor, "all ..."],
        shape: BatchShape,
        rule: Rule,
        check: Callable[[Tensor], None],
    ) -> None:
        self._shape, self._targets, self._perturbed = shape, targets, rule.perturb is not None
        self.shards = [
            worker_rows(member, own, targets) for member, own in zip(members, rows, strict=True)
        ]
        self._sources = []
        for member, own, shards in zip(members, generators, self.shards, strict=True):
            hands = len(own) // len(shards)
            count = len(targets) if shards[0] is None else len(shards[0])
            streams: list[list[BatchStream | NoisyStream]] = []
            for lane, shard in zip(own, shards, strict=False):
                streams.append([])
                for order, noise in zip((lane[1], *lane[4::2]), lane[3::2], strict=True):
                    stream = BatchStream(member.order, count, hands * shape.size, order, shard)
                    streams[-1].append(
                        stream
                        if rule.perturb is None
                        else NoisyStream(stream, targets, rule.perturb, noise, check)
                    )
            self._sources.append(_Source(streams, hands))
        self._lanes = sum(map(len, generators))
        self._batches = len(rule.batch_weights)
        if rule.perturb is not None:
            rule.perturb(targets[:1].clone(), torch.Generator())  # a kind that it cannot perturb

    def steps_at_once(self, count: int) -> int:
        """How many of the steps to draw at once, as perturbed targets take memory."""
        if not self._perturbed:
            return count
        numbers = self._targets[0].numel() * self._shape.size * self._lanes * self._batches
        return min(count, max(1, _MAX_PERTURBED // numbers))

    def take(self, first_step: int, count: int) -> list[Batch]:
        """The batches of `count` steps from number `first_step` on."""
        shape, device = self._shape, self._targets.device
        sizes = batch_sizes(shape.order, shape.samples, shape.size, first_step, count)
        taken = zip(*(own for source in self._sources for own in source.take(sizes)), strict=True)
        parts = (by_step(torch.stack(own).to(device), self._lanes, sizes) for own in taken)
        return [Batch(*own) for own in zip(*parts, strict=True)]
