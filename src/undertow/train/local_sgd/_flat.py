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


def accumulates_in(dtype: torch.dtype) -> torch.dtype:
    """Half precision is averaged in float32, where a sum over workers keeps its digits."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


class Flat:
    """One buffer for tensors of one kind and device, in the order given; made once and kept.

    Args:
        tensors: of floating point, or of integers, which are reduced by their largest.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        dtype, device = accumulates_in(tensors[0].dtype), tensors[0].device
        self.floating = dtype.is_floating_point
        if not self.floating:
            dtype = torch.int64
        self.buffer = torch.empty(sum(t.numel() for t in tensors), dtype=dtype, device=device)
        self._scratch = torch.empty(2 * _PIECE, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        """The bytes that are reduced."""
        return self.buffer.nbytes

    def slices(self) -> tuple[Tensor, ...]:
        """What is reduced in one call each; together they are the whole buffer."""
        return self.buffer.split(_SLICE_BYTES // self.buffer.element_size())

    def fill(self, tensors: Sequence[Tensor]) -> bool:
        """Copy the tensors in; whether their squares have a finite sum."""
        squares = []
        for ours, stretch in self._pieces(tensors):
            torch._foreach_copy_(_places(stretch, ours), ours)
            if self.floating:
                squares.append(torch.dot(stretch, stretch))
        return not squares or math.isfinite(torch.stack(squares).max().item())

    def empty(self, tensors: Sequence[Tensor], parts: int = 1) -> tuple[float, float]:
        """Copy the buffer out, divided by `parts` where it holds a sum over so many workers.

        Returns:
            The squared distance that the tensors moved, and the squared norm of what they are now.
        """
        moved, norms = [], []
        for ours, stretch in self._pieces(tensors):
            if self.floating:
                if parts > 1:
                    stretch.div_(parts)
                change = self._scratch[: len(stretch)]
                if len(change) < len(stretch):  # one large tensor that is not contiguous
                    change = torch.empty_like(stretch)
                torch._foreach_copy_(_places(change, ours), ours)
                change.sub_(stretch)
                moved.append(torch.dot(change, change))
                norms.append(torch.dot(stretch, stretch))
            torch._foreach_copy_(ours, _places(stretch, ours))
        if not moved:
            return 0.0, 0.0
        both = torch.stack([torch.stack(moved), torch.stack(norms)]).double().sum(dim=1)
        return float(both[0]), float(both[1])

    def _pieces(self, tensors: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Tensors, or parts of one, with the stretch of the buffer that they take."""
        run: list[Tensor] = []
        start = end = 0
        for tensor in tensors:
            large = tensor.numel() > _PIECE
            if run and (large or end - start >= _PIECE):
                yield run, self.buffer[start:end]
                run, start = [], end
            end += tensor.numel()
            if large and tensor.is_contiguous():
                stretches = self.buffer[start:end].split(_PIECE)
                for part, stretch in zip(tensor.view(-1).split(_PIECE), stretches, strict=True):
                    yield [part], stretch
                start = end
            else:
                run.append(tensor)
        if run:
            yield run, self.buffer[start:end]


def _places(stretch: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of a stretch in the shapes of the tensors that lie in it, end to end."""
    if len(tensors) == 1:
        return [stretch.view(tensors[0].shape)]
    parts = stretch.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def reduce_(flats: Sequence[Flat], group: dist.ProcessGroup) -> None:
    """Sum the buffers over the group (integers: take the largest), all slices on their way at once.

    Raises:
        RuntimeError: a rank is gone, or has not answered within the group's timeout.
    """
    works = [
        dist.all_reduce(
            part,
            op=dist.ReduceOp.SUM if flat.floating else dist.ReduceOp.MAX,
            group=group,
            async_op=True,
        )
        for flat in flats
        for part in flat.slices()
    ]
    for work in works:
        work.wait()
    for device in {flat.buffer.device for flat in flats if flat.buffer.is_cuda}:
        torch.cuda.synchronize(device)  # nccl's wait is only for the stream
