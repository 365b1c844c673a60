"""Tensors laid end to end in one buffer, which is reduced in slices of about 25 MB.

A round is two copies and one sum over memory beside the reduction itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_SLICE_BYTES = 25 * 2**20


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

    @property
    def nbytes(self) -> int:
        """The bytes that are reduced."""
        return self.buffer.nbytes

    def slices(self) -> tuple[Tensor, ...]:
        """What is reduced in one call each; together they are the whole buffer."""
        return self.buffer.split(_SLICE_BYTES // self.buffer.element_size())

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Copy the tensors in."""
        torch._foreach_copy_(self._places(tensors), list(tensors))

    def empty(self, tensors: Sequence[Tensor], parts: int = 1) -> None:
        """Copy the buffer out, divided by `parts` where it holds a sum over so many workers."""
        if not self.floating or parts == 1:
            torch._foreach_copy_(list(tensors), self._places(tensors))
            return
        for tensor, place in zip(tensors, self._places(tensors), strict=True):
            if tensor.dtype == place.dtype:
                torch.mul(place, 1 / parts, out=tensor)
            else:
                tensor.copy_(place.mul_(1 / parts))

    def finite(self) -> bool:
        """Whether the sum of all is finite, which no number that is not leaves so."""
        return not self.floating or bool(self.buffer.sum().isfinite())

    def distance(self, tensors: Sequence[Tensor], parts: int) -> tuple[float, float]:
        """The squared distance from the tensors to what `empty` would make of them, and their norm.

        The buffer is left as it is.
        """
        moved = norm = 0.0
        for tensor, place in zip(tensors, self._places(tensors), strict=True):
            ours = tensor.to(place.dtype)
            moved += float(torch.linalg.vector_norm(torch.sub(ours, place, alpha=1 / parts))) ** 2
            norm += float(torch.linalg.vector_norm(ours)) ** 2
        return moved, norm

    def _places(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Views of the buffer in the shapes of the tensors."""
        parts = self.buffer.split([tensor.numel() for tensor in tensors])
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
