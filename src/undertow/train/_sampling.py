"""Which samples each step sees: one stream of batch indices per ensemble member.

Each member draws from its own generator, in the same chunks whatever the length of the blocks it
is asked for, so its data order depends on its seed alone.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

Order = Literal["epochs", "replacement", "cyclic", "full"]
ORDERS: tuple[str, ...] = get_args(Order)

_CHUNK = 256  # steps drawn at once with replacement


def spawn_generators(seed: int, count: int) -> list[torch.Generator]:
    """`count` independent generators derived from one seed."""
    return [
        torch.Generator().manual_seed(int(child.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        for child in np.random.SeedSequence(seed).spawn(count)
    ]


class BatchStream:
    """The batches of one member: successive index vectors into `num_samples` samples.

    `epochs` visits every sample once an epoch in a fresh shuffle, `cyclic` in one shuffle kept for
    good, `replacement` draws independently, `full` takes every sample each step. Where the batch
    size does not divide the number of samples, the last batch of an epoch is the smaller rest.
    """

    def __init__(
        self, order: Order, num_samples: int, batch_size: int, generator: torch.Generator
    ) -> None:
        self.order = order
        self.num_samples = num_samples
        self.batch_size = batch_size
        self._generator = generator
        self._permutation: Tensor | None = None
        self._buffer = torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> Int[Tensor, " count"]:
        """The next `count` sample indices of the stream."""
        pieces, have = [self._buffer], len(self._buffer)
        while have < count:
            piece = self._draw()
            pieces.append(piece)
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
