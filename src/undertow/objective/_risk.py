"""The empirical risk: a model, a loss and data, evaluated at given parameters.

L(theta) = sum_i l(f(theta, x_i), y_i) / n, where n is the loss's own denominator: the number of
samples, or the weight of the labels that count (class weights, `ignore_index`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from undertow.objective._arguments import whole_number
from undertow.objective._batches import (
    checked_pair,
    fingerprint,
    is_batch,
    is_finite,
    reiterable,
    with_own_random_state,
)
from undertow.objective._evaluation import Evaluation, Tensors
from undertow.objective._independence import (
    Findings,
    check_batches,
    check_outputs,
    check_samples,
)
from undertow.objective._inputs import over_tensors, sample_bytes, taken
from undertow.objective._losses import Loss
from undertow.objective._module import (
    cast,
    differentiable,
    evaluating,
    out_of_memory,
    product_type,
    shown,
)

Contribution = Callable[[Tensors, Any, Tensor], tuple[Tensor, Tensor]]
Result = TypeVar("Result")

# Tensors go through the model in one piece while the inputs take at most so many bytes.
_PIECE_BYTES = 2**25


class EmpiricalRisk(Evaluation):
    """A model, a loss and data, and how to evaluate them at parameters of one's choice.

    Functions of a microbatch take `tensors`, all parameters and buffers by name: those of
    `own`, with some replaced. Not the module is run on these but its stand-in, so that it is left
    as found; evaluate inside `evaluating()`, as `sweep` does. By default the risk follows the
    module's own parameters; `at(dtype)` is the same risk in another precision, `held()` one with a
    theta of its own.

    Args: as of `Objective`.

    Attributes:
        model: the user's module; the one inside, if it is wrapped by `torch.compile`.
        stand_in: what is run in its place.
        loss: of (outputs, targets); None for the model's own.
        param_names: what theta consists of.
        dtype: what parameters, buffers, data and loss are evaluated in; None for their own types.
        findings: what has been tried of it once, on a few samples.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None,
        data: tuple[Tensor, Tensor] | Dataset[Any] | Iterable[Any],
        *,
        params: Iterable[str] | Callable[[str, nn.Parameter], bool] | None = None,
        microbatch: int | None = None,
    ) -> None:
        if microbatch is not None:
            microbatch = whole_number("microbatch", microbatch)
        super().__init__(model, loss, params)
        self.findings = Findings()
        self._piece = microbatch
        self._num_samples: int | None = None
        self._counted: Any = None
        self._data: Iterable[Any] = [data]
        if is_batch(data):
            inputs, targets = checked_pair(data, 0, model)
            self._num_samples = len(targets)
            self._piece = microbatch or max(1, _PIECE_BYTES // sample_bytes(inputs))
            self._counted = fingerprint(self._data)
        else:
            self._data = reiterable(data, microbatch)

    # The data.

    @property
    def num_samples(self) -> int:
        """Number of samples; counted by one pass over the data where it is not known."""
        found = fingerprint(self._data)
        if self._num_samples is None or self._counted != found:  # a list may have grown
            self._num_samples = sum(len(targets) for _, targets in self.batches())
            self._counted = found
        return self._num_samples

    @property
    def known_samples(self) -> int | None:
        """Number of samples as last counted, None before."""
        return self._num_samples

    def batches(self) -> Iterator[tuple[Any, Tensor]]:
        """The data on the model's device, checked, in microbatches (inputs, targets)."""
        device = next(self.model.parameters()).device
        empty = True
        for index, batch in enumerate(with_own_random_state(self._data)):
            inputs, targets = checked_pair(batch, index, self.model)
            self.findings.see(inputs, targets)
            step = self._piece or len(targets)
            for start in range(0, len(targets), step):
                empty = False
                chosen = slice(start, start + step)
                yield (
                    over_tensors(
                        lambda part: differentiable(cast(part.to(device), self.dtype)),
                        taken(inputs, chosen),
                    ),
                    differentiable(cast(targets[chosen].to(device), self.dtype)),
                )
        if empty:
            raise ValueError("data are empty: an objective needs at least one sample")

    def fingerprint(self) -> Any:
        """Changes when tensors in the data are replaced or written to, and when the loss is."""
        return fingerprint(self._data), self._terms.state()

    def held(self) -> Self:
        """The same risk with parameters and buffers of its own, and its data in memory.

        What becomes of the module's no longer matters to it; `move` sets its theta.
        """
        data = list(self.batches())
        return self._but(
            _data=data,
            _piece=None,
            _num_samples=sum(len(targets) for _, targets in data),
            _counted=fingerprint(data),
            _held=self.own(),
        )

    def apart(self) -> Self:
        """The same risk with a stand-in of its own, on which hooks may be left."""
        with self.evaluating():
            return self._but(stand_in=self.stand_in.apart())

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Where functions of a microbatch are to be evaluated: the stand-in is up to date.

        The random state inside is thrown away; the caller's autocast and inference mode are off.
        """
        self.stand_in.follow()
        with evaluating(self.model):
            if not self._met:
                self._meet(*next(self.batches()))
            with self._drawing():
                yield

    # What is refused.

    def check_by_outputs(self, what: str) -> None:
        """Raise ValueError if the loss depends on theta beside the model's outputs.

        Args:
            what: is going to be computed from the loss's slope in the outputs.
        """
        if not self._met:
            with self.evaluating():
                pass
        beside = tuple(name for name in self.param_names if name in self._met[0].depends)
        if beside:
            raise ValueError(
                f"{what} would leave out what the loss makes of {shown(beside)} beside the model's "
                "outputs, such as a penalty: take that out of the loss, or use the Hessian"
            )

    def check_samples(self) -> None:
        """Raise ValueError if samples influence each other, so that none has a loss of its own."""
        check_samples(self)

    def check_outputs(self) -> None:
        """Raise ValueError if a sample's outputs depend on the others in its batch."""
        check_outputs(self)

    def check_reached(self, reached: bool) -> None:
        """Raise ValueError unless the loss depends on some parameter of theta."""
        if not reached:
            raise ValueError(
                f"the loss depends on none of the parameters {shown(self.param_names)}: does "
                "the model or the loss detach, round, or run under no_grad?"
            )

    # All data.

    def all_denominators(self) -> Float[Tensor, " samples"]:
        """The same of all data; a model's own loss is evaluated first where it has not been."""
        if not self._terms.known:
            self.value()
        return torch.cat([self.denominators(targets) for _, targets in self.batches()])

    def sweep(
        self,
        compute: Callable[[Tensors, Any, Tensor], Result],
        collect: Callable[[Result], None],
        tensors: Tensors | None = None,
        *,
        by_loss: bool = True,
    ) -> None:
        """One pass: `collect(compute(tensors, inputs, targets))` for each microbatch.

        A microbatch that runs out of memory is halved, and later ones with it. Gradients are off.

        Args:
            compute: of parameters and buffers, and a microbatch.
            collect: takes what it gives.
            tensors: all parameters and buffers; None for the current ones.
            by_loss: whether the loss is computed, and not the outputs alone.

        Raises:
            ValueError: at the second microbatch, if samples are found to influence each other.
        """
        with evaluating(self.model), torch.no_grad():
            if tensors is None and self._held is None and self.dtype is None:
                tensors = self.stand_in.own()
            else:
                self.stand_in.follow()
                tensors = self.own() if tensors is None else tensors
            pieces = 0
            for batch in self.batches():
                self._meet(*batch)
                waiting = [batch]
                while waiting:
                    inputs, targets = waiting.pop()
                    pieces += 1
                    if pieces > 1 and by_loss:
                        check_batches(self, inputs, targets)
                    elif pieces > 1:
                        check_outputs(self)
                    try:
                        with self._drawing():
                            result = compute(tensors, inputs, targets)
                    except RuntimeError as error:
                        if not out_of_memory(error) or len(targets) == 1:
                            raise
                    else:
                        collect(result)
                        continue
                    half = (len(targets) + 1) // 2
                    self._piece = min(half, self._piece or half)
                    waiting += [
                        (taken(inputs, part), targets[part])
                        for part in (slice(half, None), slice(half))
                    ]
            if pieces > 1 and by_loss:  # the last one may have shown more
                check_batches(self, inputs, targets)

    def value(self, tensors: Tensors | None = None) -> Float[Tensor, ""]:
        """L(theta), or L at other parameters and buffers."""
        return self.mean(self.sum_and_count, tensors)

    def mean(self, contribution: Contribution, tensors: Tensors | None = None) -> Tensor:
        """Sum of the contributions of microbatches over the sum of their counts.

        Args:
            contribution: maps (tensors, inputs, targets) to (part of the sum, count).
            tensors: other parameters and buffers than the current ones, all of them by name.

        Raises:
            ValueError: as `normalized`.
        """
        totals: list[Tensor] = []

        def add(result: tuple[Tensor, Tensor]) -> None:
            if totals:
                for total, part in zip(totals, result, strict=True):
                    total += part
            else:
                # Sums in half precision would stop growing.
                totals.extend(part.to(product_type(part.dtype), copy=True) for part in result)

        self.sweep(contribution, add, tensors)
        return self.normalized(*totals)

    def normalized(self, total: Tensor, count: Tensor) -> Tensor:
        """A sum over all data, by their denominator; in the memory of the sum.

        Raises:
            ValueError: if no target counts, or the mean is not finite.
        """
        if count == 0:
            raise ValueError("no target counts: every label is ignored or has class weight zero")
        mean = total.div_(count.to(total))
        if not is_finite(mean):
            named = self.current()
            bad = [n for n, _ in self.model.named_parameters() if not named[n].isfinite().all()]
            cause = f"parameter {bad[0]} is not finite" if bad else "outputs or loss overflow"
            raise ValueError(f"the objective is not finite although the data are: {cause}")
        return mean
