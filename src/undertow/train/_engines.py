"""Ensembles of any module: every member at once by `torch.func.vmap`, or one after another."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from undertow.train._losses import BatchLoss
from undertow.train.rules import Hyper, Rule


@dataclass(frozen=True, eq=False)
class Job:
    """What is trained on what, and how: the same for every engine.

    `hyper` holds one value a member, `[E]`; learning rates are given again at each step.
    """

    loss: BatchLoss
    rule: Rule
    hyper: Hyper
    inputs: Float[Tensor, "n ..."]
    targets: Shaped[Tensor, "n ..."]


class Engine(Protocol):
    """What the three ways of running an ensemble have in common."""

    def advance(
        self, batches: Sequence[Int[Tensor, "E batch"]], rates: Float[Tensor, "steps E"]
    ) -> None:
        """One update for each batch of sample indices, at the learning rates given."""

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the parameters, each `[E, ...]`."""

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the buffers, each `[E, ...]`."""

    def silence(self, member: int) -> None:
        """Set a diverged member's tensors to zero, so that it stays finite from here on."""


class VmapEngine:
    """Any module without randomness in its forward pass, all members in one batched program."""

    def __init__(
        self,
        template: nn.Module,
        params: dict[str, Tensor],
        buffers: dict[str, Tensor],
        job: Job,
    ) -> None:
        self._params = {name: value.clone() for name, value in params.items()}
        self._buffers = {name: value.clone() for name, value in buffers.items()}
        self._job = job
        self._state = job.rule.init(list(self._params.values()))

        def member_loss(
            member_params: dict[str, Tensor],
            member_buffers: dict[str, Tensor],
            x: Tensor,
            y: Tensor,
        ) -> Tensor:
            outputs = functional_call(template, (member_params, member_buffers), (x,))
            return job.loss.mean(outputs, y)

        self._gradient = vmap(grad(member_loss))

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the parameters, each `[E, ...]`."""
        return {name: value.clone() for name, value in self._params.items()}

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the buffers, each `[E, ...]`."""
        return {name: value.clone() for name, value in self._buffers.items()}

    def silence(self, member: int) -> None:
        """Set a diverged member's tensors to zero, so that it stays finite from here on."""
        for tensor in [*self._params.values(), *self._buffers.values()]:
            tensor[member] = 0
        for values in self._state.values():
            for tensor in values:
                if tensor.ndim:
                    tensor[member] = 0

    def advance(
        self, batches: Sequence[Int[Tensor, "E batch"]], rates: Float[Tensor, "steps E"]
    ) -> None:
        """One update for each batch of sample indices, at the learning rates given."""
        job = self._job
        for index, rate in zip(batches, rates, strict=True):
            grads = self._gradient(
                self._params, self._buffers, job.inputs[index], job.targets[index]
            )
            with torch.no_grad():
                _, self._state = job.rule.update(
                    list(self._params.values()),
                    [grads[name] for name in self._params],
                    self._state,
                    replace(job.hyper, lr=rate),
                    inplace=True,
                )


class LoopEngine:
    """Any module at all: each member on its own, a block of steps at a time."""

    def __init__(
        self,
        template: nn.Module,
        params: dict[str, Tensor],
        buffers: dict[str, Tensor],
        job: Job,
        *,
        random_states: Sequence[Tensor] | None,
    ) -> None:
        members = next(iter(params.values())).shape[0]
        self._job = job
        self._hypers = [member_hyper(job.hyper, e) for e in range(members)]
        self._modules = [copy.deepcopy(template) for _ in range(members)]
        for e, module in enumerate(self._modules):
            load_member(module, params, buffers, e)
        self._params = [list(module.parameters()) for module in self._modules]
        self._states = [job.rule.init(tensors) for tensors in self._params]
        self._random_states = list(random_states) if random_states is not None else None
        self._silent: set[int] = set()

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the parameters, each `[E, ...]`."""
        return stack([dict(module.named_parameters()) for module in self._modules])

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the buffers, each `[E, ...]`."""
        return stack([dict(module.named_buffers()) for module in self._modules])

    def silence(self, member: int) -> None:
        """Set a diverged member's tensors to zero; it is left out from here on."""
        self._silent.add(member)
        with torch.no_grad():
            for tensor in [*self._params[member], *self._modules[member].buffers()]:
                tensor.zero_()

    def advance(
        self, batches: Sequence[Int[Tensor, "E batch"]], rates: Float[Tensor, "steps E"]
    ) -> None:
        """One update for each batch of sample indices, at the learning rates given."""
        job = self._job
        for e, (module, params) in enumerate(zip(self._modules, self._params, strict=True)):
            if e in self._silent:
                continue
            with self._own_randomness(e):
                for index, rate in zip(batches, rates[:, e].tolist(), strict=True):
                    outputs = module(job.inputs[index[e]])
                    mean = job.loss.mean(outputs, job.targets[index[e]])
                    grads = torch.autograd.grad(mean, params)
                    with torch.no_grad():
                        _, self._states[e] = job.rule.update(
                            params,
                            grads,
                            self._states[e],
                            replace(self._hypers[e], lr=rate),
                            inplace=True,
                        )

    @contextlib.contextmanager
    def _own_randomness(self, member: int) -> Iterator[None]:
        """Run under the member's own random state, and leave the global one as it was."""
        if self._random_states is None:
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random_states[member])
            yield
            self._random_states[member] = torch.get_rng_state()


def member_hyper(hyper: Hyper, member: int) -> Hyper:
    """One member's hyperparameters, as numbers."""
    values = {field.name: getattr(hyper, field.name) for field in fields(Hyper)}
    return Hyper(
        **{
            name: float(value[member]) if isinstance(value, Tensor) and value.ndim else value
            for name, value in values.items()
        }
    )


def stack(members: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of the members, stacked along a leading ensemble axis."""
    return {name: torch.stack([member[name].detach() for member in members]) for name in members[0]}


@torch.no_grad()
def load_member(
    module: nn.Module, params: dict[str, Tensor], buffers: dict[str, Tensor], member: int
) -> None:
    """Copy one member's parameters and buffers into a module."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        source = params[name] if name in params else buffers[name]
        tensor.copy_(source[member])
