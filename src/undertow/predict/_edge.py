"""The edge of stability of an update rule: the curvature from which on its steps overshoot.

Along an eigenvector of the curvature each rule is a linear recursion in the weight and its buffer;
2103.00065 has gradient descent and momentum, 2207.14484 Adam with its preconditioner held still.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from undertow.predict._arguments import coefficient, count, decay_rate, number, positive, step_decay


@dataclass(frozen=True)
class Edge:
    """The largest eigenvalue at which an update rule still contracts.

    Attributes:
        value: the edge; beyond it each step overshoots, with a sign that alternates.
        equation: where it comes from.
        matrix: whose eigenvalues it bounds: H, or P^-1 H with what the rule divides by.
    """

    value: float
    equation: str
    matrix: str

    def __repr__(self) -> str:
        return (
            f"Edge {self.value:.6g} for the largest eigenvalue of {self.matrix}: {self.equation}."
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields, for a logger."""
        return asdict(self)


@dataclass(frozen=True)
class _Recursion:
    """m' = kept m + gain g and x' = (1 - lr decay) x - lr (direct g + through m').

    With g = a x the matrix of (x, m) has T = s + kept - lr a (direct + through gain) on its
    diagonal and the determinant D = s kept - lr a kept direct, s = 1 - lr decay. For a > 0 the
    first of Jury's conditions |D| < 1, |T| < 1 + D to fail is -T < 1 + D, at the eigenvalue -1.
    """

    kept: float
    gain: float
    direct: float
    through: float
    equation: str

    def edge(self, lr: float, shrunk: float) -> float:
        slope = self.direct * (1 + self.kept) + self.through * self.gain
        return (1 + shrunk) * (1 + self.kept) / (lr * slope)


_PLAIN = _Recursion(0.0, 1.0, 1.0, 0.0, "2 / lr")


def _sgd(hyper: Mapping[str, Any]) -> _Recursion:
    kept = coefficient("momentum", hyper.get("momentum", 0.0))
    dampening = coefficient("dampening", hyper.get("dampening", 0.0))
    nesterov = bool(hyper.get("nesterov", False))
    if nesterov and (kept == 0 or dampening != 0):
        raise ValueError(
            "nesterov must come with a momentum above 0 and dampening 0, as in PyTorch"
        )
    if kept == 0:
        return _PLAIN
    if nesterov:
        equation = "2 (1 + momentum) / ((1 + 2 momentum) lr)"
        return _Recursion(kept, 1.0, 1.0, kept, equation)
    equation = "2 (1 + momentum) / lr"
    if dampening:
        equation = "2 (1 + momentum) / ((1 - dampening) lr)"
    return _Recursion(kept, 1 - dampening, 0.0, 1.0, equation)


def _averaged(kept: float, name: str) -> _Recursion:
    return _Recursion(kept, 1 - kept, 0.0, 1.0, f"2 (1 + {name}) / ((1 - {name}) lr)")


def _ema_momentum(hyper: Mapping[str, Any]) -> _Recursion:
    return _averaged(coefficient("momentum", hyper.get("momentum", 0.0)), "momentum")


def _adam(hyper: Mapping[str, Any]) -> _Recursion:
    return _averaged(_beta1(hyper), "beta1")


def _nadam(hyper: Mapping[str, Any]) -> _Recursion:
    kept = _beta1(hyper)
    pace = number("momentum_decay", hyper.get("momentum_decay", 4e-3))
    if not (math.isfinite(pace) and pace >= 0):
        raise ValueError(f"momentum_decay must be a finite number >= 0, got {pace}")
    equation = "2 (1 + beta1) / ((direct (1 + beta1) + through (1 - beta1)) lr)"
    if hyper.get("step") is None:
        return _Recursion(kept, 1 - kept, 1 - kept, kept, f"{equation} after many steps")
    step = count("step", int(hyper["step"]))
    mus = kept * (1 - 0.5 * 0.96 ** (np.arange(1, step + 2) * pace))
    past = float(np.prod(mus[:-1]))
    direct, through = (1 - mus[-2]) / (1 - past), mus[-1] / (1 - past * mus[-1])
    return _Recursion(kept, 1 - kept, float(direct), float(through), f"{equation} at step {step}")


def _divided(hyper: Mapping[str, Any]) -> _Recursion:
    return _sgd({"momentum": hyper.get("momentum", 0.0)})


def _beta1(hyper: Mapping[str, Any]) -> float:
    if "beta1" in hyper:
        return coefficient("beta1", hyper["beta1"])
    betas = hyper.get("betas", (0.9, 0.999))
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers, got {betas!r}")
    return coefficient("betas[0]", betas[0])


_ANY = ("lr", "weight_decay", "decoupled_weight_decay", "maximize")
_BETAS = ("betas", "beta1", "beta2", "eps")
# The recursion of each optimizer, and what it reads beside `_ANY`; P holds what else it does.
_OPTIMIZERS: dict[str, tuple[Callable[[Mapping[str, Any]], _Recursion], tuple[str, ...]]] = {
    "sgd": (_sgd, ("momentum", "dampening", "nesterov")),
    "momentum": (_sgd, ("momentum", "dampening", "nesterov")),
    "ema_momentum": (_ema_momentum, ("momentum",)),
    "rmsprop": (_divided, ("alpha", "beta2", "eps", "momentum", "centered")),
    "adagrad": (lambda _: _PLAIN, ("lr_decay", "eps", "initial_accumulator_value")),
    "adadelta": (lambda _: _PLAIN, ("rho", "eps")),
    "adam": (_adam, (*_BETAS, "amsgrad")),
    "adamw": (_adam, (*_BETAS, "amsgrad")),
    "nadam": (_nadam, (*_BETAS, "momentum_decay", "step")),
    "radam": (_adam, _BETAS),
    "adamax": (_adam, _BETAS),
}
_BARE = ("sgd", "momentum", "ema_momentum")  # P = I


def edge(hyper: Mapping[str, Any], optimizer: str = "sgd") -> Edge:
    """The curvature at which an optimizer's steps begin to overshoot.

    Near a minimum, along an eigenvector of P^-1 H of eigenvalue a, with P what the optimizer
    divides by, held still, and s = 1 - lr x decoupled weight decay, the weights contract as long
    as a is below

    | | edge |
    |---|---|
    | gradient descent, RMSprop, Adagrad, Adadelta | (1 + s) / lr |
    | heavy ball with dampening d, RMSprop with momentum | (1 + s)(1 + b) / ((1 - d) lr) |
    | Nesterov in PyTorch's form | (1 + s)(1 + b) / ((1 + 2 b) lr) |
    | a running mean of gradients: Adam, AdamW, RAdam, Adamax | (1 + s)(1 + b) / ((1 - b) lr) |
    | NAdam, of step t | (1 + s)(1 + b) / ((c (1 + b) + e (1 - b)) lr) |

    with c = (1 - mu_t) / (1 - mu_1 ... mu_t) and e = mu_(t+1) / (1 - mu_1 ... mu_(t+1)) of its
    schedule of momenta. So 2 / lr for gradient descent and 38 / lr for Adam at beta1 = 0.9. From
    there on x changes sign at each step and grows: the recursion's eigenvalue is -1. Training at a
    large rate comes to the edge and stays (2103.00065, 2207.14484), so the edge is where the
    largest eigenvalue is expected, not a reason to lower lr. Batches must be large: the noise of
    small ones holds the curvature lower, see `measure.batch_sharpness`.

    H is the Hessian of what is descended: coupled weight decay is a part of it, H + weight_decay I.
    P has all that the optimizer divides by, Adam's correction 1 - beta1^t of the mean included, as
    `measure.sharpness(objective, preconditioner=optimizer)` has.

    Args:
        hyper: names and values as in PyTorch: a dictionary, or one of `optimizer.param_groups`. The
            names that belong to P alone change nothing.
        optimizer: `sgd` (momentum, Nesterov too), `ema_momentum` (the papers' form), `rmsprop`,
            `adagrad`, `adadelta`, `adam`, `adamw`, `nadam`, `radam` or `adamax`.

    Raises:
        TypeError: `hyper` is no mapping.
        ValueError: another optimizer or name, a value out of its range, or maximize.

    Source: 2103.00065, appendix B (gradient descent, momentum, Nesterov) and 2207.14484, section 2
    (Adam); the recursion, with dampening and decay, is written out in this file.
    """
    if not isinstance(hyper, Mapping):
        raise TypeError(
            f"hyper must be a mapping, such as one of optimizer.param_groups, got {hyper!r}"
        )
    if optimizer not in _OPTIMIZERS:
        close = get_close_matches(str(optimizer), _OPTIMIZERS, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(_OPTIMIZERS)}"
        raise ValueError(f"optimizer {optimizer!r}: no edge is known for it{hint}")
    recursion_of, reads = _OPTIMIZERS[optimizer]
    if "params" not in hyper:  # a parameter group holds more than the rule reads
        for name in hyper:
            if name not in (*_ANY, *reads):
                known = ", ".join((*_ANY, *reads))
                raise ValueError(f"hyper: {optimizer} reads {known}, got {name!r}")
    if hyper.get("lr") is None:
        raise ValueError(f"hyper must hold lr, got {', '.join(map(str, hyper)) or 'nothing'}")
    if hyper.get("maximize"):
        raise ValueError("maximize must be False: an edge bounds descent; negate the loss instead")
    lr, decay = positive("lr", hyper["lr"]), decay_rate(hyper.get("weight_decay", 0.0))
    decoupled = bool(hyper.get("decoupled_weight_decay", optimizer == "adamw"))
    recursion = recursion_of(hyper)
    shrunk = 1 - step_decay(lr, decay) if decoupled else 1.0
    equation = recursion.equation
    if decoupled and decay:
        equation = equation.replace("2", "(2 - lr weight_decay)", 1)
    matrix = "H" if decoupled or not decay else "H + weight_decay I"
    if optimizer not in _BARE:
        matrix = f"P^-1 ({matrix})" if " " in matrix else f"P^-1 {matrix}"
    return Edge(recursion.edge(lr, shrunk), equation, matrix)
