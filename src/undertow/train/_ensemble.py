"""Ensembles: E networks of one shape, trained as one batched program.

Each member has its own seed, hyperparameters and data order. A member's result does not depend on
its neighbours, nor on which of the three execution paths ran it, beyond floating-point rounding.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from undertow.train import _losses, rules
from undertow.train._engines import Engine, Job, LoopEngine, VmapEngine, load_member, stack
from undertow.train._fused import FusedEngine
from undertow.train._layers import recognise
from undertow.train._sampling import (
    ORDERS,
    BatchStream,
    Order,
    batch_sizes,
    spawn_generators,
)
from undertow.train.rules import Hyper, Rule
from undertow.train.schedules import Factors, Steps

Path = Literal["auto", "fused", "vmap", "loop"]

_BLOCK = 128  # steps between two checks for divergence
_TRIAL_STEPS = 6  # steps that the chooser times on each path


@dataclass(frozen=True)
class Member:
    """One network of an ensemble.

    Attributes:
        seed: decides the initial weights (where the model is a factory) and the data order.
        lr: learning rate.
        weight_decay: PyTorch's coefficient, twice the lambda of papers that penalise
            lambda ||W||^2.
        momentum: heavy-ball coefficient; read by `rules.momentum` only.
        schedule: maps an array of step numbers to factors of `lr`; see `train.schedules`.
        order: how the data are visited: `epochs` (a fresh shuffle each), `replacement`, `cyclic`
            (one shuffle, kept) or `full` (every sample each step).
    """

    seed: int
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.0
    schedule: Callable[[Steps], Factors] | None = None
    order: Order = "epochs"

    def __post_init__(self) -> None:
        hyper = Hyper(self.lr, self.weight_decay, self.momentum)
        if float(hyper.lr) * float(hyper.weight_decay) >= 1:
            raise ValueError(
                f"lr x weight_decay must be below 1, got {self.lr} x {self.weight_decay}: each "
                "step would overshoot zero; lower either"
            )
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy of every member on some data, each `[E]`.

    Members that diverged have NaN. Accuracy is NaN where the targets are not class labels.
    """

    loss: Float[Tensor, " E"]
    accuracy: Float[Tensor, " E"]
    num_samples: int

    def __repr__(self) -> str:
        return (
            f"{len(self.loss)} members on {self.num_samples} samples: "
            f"loss {float(self.loss.nanmean()):.4g}, accuracy {float(self.accuracy.nanmean()):.4g}"
        )


class Ensemble:
    """E networks of one shape, trained together.

    Args:
        model: an `nn.Module`, whose present weights every member starts from; or a function that
            makes one from a `torch.Generator`, called once a member with the member's own.
            PyTorch's global random state is seeded alike meanwhile, for modules that draw from it.
        loss: a module or function of (outputs, targets) that returns the batch's mean or one
            value a sample. Cross-entropy and mean squared error have a closed form on the fused
            path.
        data: `(inputs, targets)` tensors with the samples along the first axis.
        members: the networks.
        batch_size: samples a step. Ignored by members with `order="full"`.
        rule: the update rule.
        path: `fused` (batched matrix products without autograd; plain MLPs), `vmap`
            (`torch.func.vmap`; modules without randomness), `loop` (one after another; anything),
            or `auto`, which times the first steps on each path that can run the module and keeps
            the fastest. Fix the path where records must be the same to the last bit.
        dtype: the floating-point type to train in.
        device: where to train. Initial weights and data order are drawn on the CPU, so that they
            do not depend on it.

    Raises:
        ValueError: the data hold NaN, a label is out of range, the batch size exceeds the number
            of samples, members disagree on the batch shape, or the path cannot run the module.
        TypeError: `model` is neither a module nor a function that makes one.

    Notes:
        Batch norm trains in train mode. Dropout and other randomness in the forward pass uses a
        random state of the member's own, on the `loop` path (on the CPU). Global random state is
        restored.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[torch.Generator], nn.Module],
        loss: _losses.LossLike,
        data: tuple[Tensor, Tensor],
        members: Sequence[Member],
        *,
        batch_size: int,
        rule: Rule = rules.sgd,
        path: Path = "auto",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one member, got none")
        if path not in get_args(Path):
            raise ValueError(f"path must be one of {', '.join(get_args(Path))}, got {path!r}")
        self.members = tuple(members)
        self.rule = rule
        batch_loss = _losses.resolve(loss)
        inputs, targets = _check_data(data, dtype, device)
        self._order, self.batch_size = _batch_shape(self.members, batch_size, len(inputs))
        generators = [spawn_generators(member.seed, 3) for member in self.members]
        self._template, params, buffers = _initialise(model, generators, dtype, device)
        outputs, self._random = _probe(self._template, inputs[:2], generators[0][2])
        _losses.check_targets(batch_loss.kind, outputs, targets)
        self._streams = [
            BatchStream(member.order, len(inputs), self.batch_size, own[1])
            for member, own in zip(self.members, generators, strict=True)
        ]
        self._random_states = [own[2].get_state() for own in generators] if self._random else None
        self._initial = (params, buffers)
        hyper = Hyper(
            *(
                torch.tensor(
                    [getattr(member, name) for member in self.members], dtype=dtype, device=device
                )
                for name in ("lr", "weight_decay", "momentum")
            )
        )
        self._job = Job(batch_loss, rule, hyper, inputs, targets)
        self.steps_taken = 0
        self.diverged_at: list[int | None] = [None] * len(self.members)
        self.path_seconds: dict[str, float] = {}
        self._engine: Engine | None = None
        self._path: str = path
        if path != "auto":
            self._engine = self._build(path)

    # ---- what a user calls

    @property
    def path(self) -> str:
        """The execution path: `fused`, `vmap` or `loop`; `auto` until the first steps chose it."""
        return self._path

    def train(self, steps: int) -> Ensemble:
        """Take `steps` updates of every member that has not diverged.

        A member whose parameters leave the finite numbers is masked and recorded in `diverged_at`
        with the step by which that was found.
        """
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}")
        while steps:
            count = min(steps, _BLOCK - self.steps_taken % _BLOCK)
            batches = self._take(count)
            rates = self._rates(count)
            if self._engine is None:
                self._choose(batches, rates)
            assert self._engine is not None
            self._engine.advance(batches, rates)
            self.steps_taken += count
            steps -= count
            self._mask_diverged()
        return self

    def parameters(self) -> dict[str, Float[Tensor, "E ..."]]:
        """Copies of all parameters, each `[E, ...]`; NaN for members that diverged."""
        return self._marked(self._engine.parameters() if self._engine else self._initial[0])

    def buffers(self) -> dict[str, Tensor]:
        """Copies of all buffers, each `[E, ...]`."""
        found = self._engine.buffers() if self._engine else self._initial[1]
        return {name: value.clone() for name, value in found.items()}

    def module(self, member: int) -> nn.Module:
        """A module of its own with one member's parameters and buffers."""
        return self._module(self.parameters(), self.buffers(), member)

    def predict(self, inputs: Float[Tensor, "n ..."]) -> Float[Tensor, "E n ..."]:
        """Every member's outputs, in eval mode (batch norm uses its running statistics)."""
        inputs = inputs.to(self._job.inputs.device, self._job.inputs.dtype)
        params, buffers = self.parameters(), self.buffers()
        template = self._template
        was_training = {name: part.training for name, part in template.named_modules()}
        template.eval()
        try:
            with torch.no_grad():
                outputs = [
                    functional_call(
                        template,
                        {name: value[e] for name, value in (params | buffers).items()},
                        (inputs,),
                    )
                    for e in range(len(self.members))
                ]
        finally:
            for name, part in template.named_modules():
                part.training = was_training[name]
        return torch.stack(outputs)

    def evaluate(self, inputs: Float[Tensor, "n ..."], targets: Tensor) -> Evaluation:
        """Mean loss and accuracy of every member on some data."""
        outputs = self.predict(inputs)
        targets = targets.to(outputs.device)
        if targets.is_floating_point():
            targets = targets.to(outputs.dtype)
        loss = torch.stack([self._job.loss.mean(own, targets) for own in outputs])
        accuracy = torch.full_like(loss, float("nan"))
        if not targets.is_floating_point() and outputs.ndim == 3:
            right = (outputs.argmax(-1) == targets).to(loss.dtype).mean(-1)
            accuracy = torch.where(torch.isfinite(loss), right, accuracy)
        return Evaluation(loss, accuracy, len(inputs))

    def __repr__(self) -> str:
        lost = sum(step is not None for step in self.diverged_at)
        return (
            f"Ensemble of {len(self.members)} members after {self.steps_taken} steps of "
            f"{self.rule.name} at batch size {self.batch_size} ({self.path} path, {lost} diverged)"
        )

    # ---- inside

    def _take(self, count: int) -> list[Int[Tensor, "E batch"]]:
        sizes = batch_sizes(
            self._order, len(self._job.inputs), self.batch_size, self.steps_taken, count
        )
        flat = torch.stack([stream.take(sum(sizes)) for stream in self._streams])
        flat = flat.to(self._job.inputs.device)
        if len(set(sizes)) == 1:
            blocks = flat.view(len(self.members), count, sizes[0]).transpose(0, 1).contiguous()
            return list(blocks.unbind(0))
        return [piece.contiguous() for piece in flat.split(sizes, dim=1)]

    def _rates(self, count: int) -> Float[Tensor, "steps E"]:
        steps = np.arange(self.steps_taken, self.steps_taken + count)
        columns = []
        for member, lost in zip(self.members, self.diverged_at, strict=True):
            factors = np.ones(count) if member.schedule is None else member.schedule(steps)
            columns.append(member.lr * np.asarray(factors, dtype=np.float64) * (lost is None))
        rates = np.stack(columns, axis=1)
        decay = np.array([member.weight_decay for member in self.members])
        if not (np.isfinite(rates).all() and (rates >= 0).all() and (rates * decay < 1).all()):
            raise ValueError(
                "a schedule gave a learning rate that is negative, not finite, or at least "
                f"1 / weight_decay, between steps {steps[0]} and {steps[-1]}"
            )
        return torch.from_numpy(rates).to(self._job.inputs.device)

    def _build(self, path: str) -> Engine:
        params, buffers = self._initial
        if path == "fused":
            layers = recognise(self._template)
            if layers is None:
                raise ValueError(
                    "path='fused' runs plain MLPs only (a Sequential of Linear, elementwise "
                    "activations and BatchNorm1d); use path='auto', 'vmap' or 'loop'"
                )
            return FusedEngine(layers, params, buffers, self._job)
        if path == "vmap":
            if self._random:
                raise ValueError(
                    "path='vmap' cannot keep each member's own randomness (dropout); use "
                    "path='auto' or 'loop'"
                )
            return VmapEngine(self._template, params, buffers, self._job)
        return LoopEngine(
            self._template, params, buffers, self._job, random_states=self._random_states
        )

    def _choose(self, batches: Sequence[Tensor], rates: Tensor) -> None:
        """Time the first steps on each path that can run them, and start on the fastest."""
        candidates = ["fused" if recognise(self._template) else "vmap", "loop"]
        if self._random:
            candidates = ["loop"]
        engines: dict[str, Engine] = {}
        for path in candidates:
            try:
                engines[path] = self._build(path)
                self.path_seconds[path] = _seconds(engines[path], batches, rates)
            except (RuntimeError, NotImplementedError):
                if path == "loop":
                    raise
        self._path = min(self.path_seconds, key=self.path_seconds.__getitem__)
        self._engine = self._build(self._path)

    def _mask_diverged(self) -> None:
        assert self._engine is not None
        params = self._engine.parameters()
        finite = torch.ones(len(self.members), dtype=torch.bool, device=self._job.inputs.device)
        for value in params.values():
            finite &= torch.isfinite(value.flatten(1).sum(1))
        for e in torch.nonzero(~finite).flatten().tolist():
            if self.diverged_at[e] is None:
                self.diverged_at[e] = self.steps_taken
                self._engine.silence(e)

    def _marked(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        lost = torch.tensor([step is not None for step in self.diverged_at])
        marked = {name: value.clone() for name, value in params.items()}
        if lost.any():
            for value in marked.values():
                value[lost] = float("nan")
        return marked

    def _module(
        self, params: dict[str, Tensor], buffers: dict[str, Tensor], member: int
    ) -> nn.Module:

        module = copy.deepcopy(self._template)
        load_member(module, params, buffers, member)
        return module


def _seconds(engine: Engine, batches: Sequence[Tensor], rates: Tensor) -> float:
    """Seconds a step: the faster of two short runs, after one step to warm up."""
    count = min(_TRIAL_STEPS, len(batches))
    engine.advance(batches[:1], rates[:1])
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        engine.advance(batches[:count], rates[:count])
        best = min(best, time.perf_counter() - start)
    return best / count


def _check_data(
    data: tuple[Tensor, Tensor], dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    inputs, targets = data
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise ValueError(
            f"data must hold as many targets as inputs, and at least one, got {len(inputs)} "
            f"inputs and {len(targets)} targets"
        )
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        raise ValueError("the inputs hold NaN or infinite values; clean or drop those samples")
    if inputs.is_floating_point():
        inputs = inputs.detach().to(dtype)
    if targets.is_floating_point():
        targets = targets.detach().to(dtype)
    return inputs.to(device), targets.to(device)


def _batch_shape(members: Sequence[Member], batch_size: int, num_samples: int) -> tuple[Order, int]:
    """The order that decides batch sizes, and the batch size, once all members agree on them."""
    orders = {member.order for member in members}
    if orders == {"full"}:
        return "full", num_samples
    if "full" in orders:
        raise ValueError(
            "members with order='full' cannot share an ensemble with mini-batch members; "
            "train them as two ensembles"
        )
    if not 1 <= batch_size <= num_samples:
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
    return next(iter(orders)), batch_size


def _initialise(
    model: nn.Module | Callable[[torch.Generator], nn.Module],
    generators: Sequence[Sequence[torch.Generator]],
    dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:

    if isinstance(model, nn.Module):
        template = copy.deepcopy(model).to(device, dtype)
        modules = [template] * len(generators)
    elif callable(model):
        modules = []
        with torch.random.fork_rng(devices=[]):
            for own in generators:
                torch.manual_seed(own[0].initial_seed())
                modules.append(model(own[0]).to(device, dtype))
        template = modules[0]
    else:
        raise TypeError(
            f"model must be an nn.Module or a function that makes one, got {type(model).__name__}"
        )
    params = stack([dict(module.named_parameters()) for module in modules])
    buffers = (
        stack([dict(module.named_buffers()) for module in modules])
        if any(True for _ in template.buffers())
        else {}
    )
    if not params:
        raise ValueError("the model has no parameters to train")
    return template.train(), params, buffers


def _probe(template: nn.Module, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, bool]:
    """The shape of the outputs, and whether a forward pass in train mode draws random numbers."""
    probe, inputs = copy.deepcopy(template).cpu(), inputs.cpu()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.set_rng_state(generator.get_state())
        before = torch.get_rng_state()
        outputs = probe(inputs.repeat(2, *[1] * (inputs.ndim - 1)))
        return outputs, not torch.equal(before, torch.get_rng_state())
