"""Whether samples influence each other, tried on a few of them, together and apart.

Batches add up, and a sample has a gradient of its own, only where its outputs and its part of the
loss do not depend on which others share its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, is_dataclass
from itertools import islice
from types import SimpleNamespace
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from undertow.objective._inputs import taken_to
from undertow.objective._module import out_of_memory

# Samples that are tried together, and in two halves.
_SAMPLES = 8
# Parameters are moved by so much of their size, so that none is at a value where nothing shows,
# such as a last layer of zeros.
_MOVED = 0.1
# Outputs and sums agree so far: in float64, and in the model's own precision.
_EXACT, _ROUNDED = 1e-5, 1e-3
# So does a term of a model's own loss beside its logits.
_TERM = 1e-4
# What sums of numbers in single precision, which some models take whatever their own, are good to.
_SINGLE = 2e-7
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError)


_NO_AVERAGE = "the loss is no average over samples"
_REMEDY = (
    "use a model and a loss that take each sample by itself (a value per sample, class weights "
    "and ignore_index by nn.CrossEntropyLoss)"
)
_CANNOT = "the model does not run on a few of them: "
Result = TypeVar("Result")


class Risk(Protocol):
    """What is asked of an `EmpiricalRisk`, which says what each is."""

    model: nn.Module
    findings: Findings

    @property
    def is_average(self) -> bool | None: ...
    @property
    def has_term(self) -> bool: ...
    def at(self, dtype: torch.dtype) -> Self: ...
    def batches(self) -> Iterator[tuple[Any, Tensor]]: ...
    def current(self) -> dict[str, Tensor]: ...
    def own(self) -> dict[str, Tensor]: ...
    def evaluating(self) -> AbstractContextManager[None]: ...
    def outputs(
        self, tensors: Mapping[str, Tensor], inputs: Any, targets: Tensor | None = None
    ) -> Any: ...
    def evaluated(
        self, tensors: Mapping[str, Tensor], inputs: Any, targets: Tensor
    ) -> tuple[Any, Tensor, Tensor]: ...
    def term(self, outputs: Any, targets: Tensor) -> Tensor | None: ...


class Findings:
    """What has been tried once of a risk, on a few samples; shared by its copies elsewhere.

    Attributes:
        mixing: why samples influence each other, "" where they do not; None before it was tried.
        mixing_outputs: the same of the model alone.
        by_place: whether they do in a model that takes batches of one size only.
        curved: whether second derivatives have been tried.
        layouts: where samples lie in what layers see, as far as a measure has tried it.
    """

    def __init__(self) -> None:
        self.mixing: str | None = None
        self.mixing_outputs: str | None = None
        self.by_place: bool | None = None
        self.curved = False
        self.layouts: object = None
        self._few: tuple[Any, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"layouts": None}  # which name PyTorch's operations

    def see(self, inputs: Any, targets: Tensor) -> None:
        """Keep a few samples of the first batch that has more than one."""
        if self._few is None or len(self._few[1]) == 1 < len(targets):
            spread = torch.linspace(0, len(targets) - 1, min(_SAMPLES, len(targets)))
            rows = spread.round().long().to(targets.device)
            self._few = taken_to(inputs, rows, targets.device), targets[rows]

    def few(self, risk: Risk, least: int = 1) -> tuple[Any, Tensor] | None:
        """A few samples that came in one batch; None where every batch has fewer than `least`."""
        batches = iter(risk.batches())  # which are seen as they pass
        while self._few is None or len(self._few[1]) < least:
            if next(batches, None) is None:
                return None
        return self._few


def mixing(risk: Risk) -> str:
    """Why samples of one batch influence each other, "" where they do not; tried once."""
    if risk.findings.mixing is None:
        risk.findings.mixing = _mixing(risk)
    if not risk.findings.mixing and risk.is_average is False:
        return _NO_AVERAGE
    return risk.findings.mixing


def check_outputs(risk: Risk) -> None:
    """Raise ValueError if a sample's outputs depend on the others; of the loss nothing is asked."""
    if risk.findings.mixing_outputs is None:
        known = risk.findings.mixing
        risk.findings.mixing_outputs = _mixing(risk, with_loss=False) if known != "" else ""
    if risk.findings.mixing_outputs:
        raise ValueError(
            f"samples influence each other ({risk.findings.mixing_outputs}), so that none has "
            "outputs of its own; use a model that takes each sample by itself"
        )


def check_samples(risk: Risk) -> None:
    """Raise ValueError if samples influence each other, so that none has a loss of its own."""
    reason = mixing(risk)
    if reason:
        raise ValueError(
            f"samples influence each other ({reason}), so that none has a loss or a gradient of "
            f"its own; {_REMEDY}"
        )
    if risk.has_term:
        raise ValueError(
            "the model's own loss has a term beside its logits, so that the loss and the gradient "
            "of a sample are unknown; give a loss"
        )


def check_batches(risk: Risk, inputs: Any, targets: Tensor) -> None:
    """Raise ValueError if batches do not add up, as their samples influence each other.

    A model that takes batches of one size only is tried on the batch at hand.
    """
    reason = mixing(risk)
    if reason.startswith(_CANNOT):
        if risk.findings.by_place is None:
            risk.findings.by_place = _mixes_by_place(risk, inputs, targets)
        reason = reason if risk.findings.by_place else ""
    if reason:
        raise ValueError(
            f"samples influence each other ({reason}), so that batches do not add up; give all "
            f"data in one batch, without microbatch=, or {_REMEDY}"
        )


def _mixing(risk: Risk, *, with_loss: bool = True) -> str:
    few = risk.findings.few(risk, least=2)
    if few is None:  # batches of one sample, of which L is the average
        return ""
    failure = ""
    for exact, tolerance in ((risk.at(torch.float64), _EXACT), (risk, _ROUNDED)):
        try:
            return attempted(_Trial(exact, few, tolerance, with_loss=with_loss).reason)
        except Unable as error:
            if isinstance(error.__cause__, RuntimeError) and out_of_memory(error.__cause__):
                return ""  # where samples are taken by ones or twos, they do not meet
            failure = str(error)
    _run_all(risk, with_loss)
    return _CANNOT + failure


def _mixes_by_place(risk: Risk, inputs: Any, targets: Tensor) -> bool:
    """Whether other samples in the second half of a batch change the outputs of the first half."""
    trial = _Trial(risk, (inputs, targets), _ROUNDED, with_loss=False)
    try:
        return attempted(trial.depends_on_second_half)
    except Unable:
        return False


class Unable(Exception):
    """What is to be tried fails, whenever it is."""


def attempted(run: Callable[[], Result]) -> Result:
    """What `run` gives.

    Raises:
        Unable: if it fails twice, as where a model insists on a precision or a size of batches.
            An error that does not come again is raised as it is.
    """
    try:
        return run()
    except FAILURES as error:
        try:
            run()
        except FAILURES as again:
            words = str(again).splitlines()
            raise Unable(words[0] if words else type(again).__name__) from error
        raise


def _run_all(risk: Risk, with_loss: bool) -> None:
    """Run a whole microbatch, which raises what is raised there too."""
    with risk.evaluating(), torch.no_grad():
        for inputs, targets in islice(risk.batches(), 1):
            if with_loss:
                risk.evaluated(risk.own(), inputs, targets)
            else:
                risk.outputs(risk.own(), inputs, targets)


@dataclass(frozen=True)
class _Run:
    """Outputs, the sum of the loss, and that of its term beside the logits, of some samples."""

    outputs: list[Tensor]
    total: Tensor
    term: Tensor

    @property
    def finite(self) -> bool:
        return all(bool(part.isfinite().all()) for part in (*self.outputs, self.total))


class _Trial:
    """A few samples, run together and in two halves, with parameters a little moved."""

    def __init__(
        self,
        risk: Risk,
        few: tuple[Any, Tensor],
        tolerance: float,
        *,
        with_loss: bool = True,
    ) -> None:
        self._risk, self._tolerance, self._with_loss = risk, tolerance, with_loss
        self._inputs, self._targets = few
        targets = self._targets
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(targets), generator=generator)
        self._order = order[torch.arange(max(4, len(order) // 2 * 2)) % len(order)]
        self._tensors = risk.current()
        self._own = dict(self._tensors)
        for name, parameter in risk.model.named_parameters():
            value = self._tensors[name]
            if parameter.is_floating_point() and value.numel():
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                size = value.double().square().mean().sqrt()
                step = _MOVED * (size if size > 0 else torch.ones_like(size))
                self._tensors[name] = (value.double() + step * noise.to(step)).to(value)

    def reason(self) -> str:
        with self._risk.evaluating(), torch.no_grad():
            together = self._run(slice(None))
            if not together.finite:
                self._tensors = self._own
                together = self._run(slice(None))
            half = len(self._order) // 2
            halves = self._run(slice(half)), self._run(slice(half, None))
            found = self._compared(together, *halves)
            if found and not _same(together, self._run(slice(None))):
                return "the model or the loss is random in eval mode, the same samples give others"
            return found

    def depends_on_second_half(self) -> bool:
        """Whether the first half of the outputs changes with the samples in the second."""
        order = torch.arange(len(self._targets))
        half = len(order) // 2
        if half == 0:
            return False
        others = torch.cat([order[:half], order[half:] % half])
        with self._risk.evaluating(), torch.no_grad():
            one, other = self._run(order), self._run(others)
        return any(
            a.shape[:1] == order.shape
            and a.shape == b.shape
            and not torch.allclose(a[:half], b[:half], rtol=_ROUNDED, atol=1e-6)
            for a, b in zip(one.outputs, other.outputs, strict=True)
        )

    def _run(self, chosen: slice | Tensor) -> _Run:
        tensors = {name: tensor.clone() for name, tensor in self._tensors.items()}
        rows = self._order[chosen] if isinstance(chosen, slice) else chosen
        rows = rows.to(self._targets.device)
        device = next(iter(tensors.values())).device
        inputs, targets = taken_to(self._inputs, rows, device), self._targets[rows].to(device)
        if not self._with_loss:
            outputs = self._risk.outputs(tensors, inputs, targets)
            return _Run(list(_arrays_in(outputs)), torch.zeros(()), torch.zeros(()))
        outputs, total, count = self._risk.evaluated(tensors, inputs, targets)
        term = self._risk.term(outputs, targets)
        term = torch.zeros_like(total) if term is None else term * count
        return _Run(list(_arrays_in(outputs)), total, term)

    def _compared(self, together: _Run, first: _Run, second: _Run) -> str:
        for whole, one, other in zip(together.outputs, first.outputs, second.outputs, strict=True):
            if self._differ(whole, one, other):
                return "a sample's outputs depend on the others in its batch"
        if self._with_loss and self._risk.is_average is False:
            return _NO_AVERAGE
        rest = (first.total + second.total - together.total).abs()
        size = together.total.abs() + first.total.abs() + second.total.abs()
        term = (first.term + second.term - together.term).abs()
        # A small term would be lost in the sum; what is left when that is taken off is rounded.
        rounded = _TERM * together.term.abs() + _SINGLE * size
        if rest > self._tolerance * size or term > rounded:
            return "the loss of a batch is not made of those of its samples"
        return ""

    def _differ(self, whole: Tensor, first: Tensor, second: Tensor) -> bool:
        """Whether outputs differ; those without an axis that counts samples do not."""
        half = len(self._order) // 2
        if first.shape != second.shape or whole.ndim != first.ndim:
            return False
        axes = [
            axis
            for axis, (all_, some) in enumerate(zip(whole.shape, first.shape, strict=True))
            if all_ * half == some * len(self._order) and all_ != some
        ]
        if len(axes) != 1:
            return False
        joined = torch.cat([first, second], axes[0]).double()
        difference = torch.linalg.vector_norm(joined - whole.double())
        level = whole.double().mean(axes[0], keepdim=True)
        spread = torch.linalg.vector_norm(whole.double() - level)
        size = torch.linalg.vector_norm(whole.double())
        return bool(difference > self._tolerance * (spread + self._tolerance * size))


def _same(one: _Run, other: _Run) -> bool:
    return torch.equal(one.total, other.total) and all(
        torch.equal(a, b) for a, b in zip(one.outputs, other.outputs, strict=True)
    )


def _arrays_in(part: Any) -> Iterator[Tensor]:
    """Real tensors with an axis in tuples, dictionaries, dataclasses and namespaces, in order."""
    if isinstance(part, Tensor):
        if part.is_floating_point() and part.ndim:
            yield part.detach()
        return
    if isinstance(part, SimpleNamespace) or is_dataclass(part):
        part = vars(part)
    values = part.values() if isinstance(part, Mapping) else part
    if isinstance(part, Mapping | tuple | list):
        for value in values:
            yield from _arrays_in(value)
