"""Ensembles: E networks of one shape, trained as one batched program.

Each member has its own seed, hyperparameters and data order. A member's result does not depend on
its neighbours, nor on which of the three execution paths ran it, beyond floating-point rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from undertow.objective import whole_number
from undertow.train import rules
from undertow.train.ensemble import _losses
from undertow.train.ensemble._checks import (
    batch_shape,
    check_data,
    check_samples,
    check_workers_differ,
)
from undertow.train.ensemble._engines import Engine, Job
from undertow.train.ensemble._evaluation import Evaluation, score
from undertow.train.ensemble._feeds import Feed, lane_generators
from undertow.train.ensemble._lanes import Lanes, RoundBook
from undertow.train.ensemble._member import Member, learning_rates, stacked_hyper
from undertow.train.ensemble._networks import Model, initialise, load_member, probe, random_state
from undertow.train.ensemble._paths import Start, build, choose
from undertow.train.ensemble._sampling import batch_sizes
from undertow.train.rules import Rule

Path = Literal["auto", "fused", "vmap", "loop"]

_BLOCK = 128  # steps between two checks for divergence


class Ensemble:
    """E networks of one shape, trained together.

    Args:
        model: an `nn.Module`, whose present weights every member starts from; a sequence of them,
            one for each member, that differ in nothing but their tensors' values; or a function
            that makes one from a `torch.Generator`, called once a member with the member's own.
            PyTorch's global random state is seeded alike meanwhile, for modules that draw from it.
        loss: a module or function of (outputs, targets) that returns the batch's mean or one
            value a sample. Cross-entropy and mean squared error have a closed form on the fused
            path.
        data: `(inputs, targets)` tensors with the samples along the first axis.
        members: the networks.
        batch_size: samples a step, of each worker where a member has several. Ignored by members
            with `order="full"`.
        rule: the update rule, bare or wrapped. A member's hyperparameters and schedule are those
            of the rule inside; `train` counts the steps of the rule given, `rule.steps_per_step`
            for each of those. The first batch of a step is the one that the bare rule would see.
        path: `fused` (batched matrix products without autograd; plain MLPs), `vmap`
            (`torch.func.vmap`; modules without randomness), `loop` (one after another; anything),
            or `auto`, which times the first steps on each path that can run the module and keeps
            the fastest. Fix the path where records must be the same to the last bit.
        samples: each member's own rows of `data`, by which it trains on nothing else: what it does
            is what it would do on `(inputs[samples[e]], targets[samples[e]])`. Rows may be shared
            between members and repeat; the data are not copied. None: all rows, for all members.
        dtype: the floating-point type to train in.
        device: where to train. Initial weights and data order are drawn on the CPU, so that they
            do not depend on it.

    Raises:
        ValueError: the data hold NaN, a label is out of range, the batch size exceeds the number
            of samples, `samples` are not rows of the data for each member, members disagree on the
            batch shape, workers cannot share the data or would all do the same, there are more or
            fewer modules than members, or the path cannot run the module.
        TypeError: `model` is neither a module, nor modules, nor a function that makes one,
            `samples` are no whole numbers, or the rule's label noise is for targets of another
            kind.

    Notes:
        Batch norm trains in train mode; of a rule that needs several batches a step, each is
        normalised by its own statistics, and the running ones see one after the other. Dropout
        and other randomness in the forward pass uses a random state of the member's own, on the
        `loop` path (on the CPU). Global random state is restored.

        A member with `workers` is Local SGD: its parameters, buffers, predictions and evaluations
        are those of the mean over its workers, which reading leaves as they are. Running statistics
        of batch norm, averaged or local, are not those of the mean network; after a long round
        measure them anew. A schedule and `train` count local steps. A worker's order, label noise
        and dropout are its own; those of the first are the ones of the member without workers.
    """

    def __init__(
        self,
        model: Model,
        loss: _losses.LossLike,
        data: tuple[Tensor, Tensor],
        members: Sequence[Member],
        *,
        batch_size: int,
        rule: Rule = rules.sgd,
        path: Path = "auto",
        samples: Int[Tensor, "E n"] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.members = tuple(members)
        if not self.members:
            raise ValueError("an ensemble needs at least one member, got none")
        for member in self.members:
            if not isinstance(member, Member):
                raise TypeError(f"members must be train.Member, got {member!r}")
        if not isinstance(rule, Rule):
            raise TypeError(f"rule must be one of train.rules, such as rules.sgd, got {rule!r}")
        if path not in get_args(Path):
            raise ValueError(f"path must be one of {', '.join(get_args(Path))}, got {path!r}")
        self.rule = rule
        self._dtype = dtype
        self._loss = _losses.named_module(loss)
        inputs, targets = check_data(data, dtype, device)
        targets = _losses.cast_targets(self._loss, targets, dtype)
        rows: Sequence[Tensor | None] = [None] * len(self.members)
        count = len(inputs)
        if samples is not None:
            rows = list(check_samples(samples, len(rows), count))
            count = samples.shape[1]
        shape = batch_shape(self.members, batch_size, count)
        self.batch_size = shape.size
        self._lanes = Lanes(self.members)
        spawned = [lane_generators(member, len(rule.batch_weights)) for member in self.members]
        first = [own[0][0] for own in spawned]
        self._random_states = states = [lane[2].get_state() for own in spawned for lane in own]
        self._template, params, fixed = initialise(model, first, dtype, device)
        smallest = min(
            batch_sizes(shape.order, shape.samples, shape.size, 0, -(-shape.samples // shape.size))
        )
        outputs, draws = probe(self._template, inputs, smallest, states[0])
        if shape.order == "full" and rule.perturb is None and not draws:
            check_workers_differ(self.members)
        batch_loss = _losses.resolve(
            self._loss, outputs.to(device), targets, perturbed=rule.perturb is not None
        )
        self._feed = Feed(self.members, spawned, rows, targets, shape, rule, batch_loss.check)
        params, fixed = (
            {name: self._lanes.repeat(value) for name, value in own.items()}
            for own in (params, fixed)
        )
        self._start = Start(self._template, params, fixed, states if draws else None)
        hyper = stacked_hyper([self.members[e] for e in self._lanes.member_of], device)
        self._job = Job(batch_loss, rule, hyper, inputs, targets, self._lanes)
        self._book = RoundBook(self._lanes)
        self.steps_taken = 0
        self.diverged_at: list[int | None] = [None] * len(self.members)
        self.path_seconds: dict[str, float] = {}
        self._engine: Engine | None = None
        self._path: str = path
        if path != "auto":
            self._engine = build(path, self._start, self._job)

    # ---- what a user calls

    @property
    def path(self) -> str:
        """The execution path: `fused`, `vmap` or `loop`; `auto` until the first steps chose it."""
        return self._path

    def train(self, steps: int) -> Ensemble:
        """Take `steps` updates of every member that has not diverged.

        A member whose parameters leave the finite numbers, those of one worker among them, is
        masked and recorded in `diverged_at` with the step by which that was found.

        Raises:
            ValueError: a schedule gave a rate that cannot be stepped at, or one of zero where a
                round of `Rounds("qsr")` starts.
        """
        steps = whole_number("steps", steps, least=0)
        while steps:
            count = min(steps, _BLOCK - self.steps_taken % _BLOCK)
            rates = self._rates(count)
            for own_rates in rates.split(self._feed.steps_at_once(count)):
                averages = self._book.averages(self.steps_taken, own_rates.numpy(), self.alive)
                lane_rates = self._lanes.repeat(own_rates, 1).to(self._job.inputs.device)
                batches = self._feed.take(self.steps_taken, len(own_rates))
                if self._engine is None:
                    self._path, self.path_seconds = choose(
                        self._start, self._job, batches, lane_rates
                    )
                    self._engine = build(self._path, self._start, self._job)
                self._engine.advance(batches, lane_rates, averages)
                self.steps_taken += len(own_rates)
            steps -= count
            self._mask_diverged()
        return self

    def read_at(self, steps: Iterable[int]) -> Iterator[int]:
        """Train up to each of these numbers of steps in turn, and yield it there.

        They are counted from the start, taken in ascending order and each once.

        Raises:
            ValueError: a number that has been passed already.
        """
        for step in sorted(set(steps)):
            if step < self.steps_taken:
                raise ValueError(
                    f"steps must not be below the {self.steps_taken} already taken, got {step}"
                )
            self.train(step - self.steps_taken)
            yield step

    @property
    def rounds_taken(self) -> list[int]:
        """How many rounds of Local SGD each member has ended; 0 for one that trains alone."""
        return list(self._book.taken)

    @property
    def diverged(self) -> list[bool]:
        """Whether each member has diverged."""
        return [at is not None for at in self.diverged_at]

    @property
    def alive(self) -> list[int]:
        """The members that have not diverged."""
        return [index for index, lost in enumerate(self.diverged) if not lost]

    def parameters(self) -> dict[str, Float[Tensor, "E ..."]]:
        """Copies of all parameters, each `[E, ...]`; NaN for members that diverged."""
        tensors = self._tensors()
        return {name: tensors[name] for name, _ in self._template.named_parameters()}

    def buffers(self) -> dict[str, Tensor]:
        """Copies of all buffers, each `[E, ...]`; NaN for members that diverged."""
        tensors = self._tensors()
        return {name: tensors[name] for name, _ in self._template.named_buffers()}

    def module(self, member: int, *, worker: int | None = None) -> nn.Module:
        """A module of its own with one member's parameters and buffers.

        Args:
            member: which.
            worker: one of its workers, as it is between two averages; None: the workers' mean.
        """
        module = copy.deepcopy(self._template)
        if worker is None:
            load_member(module, self._tensors(), member)
            return module
        lanes = self._lanes.of(member)
        if not 0 <= worker < len(lanes):
            raise ValueError(
                f"worker must lie between 0 and {len(lanes) - 1} for member {member}, got {worker}"
            )
        load_member(module, self._lane_tensors(), lanes[worker])
        return module

    def shards(self, member: int) -> Int[Tensor, "workers n"]:
        """The rows of the data that each worker of a member draws from; one row for no workers."""
        shards = self._feed.shards[member]
        every = torch.arange(len(self._job.targets))
        own = [every if shard is None else shard for shard in shards]
        count = len(self._lanes.of(member))
        return torch.stack(own * (count if len(own) < count else 1))

    def predict(
        self, inputs: Float[Tensor, "rows ..."], *, samples: Int[Tensor, "E n"] | None = None
    ) -> Float[Tensor, "E n ..."]:
        """Every member's outputs, in eval mode (batch norm uses its running statistics).

        Args:
            inputs: what all members are shown.
            samples: the rows of `inputs` that each member is shown instead.
        """
        rows = self._rows_of(samples, len(inputs))
        inputs, tensors = inputs.to(self._job.inputs), self._tensors()
        template = copy.deepcopy(self._template).eval()
        outputs = []
        for e, lane in enumerate(self._lanes.firsts):
            own = {name: value[e] for name, value in tensors.items()}
            with random_state(self._random_states[lane]), torch.no_grad():
                outputs.append(functional_call(template, own, (inputs[rows[e]],)))
        return torch.stack(outputs)

    def evaluate(
        self,
        inputs: Float[Tensor, "rows ..."],
        targets: Tensor,
        *,
        samples: Int[Tensor, "E n"] | None = None,
    ) -> Evaluation:
        """Mean loss and accuracy of every member on some data.

        Args:
            inputs: what all members are shown.
            targets: as many.
            samples: the rows of both that each member is shown instead.

        Raises:
            ValueError: the data hold NaN, differ in length, a label is out of range, or `samples`
                are not rows of the data for each member.
            TypeError: `samples` are no whole numbers.
        """
        dtype, device = self._dtype, self._job.inputs.device
        inputs, targets = check_data((inputs, targets), dtype, device)
        targets = _losses.cast_targets(self._loss, targets, dtype)
        outputs, rows = self.predict(inputs, samples=samples), self._rows_of(samples, len(inputs))
        ignored = getattr(self._loss, "ignore_index", None)
        loss, accuracy = outputs.new_full((2, len(self.members)), float("nan"))
        for e in self.alive:
            loss[e], accuracy[e] = score(self._job.loss, outputs[e], targets[rows[e]], ignored)
        return Evaluation(loss, accuracy, outputs.shape[1])

    def __repr__(self) -> str:
        lost = sum(step is not None for step in self.diverged_at)
        crew = f" ({self._lanes.total} workers)" if any(self._lanes.workers) else ""
        return (
            f"Ensemble of {len(self.members)} members{crew} after {self.steps_taken} steps of "
            f"{self.rule.name} at batch size {self.batch_size} ({self.path} path, {lost} diverged)"
        )

    # ---- inside

    def _rows_of(self, samples: Tensor | None, available: int) -> Sequence[slice | Tensor]:
        """Each member's rows of some data; all of them, as a view, where none are given."""
        if samples is None:
            return [slice(None)] * len(self.members)
        own = check_samples(samples, len(self.members), available)
        return list(own.to(self._job.inputs.device))

    def _rates(self, count: int) -> Float[Tensor, "steps E"]:
        scales = learning_rates(self.members, self.steps_taken, count, self.rule.steps_per_step)
        return torch.from_numpy(scales * ~np.array(self.diverged))

    def _mask_diverged(self) -> None:
        assert self._engine is not None
        params = self._engine.parameters()
        finite = torch.ones(self._lanes.total, dtype=torch.bool, device=self._job.inputs.device)
        for value in params.values():
            flat = value.reshape(len(finite), -1)
            # The sum is cheap, but may overflow where every entry is finite.
            if not bool(torch.isfinite(flat.sum(1)).all()):
                finite &= torch.isfinite(flat).all(1)
        for lost in torch.nonzero(~finite).flatten().tolist():
            e = int(self._lanes.member_of[lost])
            if self.diverged_at[e] is None:
                self.diverged_at[e] = self.steps_taken
                for lane in self._lanes.of(e):
                    self._engine.silence(lane)

    def _tensors(self) -> dict[str, Tensor]:
        """Copies of all parameters and buffers, each `[E, ...]`; NaN where a member diverged."""
        return {name: self._lanes.mean(own) for name, own in self._lane_tensors().items()}

    def _lane_tensors(self) -> dict[str, Tensor]:
        """The same of every lane."""
        if self._engine is None:
            initial = {**self._start.params, **self._start.fixed}
            return {name: value.clone() for name, value in initial.items()}
        tensors = {**self._engine.parameters(), **self._engine.fixed()}
        lost = [lane for e, at in enumerate(self.diverged) if at for lane in self._lanes.of(e)]
        for value in tensors.values():
            if lost and value.is_floating_point():
                value[lost] = float("nan")
        return tensors
