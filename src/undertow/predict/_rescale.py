"""Hyperparameters for another batch size, so that training follows the same path in fewer steps.

Linear rule for SGD (2102.12470), square-root rule for RMSprop and Adam (2205.10287): both keep the
terms of the stochastic differential equation that the method approximates.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from undertow.predict._arguments import (
    coefficient,
    count,
    decay_rate,
    number,
    positive,
    step_decay,
)

Optimizer = Literal["sgd", "momentum", "rmsprop", "adam", "adamw"]
Value = float | int | tuple[float, ...]

_LINEAR = ("sgd", "momentum")
_STEPS = ("steps", "warmup_steps", "milestones")
_READS: dict[str, tuple[str, ...]] = {
    "sgd": ("lr", "momentum", "weight_decay", *_STEPS),
    "momentum": ("lr", "momentum", "weight_decay", *_STEPS),
    "rmsprop": ("lr", "alpha", "beta2", "eps", "weight_decay", *_STEPS),
    "adam": ("lr", "betas", "beta1", "beta2", "eps", "weight_decay", *_STEPS),
    "adamw": ("lr", "betas", "beta1", "beta2", "eps", "weight_decay", *_STEPS),
}
_BETA1, _BETA2, _ALPHA, _EPS, _ADAMW_DECAY = 0.9, 0.999, 0.99, 1e-8, 1e-2  # PyTorch's defaults
_CLOSENESS = math.sqrt(2)  # the factor that counts as close in 2102.12470


@dataclass(frozen=True)
class Change:
    """One hyperparameter before and after, the equation that moved it, and why it must move."""

    name: str
    old: Value
    new: Value
    equation: str
    reason: str

    def __repr__(self) -> str:
        return (
            f"{self.name} {_shown(self.old)} -> {_shown(self.new)} ({self.equation}): {self.reason}"
        )


@dataclass(frozen=True)
class Rescaled:
    """Hyperparameters for another batch size, with what they rest on.

    Attributes:
        hyper: the new values, under the names that were given (and those PyTorch would default).
        factor: k, the new total batch over the old one.
        rule: `linear` or `square root`.
        changes: one entry for each hyperparameter, those that stay included.
        assumptions: what must hold for the two runs to agree.
        warnings: where the given noise scale or sharpness says that they will not.
    """

    hyper: Mapping[str, Value]
    factor: float
    rule: str
    changes: tuple[Change, ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {_shown(value)}" for name, value in self.hyper.items())
        caution = f" {len(self.warnings)} warnings." if self.warnings else ""
        return f"Batch x {self.factor:.6g} by the {self.rule} rule: {values}.{caution}"


def rescale(
    hyper: Mapping[str, Any],
    *,
    from_batch: int,
    to_batch: int,
    optimizer: Optimizer,
    from_workers: int = 1,
    to_workers: int | None = None,
    noise_scale: float | None = None,
    sharpness: float | None = None,
) -> Rescaled:
    """Hyperparameters at `to_batch` that keep the training path of those at `from_batch`.

    With k = new / old total batch and the same number of samples seen:

    - SGD, with momentum or without: lr' = k lr. Momentum and coupled decay stay. Step n is time
      n lr / (1 - momentum), gradient noise has covariance Sigma / B, and lr Sigma / B is what the
      equation dX = -grad L dt + sqrt(lr Sigma / B) dW holds fixed.
    - RMSprop, Adam, AdamW: lr' = sqrt(k) lr, 1 - beta' = k (1 - beta), eps' = eps / sqrt(k). Time
      is n lr^2 there, and the root of the mean square is the noise, which falls by sqrt(k).
    - weight decay: coupled decay (SGD, RMSprop, Adam) is a part of the loss and stays. Decoupled
      decay (AdamW) shrinks by lr x weight_decay in 1 / k as many steps: weight_decay' = sqrt(k)
      weight_decay keeps the product over a run.
    - counts of steps: divided by k, to the nearest whole number and at least 1 (0 stays 0).

    Scaling to a batch and back gives the same values, whole counts up to their rounding.

    Args:
        hyper: `lr`, and where they apply `momentum`, `betas` (or `beta1`, `beta2`), `alpha`
            (or `beta2`) of RMSprop, `eps` (outside the root, as PyTorch has it), `weight_decay`
            (PyTorch's), `steps`, `warmup_steps`, `milestones`. What is absent and has a default
            other than zero in PyTorch is taken at that default, and appears in the result.
        from_batch: samples a step on one worker, before.
        to_batch: the same, after.
        optimizer: `sgd`, `momentum` (the same rule), `rmsprop`, `adam` or `adamw`.
        from_workers: data-parallel workers before; total batch = workers x batch.
        to_workers: and after; by default as many.
        noise_scale: B_simple = tr Sigma / ||grad L||^2 in samples, as `measure.gradient_noise`
            gives it at the old settings; the noise-to-signal ratio N/G at batch B is its B-th part.
        sharpness: largest eigenvalue of the Hessian at the old settings; of the preconditioned
            Hessian P^-1 H, P = diag(sqrt(v) + eps), for adaptive methods.

    Raises:
        TypeError: a count that is no whole number.
        ValueError: a name or value that the optimizer does not read, or a k beyond the rule's
            range (1 - k (1 - beta) <= 0, or lr' x weight_decay' >= 1); the message gives the
            largest k that is allowed.

    Sources: 2102.12470 (linear rule, closeness), 2205.10287 (square-root rule). The decay rules
    are derived from the two clocks, as above.
    """
    if optimizer not in _READS:
        raise ValueError(f"optimizer must be one of {', '.join(_READS)}, got {optimizer!r}")
    if to_workers is None:
        to_workers = from_workers
    old_batch = count("from_batch", from_batch) * count("from_workers", from_workers)
    new_batch = count("to_batch", to_batch) * count("to_workers", to_workers)
    factor = new_batch / old_batch
    linear = optimizer in _LINEAR
    given = _checked(_completed(hyper, optimizer))
    lr = float(given["lr"])
    decoupled = optimizer == "adamw"
    if linear or decoupled:  # elsewhere the decay is normalised with the gradient
        _check_decay(lr, given.get("weight_decay", 0.0), factor, old_batch)
    changes = []
    for name, value in given.items():
        change = _change(name, value, factor, linear=linear, decoupled=decoupled)
        if name in ("beta1", "beta2", "alpha", "betas"):
            _check_averages(name, value, factor, old_batch)
        changes.append(change)
    values = {change.name: change.new for change in changes}
    warnings: list[str] = []
    if noise_scale is not None:
        warnings += _noise_warnings(positive("noise_scale", noise_scale), old_batch, new_batch)
    if sharpness is not None:
        product = lr * positive("sharpness", sharpness) * factor
        warnings += _curvature_warnings(product, values, linear=linear)
    return Rescaled(
        values,
        factor,
        "linear" if linear else "square root",
        tuple(changes),
        _ASSUMPTIONS if linear else _ASSUMPTIONS + _ADAPTIVE_ASSUMPTIONS,
        tuple(warnings),
    )


def largest_batch(batch_size: int, noise_scale: float, *, closeness: float = _CLOSENESS) -> float:
    """The largest batch to which a run can be scaled up: k B, k = C^2 (1 + N/G) - N/G.

    N/G = `noise_scale` / `batch_size` is the noise-to-signal ratio at the present batch B. Under
    the linear rule a scale-invariant network's ||w||^2 settles in proportion to lr (G + N), which
    grows by (k G + N) / (G + N); within factors C for ||w||^2, G and N that may be C^2. The mean
    square that RMSprop and Adam divide by leaves the square-root rule by the same factor, and their
    steps by its root. In samples: C^2 B + (C^2 - 1) noise_scale. Necessary, not sufficient.

    A stochastic differential equation itself asks for N/G >= 1 / (C^2 - 1): at C^2 = 2, for a
    batch of at most `noise_scale`.

    Args:
        batch_size: B, of the run as it is.
        noise_scale: B_simple = tr Sigma / ||grad L||^2, in samples.
        closeness: C, above 1.

    Raises:
        TypeError: if batch_size is no whole number.
        ValueError: if a value is out of its range.

    Source: 2102.12470, section on necessary conditions, in the form derived here.
    """
    square = positive("closeness", closeness) ** 2
    if square <= 1:
        raise ValueError(f"closeness must be above 1, got {closeness}")
    return square * count("batch_size", batch_size) + (square - 1) * positive(
        "noise_scale", noise_scale
    )


# ---- what comes in


def _completed(hyper: Mapping[str, Any], optimizer: str) -> dict[str, Any]:
    """The hyperparameters with the defaults of PyTorch that are not zero."""
    for name in hyper:
        if name not in _READS[optimizer]:
            close = difflib.get_close_matches(str(name), _READS[optimizer], n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            reads = ", ".join(_READS[optimizer])
            raise ValueError(f"hyper: {optimizer} reads {reads}, got {name!r}{hint}")
    if "lr" not in hyper:
        raise ValueError(f"hyper must hold lr, got {', '.join(map(str, hyper)) or 'nothing'}")
    full = dict(hyper)
    if optimizer in _LINEAR:
        return full
    for name, one in (("betas", "beta1"), ("betas", "beta2"), ("alpha", "beta2")):
        if name in full and one in full:
            raise ValueError(f"hyper holds both {name} and {one}; give one of them")
    if optimizer == "rmsprop":
        if "beta2" not in full:
            full.setdefault("alpha", _ALPHA)
    elif "beta1" in full or "beta2" in full:
        full.setdefault("beta1", _BETA1)
        full.setdefault("beta2", _BETA2)
    else:
        full.setdefault("betas", (_BETA1, _BETA2))
    full.setdefault("eps", _EPS)
    if optimizer == "adamw":
        full.setdefault("weight_decay", _ADAMW_DECAY)
    return full


def _checked(hyper: dict[str, Any]) -> dict[str, Any]:
    """The same with every value as a number in its range."""
    checks: dict[str, Callable[[str, Any], Any]] = {
        "lr": positive,
        "weight_decay": lambda _, value: decay_rate(value),
        "eps": _nonnegative,
        "betas": _pair,
        "beta1": coefficient,
        "beta2": _share,
        "alpha": _share,
        "momentum": coefficient,
        "steps": _steps,
        "warmup_steps": _steps,
        "milestones": _milestones,
    }
    return {name: checks[name](name, value) for name, value in hyper.items()}


def _steps(name: str, value: int) -> int:
    return count(name, value, least=0)


def _milestones(name: str, value: Sequence[int]) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a sequence of step numbers, got {value!r}")
    return tuple(_steps(name, step) for step in value)


def _share(name: str, value: float) -> float:
    return coefficient(name, positive(name, value))


def _nonnegative(name: str, value: float) -> float:
    value = number(name, value)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    return float(value)


def _pair(name: str, betas: Sequence[float]) -> tuple[float, float]:
    if not (isinstance(betas, Sequence) and len(betas) == 2):
        raise ValueError(f"{name} must be two numbers, got {betas!r}")
    return coefficient(f"{name}[0]", betas[0]), _share(f"{name}[1]", betas[1])


# ---- the rules


def _change(name: str, value: Any, factor: float, *, linear: bool, decoupled: bool) -> Change:
    root = math.sqrt(factor)
    if name == "lr" and linear:
        return Change(
            name, value, value * factor, "lr' = k lr", "keeps lr / batch, the noise per unit time"
        )
    if name == "lr":
        return Change(
            name, value, value * root, "lr' = sqrt(k) lr", "keeps lr^2 steps, the time of a run"
        )
    if name == "momentum":
        reason = "lr / (1 - momentum) grows by k as it stands"
        return Change(name, value, value, "momentum' = momentum", reason)
    if name == "weight_decay" and decoupled:
        reason = "keeps lr x weight_decay x steps, the decay over a run"
        return Change(name, value, value * root, "weight_decay' = sqrt(k) weight_decay", reason)
    if name == "weight_decay":
        reason = "coupled decay is a part of the loss"
        return Change(name, value, value, "weight_decay' = weight_decay", reason)
    if name == "eps":
        reason = "falls with the noise that it is added to"
        return Change(name, value, value / root, "eps' = eps / sqrt(k)", reason)
    if name in _STEPS:
        new = _each(lambda step: _fewer(step, factor), value)
        return Change(name, value, new, f"{name}' = {name} / k", "the same samples are seen")
    new = _each(lambda beta: _quicker(beta, factor), value)
    reason = "averages over the same samples"
    return Change(name, value, new, "1 - beta' = k (1 - beta)", reason)


def _quicker(beta: float, factor: float) -> float:
    """The average over 1 / k as many steps; where there is none (beta = 0) there is none after."""
    return 1 - factor * (1 - beta) if beta else beta


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


def _fewer(steps: int, factor: float) -> int:
    return max(round(steps / factor), 1) if steps else 0


def _check_averages(name: str, value: Any, factor: float, old_batch: int) -> None:
    kept = [beta for beta in (value if isinstance(value, tuple) else (value,)) if beta]
    least = min(kept, default=1.0)
    if factor * (1 - least) > 1 - 1e-12:  # 10 x (1 - 0.9) is below one by rounding
        limit = 1 / (1 - least)
        raise ValueError(
            f"to_batch: {name} = {_shown(value)} cannot follow a batch {factor:.6g} times as "
            f"large, as k (1 - beta) must stay below 1; the largest k is just under {limit:.6g}, "
            f"a total batch of {math.ceil(limit * old_batch - 1e-9) - 1}"
        )


def _check_decay(lr: float, weight_decay: float, factor: float, old_batch: int) -> None:
    product = step_decay(lr, weight_decay)
    if product * factor >= 1:
        limit = 1 / product
        raise ValueError(
            f"to_batch: lr x weight_decay would be {product * factor:.4g}, and at 1 a step wipes "
            f"the weights out; the largest k is just under {limit:.6g}, a total batch of "
            f"{math.ceil(limit * old_batch - 1e-9) - 1}"
        )


# ---- where the rules end


def _noise_warnings(noise_scale: float, old_batch: int, new_batch: int) -> list[str]:
    found = []
    square = _CLOSENESS**2
    small, large = sorted((old_batch, new_batch))
    most = largest_batch(small, noise_scale)
    if large > most:
        # (k G + N) / (G + N), with N/G = noise_scale / batch
        ratio = (large + noise_scale) / (small + noise_scale)
        found.append(
            f"signal-dominated: mean squared gradients at batches {small} and {large} differ by a "
            f"factor {ratio:.3g} from what the rule keeps, more than {square:.3g}; with noise "
            f"scale {noise_scale:.4g} a batch of {small} scales to at most {most:.5g}"
        )
    if noise_scale / large < 1 / (square - 1):
        found.append(
            f"noise is no longer the larger part of a gradient at batch {large}: N/G = "
            f"{noise_scale / large:.3g} is below 1, so no stochastic differential equation "
            "describes that run"
        )
    return found


def _curvature_warnings(product: float, new: Mapping[str, Any], *, linear: bool) -> list[str]:
    """What new lr x sharpness says; P^-1 grows by sqrt(k), so adaptive steps too grow by k."""
    if linear:
        limit = 2 * (1 + new.get("momentum", 0.0))
    else:
        beta1 = new["betas"][0] if "betas" in new else new.get("beta1", 0.0)
        limit = 2 * (1 + beta1) / (1 - beta1)
    if product >= limit:
        return [
            f"curvature-dominated: lr x sharpness would be {product:.3g}, at or beyond the edge of "
            f"stability at {limit:.3g}; the run will leave the path, or diverge"
        ]
    if product >= limit / 2:
        return [
            f"curvature-dominated: lr x sharpness would be {product:.3g} of at most {limit:.3g}; "
            "steps of that size are not a small step of any equation"
        ]
    return []


_ASSUMPTIONS = (
    "the loss of a batch is the mean over its samples",
    "samples are drawn independently, so that gradient noise has covariance Sigma / batch",
    "lr times sharpness is small enough that steps follow their differential equation",
    "the forward pass does not depend on the batch: batch norm keeps its batch (ghost batches)",
    "the same number of samples is seen",
)
_ADAPTIVE_ASSUMPTIONS = (
    "noise dominates the squared gradients that the method averages (N/G well above 1)",
    "eps is added outside the root, after bias correction, as in PyTorch",
    "steps are counted past the first 1 / (1 - beta) of them, where bias corrections differ",
)


def _shown(value: Value) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(_shown(one) for one in value) + ")"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
