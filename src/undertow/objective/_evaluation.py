"""A model and a loss, evaluated on one microbatch at parameters of one's choice.

What the parameters are, the outputs there, and what the loss makes of them; of data beyond the
microbatch nothing is known here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undertow.objective._inputs import as_arguments, over_tensors
from undertow.objective._loss_terms import GivenLoss, OwnLoss
from undertow.objective._losses import Loss, OutputProduct, as_module, cast_loss, logits_of
from undertow.objective._meeting import meet
from undertow.objective._module import cast, like_parameters, product_type, select
from undertow.objective._own_gradients import evaluated_with_own_gradients
from undertow.objective._random_states import kept_states
from undertow.objective._roads import Redirected, Roads
from undertow.objective._stand_in import StandIn, names_of
from undertow.objective._support import check_supported

Tensors = Mapping[str, Tensor]
"""Parameters and buffers by name."""

_NOTHING = nullcontext()


class Evaluation:
    """A model and a loss as functions of parameters and a microbatch.

    The part of `EmpiricalRisk` that needs no data, and says what its arguments and attributes are.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None,
        params: Iterable[str] | Callable[[str, nn.Parameter], bool] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        self.stand_in = StandIn(model)
        self.model = self.stand_in.model
        check_supported(self.model)
        self.loss = loss
        self.param_names = select(self.model, params)
        self.dtype: torch.dtype | None = None
        self._terms = OwnLoss() if loss is None else GivenLoss(loss)
        self._met: list[Roads] = []  # shared with the same evaluation elsewhere
        self._held: dict[str, Tensor] | None = None

    # What it consists of.

    @property
    def num_params(self) -> int:
        """Length p of the flat parameter vector."""
        selected = set(self.param_names)
        return sum(p.numel() for name, p in self.model.named_parameters() if name in selected)

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

    # The same elsewhere.

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

    def placed(self, tensors: Tensors) -> Self:
        """The same risk at these parameters and buffers, all of them by name."""
        return self._but(_held=dict(tensors))

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

    def _but(self, **attributes: Any) -> Self:
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

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
        self,
        tensors: Tensors,
        inputs: Any,
        targets: Tensor,
        within: AbstractContextManager[object] = _NOTHING,
    ) -> tuple[Any, Float[Tensor, ""]]:
        """The logits, and the sum of the loss as a function of them.

        The model, and nothing else, runs within a context that is given.
        """
        self._learn(tensors, inputs, targets)
        with within:
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

    def denominators(self, targets: Tensor) -> Float[Tensor, " samples"]:
        """What each sample adds to the denominator.

        That of a model's own loss is known once it has been evaluated.
        """
        return self._terms.denominators(targets)

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
