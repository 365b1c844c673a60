"""Networks of one shape side by side, in float64, with their loss in the log domain.

Descent on log Loss is descent on Loss at the learning rate alpha / Loss of arXiv 1906.05890, and
nothing in it is as small as the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from undertow.train.past_zero._tails import (
    Tail,
    check_tail,
    exponent,
    log_threshold,
    score_margins,
    smoothed,
)

Stacked = dict[str, Tensor]


class LogDomain:
    """Networks and their summed losses with an exponential tail, as log Loss.

    A member's numbers do not depend on the others, up to rounding. Modules are copied.

    Args:
        models: of one structure; without buffers, in eval mode while they run.
        inputs: of every member, `[E, n, ...]`; taken to float64, as the parameters are.
        labels: of every member.
        loss: "logistic" (of more classes, the cross-entropy), "exponential" or "cubic", e^(-q^3).

    Attributes:
        params: every member's parameters, stacked.

    Raises:
        ValueError: no models, data of another number of members, or a loss outside the family.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        inputs: Float[Tensor, "E n ..."],
        labels: Int[Tensor, "E n"],
        *,
        loss: Tail = "logistic",
    ) -> None:
        check_tail(loss)
        if not models or len(models) != len(inputs) or inputs.shape[:2] != labels.shape:
            raise ValueError(
                f"inputs [E, n, ...] and labels [E, n] must be of the {len(models)} models, got "
                f"{tuple(inputs.shape)} and {tuple(labels.shape)}"
            )
        if any(True for _ in models[0].buffers()):
            raise ValueError(
                "models must have no buffers: batch statistics are not homogeneous; leave "
                "normalisation out"
            )
        self.loss: Tail = loss
        self.inputs, self.labels = inputs.double(), labels
        own = [copy.deepcopy(model).double().eval() for model in models]
        params, _ = stack_module_state(own)
        self.params: Stacked = {name: value.detach() for name, value in params.items()}
        self._module = own[0]

    def scores(self, params: Mapping[str, Tensor], inputs: Tensor) -> Float64[Tensor, "E n C"]:
        """Every member's outputs on inputs of its own."""

        def run(own: Mapping[str, Tensor], rows: Tensor) -> Tensor:
            found: Tensor = functional_call(self._module, dict(own), (rows,))
            return found

        return vmap(run)(params, inputs)

    def margins(self, *, soft: bool = False) -> Float64[Tensor, "E n"]:
        """The q_n of every member: its label's score less the best other, or their log-sum-exp."""
        with torch.no_grad():
            return score_margins(self.scores(self.params, self.inputs), self.labels, soft=soft)

    def log_loss(self) -> Float64[Tensor, " E"]:
        """The log of the loss summed over samples."""
        soft = self.loss == "logistic"
        return (-exponent(self.margins(soft=soft), self.loss)).logsumexp(1)

    def log_gradient(
        self, rows: Int[Tensor, "E k"] | None = None
    ) -> tuple[Float64[Tensor, " E"], Stacked]:
        """The log of the loss summed over these rows, by default all, and its gradient."""
        inputs, labels = self.inputs, self.labels
        if rows is not None:
            members = torch.arange(len(rows))[:, None]
            inputs, labels = inputs[members, rows], labels[members, rows]
        at = {name: value.detach().requires_grad_() for name, value in self.params.items()}
        with torch.enable_grad():
            scores = self.scores(at, inputs)
            margins = score_margins(scores, labels, soft=self.loss == "logistic")
            total = (-exponent(margins, self.loss)).logsumexp(1)
            found = torch.autograd.grad(total.sum(), list(at.values()))
        return total.detach(), dict(zip(at, found, strict=True))

    def move(self, direction: Stacked, by: Float64[Tensor, " E"]) -> None:
        """Every member's parameters by so much of a direction; what is not finite stays."""
        ok = by.isfinite()
        self.params = {
            name: value + spread(torch.where(ok, by, 0.0), value) * direction[name].nan_to_num(0.0)
            for name, value in self.params.items()
        }

    def norm(self) -> Float64[Tensor, " E"]:
        """The norm rho of all of a member's parameters."""
        return norm_of(self.params)

    def normalized_margins(self, degree: float) -> dict[str, Float64[Tensor, " E"]]:
        """The least margin (`normalized`) and the smoothed one (`smoothed`), over rho^L."""
        with torch.no_grad():
            scores = self.scores(self.params, self.inputs)
        least = score_margins(scores, self.labels, soft=False)
        soft = score_margins(scores, self.labels, soft=True) if self.loss == "logistic" else least
        log_loss, size = (-exponent(soft, self.loss)).logsumexp(1), self.norm() ** degree
        return {
            "normalized": least.amin(1) / size,
            "smoothed": smoothed(log_loss, self.loss) / size,
        }

    def below_threshold(self) -> Tensor:
        """Of whom the summed loss is so small that gradient flow cannot lower `smoothed`."""
        return self.log_loss() < log_threshold(self.loss)

    def module(self, member: int) -> nn.Module:
        """One member as a module of its own, in float64."""
        found = copy.deepcopy(self._module)
        state = {name: value[member].clone() for name, value in self.params.items()}
        found.load_state_dict(state)
        return found


def spread(numbers: Tensor, over: Tensor) -> Tensor:
    """A number a member, in the shape in which it multiplies stacked tensors."""
    return numbers.view(-1, *[1] * (over.ndim - 1))


def norm_of(stacked: Mapping[str, Tensor]) -> Float64[Tensor, " E"]:
    """The norm of each member's part of stacked tensors."""
    squares = [value.flatten(1).square().sum(1) for value in stacked.values()]
    return torch.stack(squares).sum(0).sqrt()
