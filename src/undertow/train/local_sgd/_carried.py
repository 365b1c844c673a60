"""What is averaged: parameters, and by option the optimizer's state and the model's buffers.

Each tensor once, however many names it has; of a DTensor this rank's shard.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from undertow.objective import is_sharded
from undertow.train.local_sgd._flat import accumulates_in
from undertow.train.local_sgd._meeting import named

Part = Literal["parameters", "optimizer", "buffers"]
PARTS: tuple[Part, ...] = ("parameters", "optimizer", "buffers")


@dataclass(frozen=True)
class Carried:
    """Tensors of one part, number format and device, by name."""

    part: Part
    tensors: dict[str, Tensor]

    @property
    def layout(self) -> tuple[object, ...]:
        """What a buffer for them depends on."""
        first = next(iter(self.tensors.values()))
        sizes = tuple(tensor.numel() for tensor in self.tensors.values())
        return self.part, first.dtype, first.device, sizes

    def not_finite(self) -> str | None:
        """The first tensor with an entry that is not finite; of buffers, one that is no number.

        A buffer may hold infinities by design, as masks do.
        """
        for name, tensor in self.tensors.items():
            bad = tensor.isnan() if self.part == "buffers" else ~tensor.isfinite()
            if bad.any():
                return name
        return None


def local(tensor: Tensor) -> Tensor:
    """The numbers of a tensor on this rank, without a graph, complex ones as pairs of real."""
    if is_sharded(tensor):
        tensor = tensor.to_local()  # type: ignore[attr-defined]
    tensor = tensor.detach()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def named_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """The parameters that training moves: those with gradients, and those that the optimizer has.

    Raises:
        ValueError: the optimizer has parameters that are not the model's.
        TypeError: a parameter is sparse, on the meta device or not initialised.
    """
    names = {param: _plain(name) for name, param in model.named_parameters()}
    trained = {param for group in optimizer.param_groups for param in group["params"]}
    if strangers := sum(param not in names for param in trained):
        raise ValueError(
            f"optimizer has {strangers} parameters that model does not have, and they would not be "
            "averaged; give the module that holds all of them"
        )
    found = {
        name: param for param, name in names.items() if param.requires_grad or param in trained
    }
    for name, param in found.items():
        if nn.parameter.is_lazy(param) or param.is_meta:
            raise TypeError(f"{name} holds no numbers yet; run the model once on a batch")
        if param.layout != torch.strided:
            raise TypeError(f"{name} must be a dense parameter, got layout {param.layout}")
    if not found:
        raise ValueError("model has no parameters to train, and so nothing to average")
    return found


def carried(
    model: nn.Module, optimizer: torch.optim.Optimizer, parts: Collection[Part]
) -> list[Carried]:
    """All that is averaged, in an order that depends on names alone."""
    found: list[Carried] = []
    parameters = named_parameters(model, optimizer)
    for part in PARTS:
        if part not in parts:
            continue
        if part == "parameters":
            tensors: Iterable[tuple[str, Tensor]] = parameters.items()
        elif part == "optimizer":
            tensors = _optimizer_state(optimizer, parameters)
        else:
            tensors = ((_plain(name), buffer) for name, buffer in model.named_buffers())
        by_format: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}
        for name, whole in tensors:
            tensor = local(whole)
            if tensor.numel():
                by_format.setdefault((tensor.dtype, tensor.device), {})[name] = tensor
        found += [Carried(part, group) for group in by_format.values()]
    return found


def counters(optimizer: torch.optim.Optimizer) -> dict[str, list[float]]:
    """The different values of each number in the optimizer's state: its counts of steps."""
    seen: dict[str, set[float]] = {}
    for param, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Real) or _is_count(param, key, value):
                seen.setdefault(key, set()).add(float(value))
    return {key: sorted(values) for key, values in sorted(seen.items())}


def digest(parts: Iterable[Carried]) -> list[int]:
    """Tensors, numbers and a checksum of names and shapes: equal where layouts are."""
    words = [
        (part.part, name, str(accumulates_in(tensor.dtype)), *tensor.shape)
        for part in parts
        for name, tensor in part.tensors.items()
    ]
    numbers = sum(tensor.numel() for part in parts for tensor in part.tensors.values())
    return [len(words), numbers, zlib.crc32(repr(words).encode())]


def check_wrappers(
    model: nn.Module, parameters: dict[str, nn.Parameter], ranks: Collection[int], rank: int
) -> None:
    """Refuse wrappers that already average, or cut up, the model over the same ranks.

    Raises:
        ValueError: the model is DistributedDataParallel or FSDP over workers of the group.
    """
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind == "FullyShardedDataParallel":
            raise ValueError(
                f"{name or 'model'} is FullyShardedDataParallel, whose flat shards are no model; "
                "use torch.distributed.fsdp.fully_shard within a worker"
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            within = torch.distributed.get_process_group_ranks(module.process_group)
            if shared := set(within) & set(ranks) - {rank}:
                raise ValueError(
                    f"{name or 'model'} is DistributedDataParallel over {named([rank, *shared])}: "
                    "its gradients are averaged at every step already; give the module inside, or "
                    "group=, the ranks of one place in each of its groups"
                )
    for name, param in parameters.items():
        if is_sharded(param):
            mesh: Any = param.device_mesh  # type: ignore[attr-defined]
            if shared := set(mesh.mesh.flatten().tolist()) & set(ranks) - {rank}:
                raise ValueError(
                    f"{name} is sharded over {named([rank, *shared])}, which cannot be workers of "
                    "one group too; give group=, the ranks that hold the same shard"
                )


def _optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]
) -> Iterable[tuple[str, Tensor]]:
    for name, param in parameters.items():
        for key, value in sorted(optimizer.state.get(param, {}).items()):
            if value is None or isinstance(value, Real):
                continue
            if not isinstance(value, Tensor) or (
                value.dim() and not (value.is_floating_point() or value.is_complex())
            ):
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(
                    f"the optimizer's {key} of {name} is {kind} and has no average; leave "
                    "'optimizer' out of average"
                )
            if not _is_count(param, key, value):
                yield f"{name}.{key}", value


def _is_count(param: Tensor, key: str, value: object) -> bool:
    """Whether a tensor of the state is a number for itself, and no like of its parameter."""
    return isinstance(value, Tensor) and not value.dim() and (param.dim() > 0 or key == "step")


def _plain(name: str) -> str:
    """A name without what torch.compile puts in."""
    return name.replace("_orig_mod.", "")
