"""Tensors laid end to end in one buffer, which is reduced in slices of about 25 MB.

Copies go in pieces that stay in cache, so that the check for numbers that are not finite and the
distance from the average cost no further pass over memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_SLICE_BYTES = 25 * 2**20
_PIECE = 2**17  # elements of a piece: 512 KB of float32


def _accumulates_in(dtype: torch.dtype) -> torch.dtype:
    """Half precision is averaged in float32, where a sum over workers keeps its digits."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


class Flat:
    """One buffer for tensors of one kind and device, in the order given; made once and kept."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.sizes = [tensor.numel() for tensor in tensors]
        self.buffer = torch.empty(
            sum(self.sizes), dtype=_accumulates_in(tensors[0].dtype), device=tensors[0].device
        )

    def slices(self) -> tuple[Tensor, ...]:
        """What is reduced in one call each; together they are the whole buffer."""
        return self.buffer.split(max(_SLICE_BYTES // self.buffer.element_size(), 1))

    def pieces(
        self, tensors: Sequence[Tensor]
    ) -> Iterator[tuple[list[Tensor], list[Tensor], Tensor]]:
        """Tensors, their places in the buffer, and the stretch that these make, piece by piece."""
        ours: list[Tensor] = []
        places: list[Tensor] = []
        start = end = 0
        for tensor in tensors:
            size = tensor.numel()
            if size > _PIECE and tensor.is_contiguous():
                if ours:
                    yield ours, places, self.buffer[start:end]
                for part, place in zip(
                    tensor.view(-1).split(_PIECE),
                    self.buffer[end : end + size].split(_PIECE),
                    strict=True,
                ):
                    yield [part], [place], place
                end += size
                ours, places, start = [], [], end
                continue
            ours.append(tensor)
            places.append(self.buffer[end : end + size].view(tensor.shape))
            end += size
            if end - start >= _PIECE:
                yield ours, places, self.buffer[start:end]
                ours, places, start = [], [], end
        if ours:
            yield ours, places, self.buffer[start:end]

    def fill(self, tensors: Sequence[Tensor]) -> bool:
        """Copy the tensors in; whether the sum of every piece is finite."""
        sums = []
        for ours, places, stretch in self.pieces(tensors):
            torch._foreach_copy_(places, ours)
            sums.append(stretch.sum())
        return not sums or math.isfinite(torch.stack(sums).abs_().max().item())

    def empty(self, tensors: Sequence[Tensor], scale: float) -> tuple[float, float]:
        """Copy `scale` times the buffer out; the squared change of the tensors and squared norm."""
        changes, norms = [], []
        for ours, places, stretch in self.pieces(tensors):
            if scale != 1:
                stretch.mul_(scale)
            change = torch._foreach_sub(places, ours)
            changes += [
                (part * part).sum() if part.dim() == 0 else part.square_().sum() for part in change
            ]
            norms.append(stretch.square().sum())
            torch._foreach_copy_(ours, places)
        total = torch.stack(changes).sum(dtype=torch.float64)
        return total.item(), torch.stack(norms).sum(dtype=torch.float64).item()


def reduce_in_slices(flats: Sequence[Flat], group: dist.ProcessGroup) -> None:
    """Sum the buffers over the group, all slices on their way at once.

    Raises:
        RuntimeError: a rank is gone, or has not answered within the group's timeout.
    """
    works = [
        dist.all_reduce(part, group=group, async_op=True)
        for flat in flats
        for part in flat.slices()
    ]
    for work in works:
        work.wait()
