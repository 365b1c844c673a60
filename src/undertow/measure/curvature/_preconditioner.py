"""What an optimizer divides its steps by, as a diagonal matrix in the order of an objective.

With E the edge of each parameter's group (`predict.edge`), the optimizer is at its edge where the
largest eigenvalue of (E P)^-1 (H + coupled decay) is 1: there a step turns a deviation x into its
opposite, (1 + s)(1 + b) x = lr P^-1 H x (direct (1 + b) + through gain), which is an equation for
each parameter by itself and holds with another rate, momentum or decay in each group.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from undertow import predict
from undertow.measure.curvature._krylov import Operator
from undertow.objective import Objective

State = Mapping[str, Any]
Group = Mapping[str, Any]


class Divides(Protocol):
    """An optimizer that says itself what it divides by: those of `train.optim`."""

    param_groups: list[dict[str, Any]]

    def preconditioner(self, param: Tensor, group: Group) -> Tensor | None:
        """P of a parameter in its shape, None for 1; raises ValueError before the first step."""

    def recursion(self, group: Group) -> tuple[Mapping[str, Any], str]:
        """What `predict.edge` takes."""


Preconditions = torch.optim.Optimizer | Divides | Mapping[str, Tensor]
"""An optimizer, or the diagonal of P by the names of the parameters."""


@dataclass(frozen=True, eq=False)
class Preconditioned:
    """What an operator becomes under a preconditioner.

    Attributes:
        operator: P^-1/2 (H + decay) P^-1/2.
        scale: the diagonal of P^-1/2, in the units of the first group; None for P = I.
        edge: the edge of the first group; None where only P is known.
    """

    operator: Operator
    scale: Float[Tensor, " params"] | None
    edge: float | None


def preconditioned(
    operator: Operator, objective: Objective, given: Preconditions
) -> Preconditioned:
    """The curvature that an optimizer feels, from its state as it is now.

    Raises:
        TypeError: what is given is neither an optimizer whose P is known nor a mapping.
        ValueError: a parameter is not in it, has no state yet, or P is not positive and finite.
    """
    named = dict(objective.model.named_parameters())
    params = {name: named[name] for name in objective.param_names}
    if isinstance(given, Mapping):
        _check_names(params, given, "in the preconditioner")
        root = _inverse_root(params, given, operator.like)
        return Preconditioned(_scaled(operator, root, None), root, None)
    found = dict(_of_optimizer(given, params))
    edges = [edge for _, edge, _ in found.values()]
    first = edges[0]
    parts: dict[str, Tensor] = {}
    plain = True
    for name, (own, edge, _) in found.items():
        plain = plain and own is None and edge == first
        own = torch.ones_like(params[name]) if own is None else own
        parts[name] = own if edge == first else own * (edge / first)
    scale = None if plain else _inverse_root(params, parts, operator.like)
    decay = None
    if any(coupled for _, _, coupled in found.values()):
        sizes = [(params[name].numel(), coupled) for name, (_, _, coupled) in found.items()]
        decay = torch.cat([operator.like.new_full((size,), value) for size, value in sizes])
    return Preconditioned(_scaled(operator, scale, decay), scale, first)


def _scaled(operator: Operator, scale: Tensor | None, decay: Tensor | None) -> Operator:
    """S (H + decay) S."""

    def multiply(vectors: Tensor) -> Tensor:
        inner = vectors if scale is None else vectors * scale
        images = operator.multiply(inner)  # its own memory: written over, which costs least
        if decay is not None:
            images.addcmul_(inner, decay)
        return images if scale is None else images.mul_(scale)

    if scale is None and decay is None:
        return operator
    return replace(operator, multiply=multiply)


def _inverse_root(
    params: Mapping[str, Tensor], diagonal: Mapping[str, Tensor], like: Tensor
) -> Float[Tensor, " params"]:
    """P^-1/2 as one vector."""
    parts = []
    for name, param in params.items():
        own = diagonal[name]
        if not isinstance(own, Tensor) or own.shape != param.shape:
            got = f"shape {tuple(own.shape)}" if isinstance(own, Tensor) else type(own).__name__
            raise ValueError(
                f"the preconditioner of {name} must be a tensor of its shape {tuple(param.shape)}, "
                f"got {got}"
            )
        own = own.detach().to(like).flatten()
        if not bool((torch.isfinite(own) & (own > 0)).all()):
            raise ValueError(
                f"the preconditioner of {name} must be positive and finite; where gradients have "
                "been zero it is eps, which must not be 0"
            )
        parts.append(own.rsqrt())
    return torch.cat(parts)


def _check_names(params: Mapping[str, Tensor], held: Mapping[str, Any], where: str) -> None:
    lacking = [name for name in params if name not in held]
    if lacking:
        shown = ", ".join(lacking[:3]) + ", ..." * (len(lacking) > 3)
        raise ValueError(
            f"{shown} of the objective must be {where}: what it does not move has no edge. Leave "
            "it out by Objective(..., params=[...])"
        )


def _of_optimizer(
    optimizer: Any, params: Mapping[str, Tensor]
) -> Iterator[tuple[str, tuple[Tensor | None, float, float]]]:
    """By name P (None for 1), the edge of the group, and its coupled decay."""
    known = _known(optimizer)
    groups = {id(param): group for group in optimizer.param_groups for param in group["params"]}
    held = {name: groups[id(param)] for name, param in params.items() if id(param) in groups}
    _check_names(params, held, f"in the optimizer, a {type(optimizer).__name__}")
    for name, param in params.items():
        group = held[name]
        if known is None:
            hyper, rule = optimizer.recursion(group)
            own = _or_untouched(name, optimizer.preconditioner, param, group)
        else:
            hyper, rule, own = _of_torch(known, name, optimizer.state.get(param, {}), group)
        decoupled = hyper.get("decoupled_weight_decay", rule == "adamw")
        coupled = 0.0 if decoupled else float(hyper.get("weight_decay", 0.0))
        yield name, (own, predict.edge(hyper, rule).value, coupled)


def _or_untouched(name: str, read: Callable[..., Tensor | None], *arguments: Any) -> Tensor | None:
    try:
        return read(*arguments)
    except LookupError:
        raise _untouched(name) from None


def _untouched(name: str) -> ValueError:
    return ValueError(
        f"preconditioner: the optimizer has no state for {name} yet, so it divides by nothing; "
        "measure after a step in which it had a gradient, or leave it out by Objective(params=...)"
    )


def _of_torch(
    known: _Known, name: str, state: State, group: Group
) -> tuple[Group, str, Tensor | None]:
    if known.read is None:
        return group, known.rule, None
    if not state or float(state.get("step", 0)) < 1:
        raise _untouched(name)
    step = float(state["step"])
    hyper = {**group, "step": round(step)} if known.rule == "nadam" else group
    return hyper, known.rule, known.read(state, group, step)


# What PyTorch's optimizers divide by, after `step` steps.


def _correction(group: Group, which: int, step: float) -> float:
    return float(1 - float(group["betas"][which]) ** step)


def _root(state: State, group: Group, step: float) -> Tensor:
    square = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    return square.sqrt() / math.sqrt(_correction(group, 1, step)) + group["eps"]


def _adam(state: State, group: Group, step: float) -> Tensor:
    return _root(state, group, step) * _correction(group, 0, step)


def _radam(state: State, group: Group, step: float) -> Tensor:
    decay = float(group["betas"][1])
    most = 2 / (1 - decay) - 1
    length = most - 2 * step * decay**step / (1 - decay**step)
    if length <= 5:  # too few steps for a variance: it takes the mean as it is
        return torch.full_like(state["exp_avg_sq"], _correction(group, 0, step))
    rectified = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)
    root = (state["exp_avg_sq"].sqrt() + group["eps"]) / math.sqrt(1 - decay**step)
    return root * (_correction(group, 0, step) / math.sqrt(rectified))


def _adamax(state: State, group: Group, step: float) -> Tensor:
    largest: Tensor = state["exp_inf"]
    return largest * _correction(group, 0, step)


def _rmsprop(state: State, group: Group, step: float) -> Tensor:
    square: Tensor = state["square_avg"]
    if group["centered"]:
        square = square - state["grad_avg"].square()
    return square.sqrt() + group["eps"]


def _adagrad(state: State, group: Group, step: float) -> Tensor:
    root: Tensor = state["sum"].sqrt() + group["eps"]
    return root * (1 + (step - 1) * group["lr_decay"])


def _adadelta(state: State, group: Group, step: float) -> Tensor:
    ratio: Tensor = (state["square_avg"] + group["eps"]) / (state["acc_delta"] + group["eps"])
    return ratio.sqrt()


@dataclass(frozen=True)
class _Known:
    """An optimizer of PyTorch: its name in `predict.edge`, and P from (state, group, step)."""

    kind: type[torch.optim.Optimizer]
    rule: str
    read: Callable[[State, Group, float], Tensor] | None


_KNOWN = (
    _Known(torch.optim.SGD, "sgd", None),
    _Known(torch.optim.AdamW, "adamw", _adam),
    _Known(torch.optim.Adam, "adam", _adam),
    _Known(torch.optim.NAdam, "nadam", _root),
    _Known(torch.optim.RAdam, "radam", _radam),
    _Known(torch.optim.Adamax, "adamax", _adamax),
    _Known(torch.optim.RMSprop, "rmsprop", _rmsprop),
    _Known(torch.optim.Adagrad, "adagrad", _adagrad),
    _Known(torch.optim.Adadelta, "adadelta", _adadelta),
)


def _known(optimizer: Any) -> _Known | None:
    """Which optimizer it is; None for one that says itself what it divides by."""
    if hasattr(optimizer, "preconditioner") and hasattr(optimizer, "recursion"):
        return None
    kind = type(optimizer)
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"preconditioner must be an optimizer or the diagonal by name, got {kind.__name__}"
        )
    for known in _KNOWN:
        if isinstance(optimizer, known.kind):
            # Of a class with a step of its own nobody knows what it makes of the state.
            if inspect.unwrap(kind.step) is inspect.unwrap(known.kind.step):
                return known
            break
    names = ", ".join(known.kind.__name__ for known in _KNOWN)
    inside = " Give the optimizer inside it." * hasattr(optimizer, "optimizer")
    raise TypeError(
        f"preconditioner: it is not known what {kind.__name__} divides by; known are {names} of "
        f"torch.optim and those of train.optim. Or give its diagonal, {{name: tensor}}.{inside}"
    )
