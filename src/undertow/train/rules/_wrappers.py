"""Wrappers that make an update rule of another: SVAG (2102.12470, 2205.10287), label noise
(2410.16401), and weights of norm one (Xu et al. 2023, "Dynamics in deep classifiers").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from undertow.train.rules._rule import Hyper, Rule, Scaling, State, Value, has_members

Method = Literal["projection", "lagrange"]
Update = Callable[..., tuple[list[Tensor], State]]


def svag(
    rule: Rule,
    l: float,  # noqa: E741 - the paper's letter
    *,
    variance: float | None = None,
) -> Rule:
    """The rule at a learning rate l times smaller, with its noise amplified to match.

    A step takes the gradients g1, g2 of two independent batches and updates with
    r1 g1 + r2 g2. The mean stays, the covariance grows, and as l grows the trajectory tends to
    the rule's stochastic differential equation at the learning rate given (weakly, with an error
    of order 1/l for `sgd`):

    | | `sgd`, `momentum` | `rmsprop`, `adam`, `adamw` |
    |---|---|---|
    | r1, r2 | (1 +- sqrt(2 l - 1)) / 2 | (1 +- sqrt(2 l^2 - 1)) / 2 |
    | covariance of the noise | x l | x l^2 |
    | learning rate | / l | / l |
    | steps for the same time | x l | x l^2 |
    | momentum; 1 - beta | stays | / l^2 |
    | eps (inside the root) | | x l (x l^2) |
    | coupled weight decay | stays | stays |
    | decoupled weight decay | | / l |

    Give `update`, an optimizer or an ensemble the hyperparameters of the rule inside; they are
    scaled here. The number of steps is the caller's: `steps_per_step` for each one of the rule.

    Args:
        rule: the rule.
        l: how much finer, a real number of at least 1. At 1 the rule itself is returned where no
            variance is given.
        variance: by what the covariance of the noise is multiplied, at least 1/2; by default as in
            the table. With any other power of l the limit is another process, if there is one: a
            control, for what the noise does.

    Raises:
        ValueError: l is below 1 or not finite, the variance below 1/2 or not finite, the rule is
            wrapped in `svag` already, or it has no `scaling`.
        TypeError: `rule` is not a rule, or l is not a number.

    Notes:
        2102.12470 for `sgd`, 2205.10287 for Adam and RMSprop. What momentum and both kinds of
        decay must do is derived: momentum stays, so that its memory of 1 / (1 - momentum) steps
        takes no time in the limit; lr x weight_decay x steps stays where decay is decoupled, and
        under coupled decay, as a part of the gradient, does so by itself.
    """
    _check_rule("svag", rule)
    if isinstance(l, bool) or not isinstance(l, Real):
        raise TypeError(f"l must be a number, got {l!r}")
    if not (math.isfinite(l) and l >= 1):
        raise ValueError(
            f"l must be finite and at least 1, got {l}: svag makes steps finer, and 1 is the rule"
        )
    if rule.scaling is None:
        raise ValueError(
            f"{rule!r} does not say how its hyperparameters scale; give the Rule a `scaling`, as "
            "rules.sgd has"
        )
    if l == 1 and variance is None:
        return rule
    steps = float(l**rule.scaling.steps)
    variance = steps if variance is None else variance
    if not (math.isfinite(variance) and variance >= 0.5):
        raise ValueError(
            f"variance must be finite and at least 1/2, got {variance}: the mean of two batches "
            "has half of one's, and no weights that keep the mean gradient have less"
        )
    spread = math.sqrt(2 * variance - 1)
    return replace(
        rule,
        name=f"svag({rule.name}, {l:g})",
        update=partial(scaled_update, rule.update, rule.scaling, float(l)),
        batch_weights=((1 + spread) / 2, (1 - spread) / 2),
        steps_per_step=steps,
        wrappers=(*rule.wrappers, "svag"),
    )


def scaled_update(
    update: Update,
    scaling: Scaling,
    l: float,  # noqa: E741
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    hyper: Hyper,
    inplace: bool = False,
) -> tuple[list[Tensor], State]:
    """The update of `svag`: that of the rule inside, at the hyperparameters of the finer one."""
    return update(params, grads, state, scaling.apply(hyper, l), inplace=inplace)


def label_noise(
    rule: Rule,
    *,
    std: float | None = None,
    flip_probability: float | None = None,
    num_classes: int | None = None,
) -> Rule:
    """The rule trained on targets that are perturbed afresh each time a sample is seen.

    `train.Ensemble` perturbs the targets of each batch. In a loop of your own, give the loss
    `rule.perturb(targets, generator)` instead of the targets.

    Args:
        rule: the rule.
        std: for regression: standard deviation of the normal noise added to each number.
        flip_probability: for classification: the probability that a label is replaced by a class
            drawn uniformly from all of them, the true one included; so it changes with probability
            flip_probability (num_classes - 1) / num_classes. Labels outside 0 to num_classes - 1,
            such as an `ignore_index`, stay.
        num_classes: the number of classes; needed with `flip_probability`.

    Raises:
        ValueError: not exactly one of `std` and `flip_probability` is given, either is out of
            range, `num_classes` is missing, or the rule has label noise already.
        TypeError: `rule` is not a rule. The rule's `perturb` raises TypeError on targets of the
            other kind.
    """
    _check_rule("label_noise", rule)
    if (std is None) == (flip_probability is None):
        raise ValueError(
            "label_noise needs either std (regression) or flip_probability (classification), got "
            + ("neither" if std is None else "both")
        )
    if std is not None:
        if not 0 <= std < math.inf:
            raise ValueError(f"std must be finite and not negative, got {std}")
        noise, described = partial(_shifted, float(std)), f"std={std:g}"
    else:
        assert flip_probability is not None
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"flip_probability must lie between 0 and 1, got {flip_probability}")
        if not isinstance(num_classes, Integral) or num_classes < 2:
            raise ValueError(
                f"flip_probability needs num_classes, a whole number of at least 2, got "
                f"{num_classes!r}"
            )
        noise = partial(_flipped, float(flip_probability), int(num_classes))
        described = f"flip_probability={flip_probability:g}, num_classes={num_classes}"
    return replace(
        rule,
        name=f"label_noise({rule.name}, {described})",
        perturb=noise,
        wrappers=(*rule.wrappers, "label_noise"),
    )


def _shifted(
    std: float, targets: Float[Tensor, "n ..."], generator: torch.Generator
) -> Float[Tensor, "n ..."]:
    if not targets.is_floating_point():
        raise TypeError(
            f"label noise of std={std:g} is added to numbers, but targets are {targets.dtype}; "
            "for class labels use flip_probability"
        )
    drawn = torch.randn(
        targets.shape, generator=generator, dtype=targets.dtype, device=generator.device
    )
    return torch.add(targets, drawn.to(targets.device), alpha=std)


def _flipped(
    probability: float, classes: int, targets: Shaped[Tensor, "n ..."], generator: torch.Generator
) -> Shaped[Tensor, "n ..."]:
    if targets.is_floating_point():
        raise TypeError(
            f"label noise that flips classes needs whole numbers, but targets are {targets.dtype}; "
            "for numbers use std"
        )
    shape, device = targets.shape, generator.device
    flip = torch.rand(shape, generator=generator, device=device) < probability
    drawn = torch.randint(classes, shape, generator=generator, device=device)
    flip = flip.to(targets.device) & (targets >= 0) & (targets < classes)
    return torch.where(flip, drawn.to(targets), targets)


def unit_norm(rule: Rule, *, method: Method = "projection") -> Rule:
    """The rule with every weight tensor kept at Frobenius norm one, ||V_k|| = 1.

    Weight tensors are those with two axes or more, beside the ensemble axis; biases, gains and a
    scale rho take the rule's plain update. Where a field of `hyper` holds one value a member, the
    tensors' first axis counts as the ensemble axis and each member's part has norm one.

    With `method="projection"` the rule takes its step and the result is divided by its norm. With
    `method="lagrange"` the gradient is first freed of its radial part, g - (g . V) V, which is
    what a Lagrange multiplier for ||V||^2 = 1 does in the flow; dividing by the norm then only
    removes what a finite step adds. Under `sgd` both turn V in the same direction, with effective
    learning rates lr / (1 - lr weight_decay - lr g . V) and lr / (1 - lr weight_decay): weight
    decay lengthens the step, and does nothing else. The two agree where the loss does not depend
    on the norm of V; see `effective_lr`.

    Weights should have norm one from the start; if not, the first step gives it to them.

    Raises:
        ValueError: `method` is neither, or the rule is wrapped in `unit_norm` already.
        TypeError: `rule` is not a rule.
    """
    _check_rule("unit_norm", rule)
    if method not in get_args(Method):
        raise ValueError(f"method must be {' or '.join(get_args(Method))}, got {method!r}")
    described = rule.name if method == "projection" else f"{rule.name}, method={method!r}"
    return replace(
        rule,
        name=f"unit_norm({described})",
        update=partial(_unit_norm_update, rule.update, method),
        wrappers=(*rule.wrappers, "unit_norm"),
    )


def _unit_norm_update(
    update: Update,
    method: Method,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    hyper: Hyper,
    inplace: bool = False,
) -> tuple[list[Tensor], State]:
    leading = int(has_members(hyper))
    if method == "lagrange":
        grads = [
            _tangent(param, grad, leading) if param.ndim >= leading + 2 else grad
            for param, grad in zip(params, grads, strict=True)
        ]
    new_params, new_state = update(params, grads, state, hyper, inplace=inplace)
    for param in new_params:
        if param.ndim >= leading + 2:
            param.div_(_norm(param, leading))
    return new_params, new_state


def _norm(param: Tensor, leading: int) -> Tensor:
    axes = tuple(range(leading, param.ndim))
    norm = torch.linalg.vector_norm(param, dim=axes, keepdim=True)
    # A diverged member of an ensemble is all zero, and stays so.
    return norm.clamp_min(torch.finfo(param.dtype).tiny)


def _tangent(param: Tensor, grad: Tensor, leading: int) -> Tensor:
    axes = tuple(range(leading, param.ndim))
    unit = param / _norm(param, leading)
    return grad - (grad * unit).sum(axes, keepdim=True) * unit


def effective_lr(weight: Tensor, lr: Value, *, weight_decay: Value = 0.0) -> Tensor:
    """The rate at which gradient descent turns a weight whose norm the loss does not feel.

    For L(c w) = L(w), a step w <- (1 - lr weight_decay) w - lr grad L(w) moves the direction
    theta = w / ||w|| to theta - rate grad L(theta), divided by its norm, with

        rate = lr / ((1 - lr weight_decay) ||w||^2)        (2206.07085; exact)

    which is `unit_norm(sgd)` at that learning rate. With a tensor `[E]` of learning rates or decays
    the weight's first axis is the ensemble axis, and the result `[E]`.

    Raises:
        ValueError: lr or weight_decay is out of range, as in `Hyper`.
    """
    hyper = Hyper(lr, weight_decay)
    square = weight.square()
    total = square.flatten(1).sum(1) if has_members(hyper) else square.sum()
    return hyper.lr / ((1 - hyper.lr * hyper.weight_decay) * total)


def _check_rule(wrapper: str, rule: object) -> None:
    if not isinstance(rule, Rule):
        raise TypeError(f"{wrapper} wraps one of train.rules, such as rules.sgd, got {rule!r}")
    if wrapper in rule.wrappers:
        raise ValueError(
            f"{rule!r} is wrapped in {wrapper} already; wrap the bare rule once, with what you want"
        )
