"""Which samples each step sees, and with which targets: streams of each ensemble member's own.

Each member draws from its own generators, in the same chunks whatever the length of the blocks it
is asked for, so its data order and its label noise depend on its seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from undertow.train.rules import Perturb

Order = Literal["epochs", "replacement", "cyclic", "full"]
ORDERS: tuple[str, ...] = get_args(Order)

_CHUNK = 256  # steps drawn at once with replacement
_NOISE_CHUNK = 4096  # targets perturbed at once, or one batch where that is more


def spawn_generators(seed: int, count: int) -> list[torch.Generator]:
    """`count` independent generators derived from one seed, on the CPU.

    By `numpy.random.SeedSequence.spawn`: neighbouring seeds share no draws, and the first of a
    longer list are the shorter one.
    """
    return [
        torch.Generator().manual_seed(int(child.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        for child in np.random.SeedSequence(seed).spawn(count)
    ]


class BatchStream:
    """The batches of one member: successive index vectors into `num_samples` samples.

    `epochs` visits every sample once an epoch in a fresh shuffle, `cyclic` in one shuffle kept for
    good, `replacement` draws independently, `full` takes every sample each step. Where the batch
    size does not divide the number of samples, the last batch of an epoch is the smaller rest.
    Where `rows` are given, sample i is row i of them, and it is rows that come out.
    """

    def __init__(
        self,
        order: Order,
        num_samples: int,
        batch_size: int,
        generator: torch.Generator,
        rows: Int[Tensor, " num_samples"] | None = None,
    ) -> None:
        self.order = order
        self.num_samples = num_samples
        self.batch_size = batch_size
        self._generator = generator
        self._rows = rows
        self._permutation: Tensor | None = None
        self._buffer = torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> Int[Tensor, " count"]:
        """The next `count` sample indices of the stream."""
        pieces, have = [self._buffer], len(self._buffer)
        while have < count:
            piece = self._draw()
            pieces.append(piece if self._rows is None else self._rows[piece])
            have += len(piece)
        stream = torch.cat(pieces) if len(pieces) > 1 else self._buffer
        self._buffer = stream[count:]
        return stream[:count]

    def _draw(self) -> Tensor:
        if self.order == "replacement":
            return torch.randint(
                self.num_samples, (_CHUNK * self.batch_size,), generator=self._generator
            )
        if self.order == "epochs":
            return torch.randperm(self.num_samples, generator=self._generator)
        if self._permutation is None:
            self._permutation = (
                torch.arange(self.num_samples)
                if self.order == "full"
                else torch.randperm(self.num_samples, generator=self._generator)
            )
        return self._permutation


@dataclass(frozen=True, eq=False)
class Batch:
    """What all members see at one step: as many independent batches as the rule needs.

    Attributes:
        index: the samples.
        targets: their perturbed targets; None where they are those of the data.
    """

    index: Int[Tensor, "E batches size"]
    targets: Shaped[Tensor, "E batches size ..."] | None = None


class NoisyStream:
    """A stream of batches whose targets are perturbed afresh each time a sample is seen.

    `check` raises where targets are not such as the loss takes.
    """

    def __init__(
        self,
        stream: BatchStream,
        targets: Shaped[Tensor, "n ..."],
        perturb: Perturb,
        generator: torch.Generator,
        check: Callable[[Tensor], None],
    ) -> None:
        self._stream = stream
        self._clean = targets
        self._perturb = perturb
        self._generator = generator
        self._check = check
        self._index = torch.empty(0, dtype=torch.int64)
        self._targets = targets[:0]

    def take(self, count: int) -> tuple[Int[Tensor, " count"], Shaped[Tensor, "count ..."]]:
        """The next `count` sample indices of the stream, and their targets."""
        while len(self._index) < count:
            index = self._stream.take(max(_NOISE_CHUNK, self._stream.batch_size))
            clean = self._clean[index.to(self._clean.device)]
            noisy = self._perturb(clean, self._generator)
            if noisy.shape != clean.shape or noisy.dtype != clean.dtype:
                raise ValueError(
                    "the rule's perturb must return targets of the shape and type that it was "
                    f"given, {tuple(clean.shape)} of {clean.dtype}, but it gave "
                    f"{tuple(noisy.shape)} of {noisy.dtype}"
                )
            self._check(noisy)
            self._index = torch.cat([self._index, index])
            self._targets = torch.cat([self._targets, noisy])
        index, self._index = self._index[:count], self._index[count:]
        targets, self._targets = self._targets[:count], self._targets[count:]
        return index, targets


def batch_sizes(
    order: Order, num_samples: int, batch_size: int, first_step: int, steps: int
) -> list[int]:
    """The number of samples in each of `steps` batches from step number `first_step` on."""
    if order == "replacement":
        return [batch_size] * steps
    per_epoch = -(-num_samples // batch_size)
    rest = num_samples - (per_epoch - 1) * batch_size
    return [
        rest if (first_step + step + 1) % per_epoch == 0 else batch_size for step in range(steps)
    ]


def by_step(
    flat: Shaped[Tensor, "streams total ..."], members: int, sizes: Sequence[int]
) -> Sequence[Shaped[Tensor, "E batches size ..."]]:
    """What the streams gave, a member's streams after another's, divided into steps."""
    flat = flat.unflatten(0, (members, -1))
    if len(set(sizes)) == 1:
        blocks = flat.unflatten(2, (len(sizes), sizes[0])).movedim(2, 0).contiguous()
        return blocks.unbind(0)
    return [piece.contiguous() for piece in flat.split(list(sizes), dim=2)]
