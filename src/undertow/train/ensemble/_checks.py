"""What an ensemble refuses, in words: members, data and batch shapes that cannot be meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undertow.objective import whole_number
from undertow.train.ensemble._member import Member
from undertow.train.ensemble._sampling import Order

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


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


@dataclass(frozen=True)
class BatchShape:
    """The batches that all lanes take: `size` samples a step, in epochs of `samples`.

    With order `replacement` every batch has that size; with the others the last of an epoch is the
    rest, and with `full` it is all there are.
    """

    order: Order
    samples: int
    size: int


def batch_shape(members: Sequence[Member], batch_size: int, num_samples: int) -> BatchShape:
    """The batches of an ensemble, once all members agree on them."""
    shares = [
        num_samples if own.workers is None else own.workers.samples_of(num_samples)
        for own in members
    ]
    check_shared(members, num_samples)
    orders = {member.order for member in members}
    if orders == {"full"}:
        if len(set(shares)) > 1:
            raise ValueError(
                "members with order='full' must have as many samples a worker, got "
                f"{_listed(shares)}; train them as ensembles of their own"
            )
        return BatchShape("full", shares[0], shares[0])
    if "full" in orders:
        raise ValueError(
            "members with order='full' cannot share an ensemble with mini-batch members; "
            "train them as two ensembles"
        )
    batch_size = whole_number("batch_size", batch_size, least=1)
    if batch_size > min(shares):
        whose = "there are" if min(shares) == num_samples else "of each worker's share"
        raise ValueError(
            f"batch_size must lie between 1 and the {min(shares)} samples {whose}, got {batch_size}"
        )
    # An epoch's last batch is smaller where the size leaves a rest, and all lanes must agree on it.
    rests = {
        share if member.order != "replacement" and share % batch_size else 0
        for member, share in zip(members, shares, strict=True)
    }
    if rests == {0}:
        return BatchShape("replacement", min(shares), batch_size)
    if len(rests) == 1:
        return BatchShape("epochs", shares[0], batch_size)
    if len(set(shares)) > 1:
        raise ValueError(
            f"members whose workers go through {_listed(shares)} samples differ in their last "
            f"batch of {batch_size}; choose a batch size that divides all of them, "
            "order='replacement', or ensembles of their own"
        )
    raise ValueError(
        f"members that draw with replacement and members that go through epochs differ in "
        f"their last batch, as {batch_size} does not divide {num_samples}; choose a batch "
        "size that does, or train them as two ensembles"
    )


def check_shared(members: Sequence[Member], num_samples: int) -> None:
    """Refuse workers that share epochs which they cannot divide evenly."""
    for member in members:
        own = member.workers
        if own is None or own.data != "shared" or member.order == "replacement":
            continue
        if num_samples % own.num:
            raise ValueError(
                f"{own.num} workers with data='shared' cannot divide epochs of {num_samples} "
                "samples evenly; use order='replacement', or leave out the rest"
            )


def check_workers_differ(members: Sequence[Member]) -> None:
    """Refuse workers that all take the same full-batch steps."""
    for member in members:
        own = member.workers
        if own is not None and own.num > 1 and own.data == "own":
            raise ValueError(
                f"order='full' with data='own' gives all {own.num} workers the same steps; choose "
                "data='split', 'by_class', 'shared' or ('dirichlet', c), or a mini-batch order"
            )


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, sorted(set(numbers))))
