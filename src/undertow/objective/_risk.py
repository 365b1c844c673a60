"""The empirical risk: a model, a loss and data, evaluated at given parameters.

L(theta) = sum_i l(f(theta, x_i), y_i) / n, where n is the loss's own denominator: the number of
samples, or the weight of the labels that count (class weights, `ignore_index`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from undertow.objective._independence import (
    Findings,
    check_batches,
    check_outputs,
    check_samples,
)
from undertow.objective._inputs import as_arguments, over_tensors, sample_bytes, taken
from undertow.objective._loss_terms import GivenLoss, OwnLoss
from undertow.objective._losses import Loss, OutputProduct, as_module, cast_loss, logits_of
from undertow.objective._meeting import meet
from undertow.objective._module import (
    cast,
    differentiable,
    evaluating,
    like_parameters,
    out_of_memory,
    product_type,
    select,
    shown,
)
from undertow.objective._own_gradients import evaluated_with_own_gradients
from undertow.objective._random_states import kept_states
from undertow.objective._roads import Redirected, Roads
from undertow.objective._stand_in import StandIn, names_of
from undertow.objective._support import check_supported

Tensors = Mapping[str, Tensor]
"""Parameters and buffers by name."""
Contribution = Callable[[Tensors, Any, Tensor], tuple[Tensor, Tensor]]
Result = TypeVar("Result")

# Tensors go through the model in one piece while the inputs take at most so many bytes.
_PIECE_BYTES = 2**25
_NOTHING = nullcontext()


class EmpiricalRisk:
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
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        if microbatch is not None:
            microbatch = whole_number("microbatch", microbatch)
        self.stand_in = StandIn(model)
        self.model = self.stand_in.model
        check_supported(self.model)
        self.loss = loss
        self.param_names = select(self.model, params)
        self.dtype: torch.dtype | None = None
        self.findings = Findings()
        self._terms = OwnLoss() if loss is None else GivenLoss(loss)
        self._met: list[Roads] = []  # shared with the same risk elsewhere
        self._held: dict[str, Tensor] | None = None
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

    # What it consists of.

    @property
    def num_params(self) -> int:
        """Length p of the flat parameter vector."""
        selected = set(self.param_names)
        return sum(p.numel() for name, p in self.model.named_parameters() if name in selected)

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

    def current(self) -> dict[str, Tensor]:
        """All parameters and buffers by name, detached; what L is evaluated at."""
        if self._held is not None:
            return dict(self._held)
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        if self.dtype is None:
            return {name: tensor.detach() for name, tensor in named}
        return {name: cast(tensor.detach(), self.dtype) for name, tensor in named}

    def copies(self) -> dict[str, Tensor]:
        """The same as copies, half precision as single: what graphs may hold on to."""
        with torch.inference_mode(False):  # in which copies could not be differentiated
            return {n: t.to(product_type(t.dtype), copy=True) for n, t in self.current().items()}

    def own(self) -> dict[str, Tensor]:
        """The same as copies in their own types, which a forward pass may write to."""
        if self._held is None and self.dtype is None:
            return self.stand_in.own()
        with torch.inference_mode(False):
            return {name: tensor.clone() for name, tensor in self.current().items()}

    def theta(self) -> Float[Tensor, " params"]:
        """The parameters that count, as one vector in the order of `param_names`."""
        current = self.current()
        return torch.cat([current[name].flatten() for name in self.param_names])

    def fingerprint(self) -> Any:
        """Changes when tensors in the data are replaced or written to, and when the loss is."""
        return fingerprint(self._data), self._terms.state()

    # The same risk elsewhere.

    def at(self, dtype: torch.dtype) -> Self:
        """The same risk evaluated in another precision, on parameters and data cast as they come.

        The loss is a copy; the model is not, and follows the user's. The one place where "the
        objective in float64" is made.

        Raises:
            TypeError: if `dtype` is no real floating-point type.
        """
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
        held = None
        if self._held is not None:
            held = {name: cast(tensor, dtype) for name, tensor in self._held.items()}
        if self.loss is None:
            return self._but(dtype=dtype, _held=held, _terms=OwnLoss())
        loss = as_module(self.loss)
        if isinstance(loss, nn.Module):
            loss = cast_loss(loss, dtype, self.model)
        return self._but(dtype=dtype, _held=held, loss=loss, _terms=GivenLoss(loss))

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

    def _but(self, **attributes: Any) -> Self:
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

    def move(self, theta: Float[Tensor, " params"]) -> None:
        """Set the theta of a held risk.

        Raises:
            TypeError: if the risk follows the user's module, which is not for it to change.
        """
        if self._held is None:
            raise TypeError("only a held risk can be moved; this one follows its module")
        parts = theta.split([self._held[name].numel() for name in self.param_names])
        with torch.no_grad():
            for name, part in zip(self.param_names, parts, strict=True):
                self._held[name].copy_(part.reshape(self._held[name].shape))

    def placed(self, tensors: Tensors) -> Self:
        """The same risk at these parameters and buffers, all of them by name."""
        return self._but(_held=dict(tensors))

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

    def _drawing(self) -> AbstractContextManager[object]:
        """Where a forward pass that draws from Python's or NumPy's random state may do so."""
        return kept_states() if self.stand_in.draws else _NOTHING

    def _meet(self, inputs: Any, targets: Tensor) -> Roads:
        """Once: an evaluation on few samples shows what there is to mind."""
        if not self._met:
            terms = OwnLoss() if self.loss is None else GivenLoss(self.loss, trusted=True)
            self._met.append(meet(self._but(_met=[Roads()], _terms=terms), inputs, targets))
        return self._met[0]

    # One microbatch.

    def outputs(self, tensors: Tensors, inputs: Any, targets: Tensor | None = None) -> Any:
        """What the model returns; the targets are the labels that its own loss needs."""
        by_place, by_name = as_arguments(self._fitting(inputs, tensors))
        if by_name and self.loss is None and targets is not None:
            by_name["labels"] = targets

        def run(tensors: Tensors) -> Any:
            with self._redirected(tensors):
                return self.stand_in.run(tensors, by_place, by_name, dtype=self.dtype)

        return evaluated_with_own_gradients(run, tensors)

    def _redirected(self, tensors: Tensors) -> AbstractContextManager[object]:
        """Where parameters that are reached by another road are those of `tensors` too."""
        if not self._met or not self._met[0]:
            return _NOTHING
        names = names_of(self.model)
        return Redirected({key: tensors[name] for key, name in names.items() if name in tensors})

    def _fitting(self, inputs: Any, tensors: Tensors) -> Any:
        """Inputs in the parameters' precision where these are not in their own."""
        if self.dtype is None:
            return over_tensors(lambda part: like_parameters(part, tensors), inputs)
        return over_tensors(lambda part: cast(part, self.dtype), inputs)

    def logits(self, tensors: Tensors, inputs: Any, targets: Tensor | None = None) -> Any:
        """The outputs, or the logits among them."""
        return logits_of(self.outputs(tensors, inputs, targets))

    def sum_and_count(
        self, tensors: Tensors, inputs: Any, targets: Tensor
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Sum of the loss, and what the microbatch adds to the denominator."""
        return self.evaluated(tensors, inputs, targets)[1:]

    def evaluated(
        self, tensors: Tensors, inputs: Any, targets: Tensor
    ) -> tuple[Any, Float[Tensor, ""], Float[Tensor, ""]]:
        """What the model returns, and the same of it."""
        self._learn(tensors, inputs, targets)

        def run(tensors: Tensors) -> tuple[Any, Tensor, Tensor]:
            outputs = self.outputs(tensors, inputs, targets)
            with self._redirected(tensors):
                return outputs, *self._terms.sum_and_count(outputs, targets, len(targets))

        return evaluated_with_own_gradients(run, tensors)

    def loss_sum(self, outputs: Any, targets: Tensor) -> Tensor:
        """The sum of the loss, from what the model returned."""
        return self._terms.sum_and_count(outputs, targets, len(targets))[0]

    def logits_and_sum(
        self, tensors: Tensors, inputs: Any, targets: Tensor
    ) -> tuple[Any, Float[Tensor, ""]]:
        """The logits, and the sum of the loss as a function of them."""
        self._learn(tensors, inputs, targets)
        outputs = self.outputs(tensors, inputs, targets)
        with self._redirected(tensors):
            return logits_of(outputs), self._terms.sum_by_logits(outputs, targets, len(targets))

    def sample_sums(
        self, tensors: Tensors, inputs: Any, targets: Tensor
    ) -> Float[Tensor, " samples"]:
        """What each sample adds to the sum of the loss."""
        outputs = self.outputs(tensors, inputs, targets)
        with self._redirected(tensors):
            return self._terms.sample_sums(outputs, targets)

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

    def denominators(self, targets: Tensor) -> Float[Tensor, " samples"]:
        """What each sample adds to the denominator.

        That of a model's own loss is known once it has been evaluated.
        """
        return self._terms.denominators(targets)

    def all_denominators(self) -> Float[Tensor, " samples"]:
        """The same of all data; a model's own loss is evaluated first where it has not been."""
        if not self._terms.known:
            self.value()
        return torch.cat([self.denominators(targets) for _, targets in self.batches()])

    def term(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """What a model's own loss adds to the mean cross-entropy of its logits, if anything."""
        return None if isinstance(self._terms, GivenLoss) else self._terms.term(outputs, targets)

    @property
    def is_average(self) -> bool | None:
        """Whether the loss has been found to be an average over samples; None where in no doubt."""
        return self._terms.averages

    @property
    def has_term(self) -> bool:
        """Whether a model's own loss is known to have a term beside its logits."""
        return self._terms.has_term

    def check_samples(self) -> None:
        """Raise ValueError if samples influence each other, so that none has a loss of its own."""
        check_samples(self)

    def check_outputs(self) -> None:
        """Raise ValueError if a sample's outputs depend on the others in its batch."""
        check_outputs(self)

    def output_product(self, logits: Tensor, targets: Tensor) -> OutputProduct | None:
        """The closed-form Hessian product of the loss's sum in the logits, if there is one."""
        return self._terms.output_product(logits, targets)

    def _learn(self, tensors: Tensors, inputs: Any, targets: Tensor) -> None:
        """Find out what the denominator of the model's own loss is, the first time."""
        if isinstance(self._terms, GivenLoss) or self._terms.known:
            return
        with torch.enable_grad():
            leaves = {name: tensors[name].detach() for name, _ in self.model.named_parameters()}
            for leaf in leaves.values():
                leaf.requires_grad_(leaf.is_floating_point())
            outputs = self.outputs({**tensors, **leaves}, inputs, targets)
            wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
            self._terms.learn(outputs, targets, wanted)

    # All data.

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

    def check_reached(self, reached: bool) -> None:
        """Raise ValueError unless the loss depends on some parameter of theta."""
        if not reached:
            raise ValueError(
                f"the loss depends on none of the parameters {shown(self.param_names)}: does "
                "the model or the loss detach, round, or run under no_grad?"
            )
