"""Ensembles of any module: every member at once by `torch.func.vmap`, or one after another."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from undertow.train.ensemble._lanes import Averager, Lanes, Run
from undertow.train.ensemble._losses import BatchLoss
from undertow.train.ensemble._networks import fixed, load_member, random_state, stack, trainable
from undertow.train.ensemble._sampling import Batch
from undertow.train.rules import Hyper, Rule, with_values


@dataclass(frozen=True, eq=False)
class Job:
    """What is trained on what, and how: the same for every engine.

    Engines step `lanes`: E is their number, and a member of an engine one of them. `hyper` holds
    one float64 value a lane, `[E]`; learning rates are given again at each step.
    """

    loss: BatchLoss
    rule: Rule
    hyper: Hyper
    inputs: Float[Tensor, "n ..."]
    targets: Shaped[Tensor, "n ..."]
    lanes: Lanes

    def targets_of(self, batch: Batch) -> Shaped[Tensor, "E batches size ..."]:
        """The targets that the loss sees."""
        return self.targets[batch.index] if batch.targets is None else batch.targets


Averages = Mapping[int, Sequence[Run]]
"""The place of a step in a block -> the lanes that are averaged after it."""


class Engine(Protocol):
    """What the three ways of running an ensemble have in common."""

    def advance(
        self, batches: Sequence[Batch], rates: Float[Tensor, "steps E"], averages: Averages
    ) -> None:
        """One update for each batch, at the learning rates given, and averages where due."""

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the trained parameters, each `[E, ...]`."""

    def fixed(self) -> dict[str, Tensor]:
        """Copies of the buffers and the frozen parameters, each `[E, ...]`."""

    def silence(self, member: int) -> None:
        """Set a diverged member's tensors to zero, so that it stays finite from here on."""


class VmapEngine:
    """Any module without randomness in its forward pass, all members in one batched program."""

    def __init__(
        self,
        template: nn.Module,
        params: dict[str, Tensor],
        fixed_tensors: dict[str, Tensor],
        job: Job,
    ) -> None:
        self._params = {name: value.clone() for name, value in params.items()}
        self._fixed = {name: value.clone() for name, value in fixed_tensors.items()}
        self._job = job
        self._state = job.rule.init(list(self._params.values()))
        self._averager = Averager(job.lanes, list(self._params.values()))
        names = dict(template.named_buffers())
        self._buffers = [value for name, value in self._fixed.items() if name in names]
        # A copy: where a layer appears twice, `functional_call` leaves traced tensors behind.
        template = copy.deepcopy(template)

        def member_loss(
            member_params: dict[str, Tensor],
            member_fixed: dict[str, Tensor],
            x: Tensor,
            y: Tensor,
        ) -> Tensor:
            outputs = functional_call(template, (member_params, member_fixed), (x,))
            return job.loss.mean(outputs, y)

        self._gradient = vmap(grad(member_loss))

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the trained parameters, each `[E, ...]`."""
        return {name: value.clone() for name, value in self._params.items()}

    def fixed(self) -> dict[str, Tensor]:
        """Copies of the buffers and the frozen parameters, each `[E, ...]`."""
        return {name: value.clone() for name, value in self._fixed.items()}

    def silence(self, member: int) -> None:
        """Set a diverged member's tensors to zero, so that it stays finite from here on."""
        zero_member([*self._params.values(), *self._fixed.values()], member)
        for values in self._state.values():
            zero_member(values, member)

    def advance(
        self, batches: Sequence[Batch], rates: Float[Tensor, "steps E"], averages: Averages
    ) -> None:
        """One update for each batch, at the learning rates given, and averages where due."""
        job = self._job
        for step, (batch, rate) in enumerate(zip(batches, rates, strict=True)):
            grads = []
            # One after the other: each is normalised by its own statistics, as for the bare rule.
            pairs = zip(batch.index.unbind(1), job.targets_of(batch).unbind(1), strict=True)
            for index, targets in pairs:
                try:
                    own = self._gradient(self._params, self._fixed, job.inputs[index], targets)
                except RuntimeError as error:
                    if "vmap" not in str(error):
                        raise
                    raise RuntimeError(
                        "path='vmap' cannot run this module, such as batch norm with "
                        f"momentum=None; use path='auto' or 'loop': {error}"
                    ) from error
                grads.append([own[name] for name in self._params])
            with torch.no_grad():
                _, self._state = job.rule.update(
                    list(self._params.values()),
                    job.rule.combine(grads),
                    self._state,
                    with_values(job.hyper, lr=rate),
                    inplace=True,
                )
                if step in averages:
                    state = [value for own in self._state.values() for value in own]
                    self._averager.average(
                        averages[step], list(self._params.values()), state, self._buffers
                    )


class LoopEngine:
    """Any module at all: each member on its own, a block of steps at a time."""

    def __init__(
        self,
        template: nn.Module,
        params: dict[str, Tensor],
        fixed_tensors: dict[str, Tensor],
        job: Job,
        *,
        random_states: Sequence[Tensor] | None,
    ) -> None:
        members = next(iter(params.values())).shape[0]
        self._job = job
        self._hypers = [member_hyper(job.hyper, e) for e in range(members)]
        self._modules = [copy.deepcopy(template) for _ in range(members)]
        for e, module in enumerate(self._modules):
            load_member(module, params | fixed_tensors, e)
        self._params = [list(trainable(module).values()) for module in self._modules]
        self._states = [job.rule.init(tensors) for tensors in self._params]
        self._averager = Averager(job.lanes, _stacked(self._params))
        self._random_states = list(random_states) if random_states is not None else None
        self._silent: set[int] = set()

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the trained parameters, each `[E, ...]`."""
        return stack([trainable(module) for module in self._modules])

    def fixed(self) -> dict[str, Tensor]:
        """Copies of the buffers and the frozen parameters, each `[E, ...]`."""
        return stack([fixed(module) for module in self._modules])

    def silence(self, member: int) -> None:
        """Set a diverged member's tensors to zero; it is left out from here on."""
        self._silent.add(member)
        with torch.no_grad():
            for tensor in [*self._params[member], *self._modules[member].buffers()]:
                if tensor.is_floating_point():
                    tensor.zero_()

    def advance(
        self, batches: Sequence[Batch], rates: Float[Tensor, "steps E"], averages: Averages
    ) -> None:
        """One update for each batch, at the learning rates given, and averages where due."""
        first = 0
        for last in sorted({*averages, len(batches) - 1}):
            block = slice(first, last + 1)
            self._step(batches[block], rates[block])
            if last in averages:
                self._average(averages[last])
            first = last + 1

    @torch.no_grad()
    def _average(self, runs: Sequence[Run]) -> None:
        averaged = {kind for run in runs for kind in run.workers.average}
        states = [
            [value for own in state.values() for value in own] if "optimizer" in averaged else []
            for state in self._states
        ]
        buffers = [
            list(module.buffers()) if "buffers" in averaged else [] for module in self._modules
        ]
        every = (self._params, states, buffers)
        stacks = [_stacked(own) for own in every]
        self._averager.average(runs, *stacks)
        lanes = [lane for run in runs for lane in range(run.lanes.start, run.lanes.stop)]
        for own, means in zip(every, stacks, strict=True):
            for lane in lanes:
                for tensor, mean in zip(own[lane], means, strict=True):
                    tensor.copy_(mean[lane])

    def _step(self, batches: Sequence[Batch], rates: Float[Tensor, "steps E"]) -> None:
        job = self._job
        for e, (module, params) in enumerate(zip(self._modules, self._params, strict=True)):
            if e in self._silent:
                continue
            own = self._random_states[e] if self._random_states else None
            with (
                torch.enable_grad(),
                contextlib.nullcontext() if own is None else random_state(own),
            ):
                for batch, rate in zip(batches, rates[:, e].tolist(), strict=True):
                    grads = [
                        self._gradient(module, params, job.inputs[index], own_targets)
                        for index, own_targets in zip(
                            batch.index[e], self._targets_of(batch, e), strict=True
                        )
                    ]
                    with torch.no_grad():
                        _, self._states[e] = job.rule.update(
                            params,
                            job.rule.combine(grads),
                            self._states[e],
                            with_values(self._hypers[e], lr=rate),
                            inplace=True,
                        )
                if self._random_states:
                    self._random_states[e] = torch.get_rng_state()

    def _targets_of(self, batch: Batch, e: int) -> Shaped[Tensor, "batches size ..."]:
        return self._job.targets[batch.index[e]] if batch.targets is None else batch.targets[e]

    def _gradient(
        self, module: nn.Module, params: Sequence[Tensor], x: Tensor, y: Tensor
    ) -> tuple[Tensor, ...]:
        mean = self._job.loss.mean(module(x), y)
        # A parameter that the loss does not reach has gradient zero, as under vmap.
        return torch.autograd.grad(mean, params, allow_unused=True, materialize_grads=True)


def _stacked(lanes: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The tensors of each lane, stacked along a leading axis of lanes."""
    return [torch.stack([own.detach() for own in each]) for each in zip(*lanes, strict=True)]


def zero_member(tensors: Iterable[Tensor], member: int) -> None:
    """Set one member's part of tensors `[E, ...]` to zero; counters, which are whole, stay."""
    for tensor in tensors:
        if tensor.ndim and tensor.is_floating_point():
            tensor[member] = 0


def member_hyper(hyper: Hyper, member: int) -> Hyper:
    """One member's hyperparameters, as numbers."""
    values = {field.name: getattr(hyper, field.name) for field in fields(Hyper)}
    return Hyper(
        **{
            name: float(value[member]) if isinstance(value, Tensor) and value.ndim else value
            for name, value in values.items()
        }
    )
