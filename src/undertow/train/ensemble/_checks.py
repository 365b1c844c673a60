"""What an ensemble refuses, in words: members, data and batch shapes that cannot be meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from undertow.objective import whole_number
from undertow.train.ensemble._sampling import Order

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Ordered(Protocol):
    """Anything that visits data in some order."""

    @property
    def order(self) -> Order:
        """How the data are visited."""


def check_data(
    data: tuple[Tensor, Tensor], dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Inputs (as `dtype`, where they are not whole numbers) and targets, on the device."""
    if not (
        isinstance(data, tuple | list)
        and len(data) == 2
        and all(isinstance(part, Tensor) and part.ndim for part in data)
    ):
        raise TypeError(
            "data must be two tensors (inputs, targets) with the samples along the first axis, "
            f"got {type(data).__name__}"
        )
    inputs, targets = data
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise ValueError(
            f"data must hold as many targets as inputs, and at least one, got {len(inputs)} "
            f"inputs and {len(targets)} targets"
        )
    if inputs.is_floating_point():
        inputs = inputs.detach().to(dtype)
    for name, part in (("inputs", inputs), ("targets", targets)):
        if part.is_floating_point() and not bool(torch.isfinite(part).all()):
            raise ValueError(
                f"the {name} hold NaN or values that are infinite in {dtype}; clean or drop "
                "those samples"
            )
    return inputs.to(device), targets.to(device)


def check_samples(samples: Tensor, members: int, available: int) -> Tensor:
    """Each member's own rows of the data, `[E, n]`, as int64 on the CPU."""
    if not isinstance(samples, Tensor) or samples.dtype not in _WHOLE:
        given = samples.dtype if isinstance(samples, Tensor) else type(samples).__name__
        raise TypeError(f"samples must be a tensor of whole numbers, rows of the data, got {given}")
    if samples.ndim != 2 or len(samples) != members or samples.shape[1] == 0:
        raise ValueError(
            f"samples must hold rows of the data for each of the {members} members, [E, n], got "
            f"shape {tuple(samples.shape)}"
        )
    if int(samples.min()) < 0 or int(samples.max()) >= available:
        raise ValueError(
            f"samples must lie between 0 and {available - 1}, as the data have {available} rows, "
            f"got {int(samples.min())} to {int(samples.max())}"
        )
    return samples.to("cpu", torch.int64)


def batch_shape(members: Sequence[Ordered], batch_size: int, num_samples: int) -> tuple[Order, int]:
    """The order that decides batch sizes, and the batch size, once all members agree on them."""
    orders = {member.order for member in members}
    if orders == {"full"}:
        return "full", num_samples
    if "full" in orders:
        raise ValueError(
            "members with order='full' cannot share an ensemble with mini-batch members; "
            "train them as two ensembles"
        )
    batch_size = whole_number("batch_size", batch_size, least=1)
    if batch_size > num_samples:
        raise ValueError(
            f"batch_size must lie between 1 and the {num_samples} samples there are, "
            f"got {batch_size}"
        )
    if "replacement" in orders and len(orders) > 1 and num_samples % batch_size:
        raise ValueError(
            f"members that draw with replacement and members that go through epochs differ in "
            f"their last batch, as {batch_size} does not divide {num_samples}; choose a batch "
            "size that does, or train them as two ensembles"
        )
    return min(orders), batch_size
