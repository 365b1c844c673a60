"""Hyperparameters for another batch size, so that training follows the same path in fewer steps.

Linear rule for SGD (2102.12470), square-root rule for RMSprop and Adam (2205.10287): both keep the
terms of the stochastic differential equation that the method approximates. Others on request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from undertow.predict._arguments import count, positive
from undertow.predict._averages import BETAS, REASONS, Betas, moved_average, noise_left
from undertow.predict._families import FAMILIES, STEPS, Family, Optimizer
from undertow.predict._hyperparameters import completed
from undertow.predict._limits import (
    assumptions,
    check_averages,
    check_decay,
    curvature_warnings,
    few_steps,
)
from undertow.predict._noise_scale import CLOSENESS, noise_warnings
from undertow.predict._rescaled import Change, Rescaled
from undertow.predict._rules import (
    RULES,
    Alternative,
    RuleName,
    equation_of,
    rate,
    rule_name,
    rules_for,
)

_PATH = ("linear", "square root")  # the rules that keep the path of a run, each of its own kind
_BORROWED = {
    "linear": "the rule of SGD",
    "square root": "keeps the spread of one step",
}


def rescale(
    hyper: Mapping[str, Any],
    *,
    from_batch: int,
    to_batch: int,
    optimizer: Optimizer,
    from_workers: int = 1,
    to_workers: int | None = None,
    rule: RuleName | str | None = None,
    betas: Betas = "half-life",
    noise_scale: float | None = None,
    sharpness: float | None = None,
) -> Rescaled:
    """Hyperparameters at `to_batch` that keep the training path of those at `from_batch`.

    With k = new / old total batch and the same number of samples seen:

    - SGD, with momentum or without, and its schedule-free form: lr' = k lr. Momentum and coupled
      decay stay. Step n is time n lr / (1 - momentum), gradient noise has covariance Sigma / B, and
      lr Sigma / B is what the equation dX = -grad L dt + sqrt(lr Sigma / B) dW holds fixed.
    - RMSprop, Adam, AdamW, NAdam, RAdam, Adafactor with a rate of its own, schedule-free AdamW:
      lr' = sqrt(k) lr, eps' = eps / sqrt(k). Time is n lr^2 there, and the root of the mean square
      is the noise, which falls by sqrt(k). Adamax divides by the largest gradient it remembers,
      which falls a little faster.
    - Lion, Muon, LAMB and signs, whose update has one size: lr' = sqrt(k) (s' / s) lr, s what the
      averages leave of the noise (`s^2 = (1 - beta) / (1 + beta)` for one average).
    - averages keep their memory in samples: beta' = beta^k (`betas`).
    - weight decay: coupled decay (SGD, RMSprop, Adam) is a part of the loss and stays. Decoupled
      decay shrinks by lr x weight_decay in 1 / k as many steps: weight_decay' = k weight_decay lr /
      lr' keeps the product over a run, which is sqrt(k) weight_decay for AdamW.
    - counts of steps: divided by k, to the nearest whole number and at least 1 (0 stays 0).

    Scaling to a batch and back gives the same values, whole counts up to their rounding.

    For an `unknown` optimizer there is no rule for the rate: `lr` of the result is None, and its
    weight decay too; lr' weight_decay' = k lr weight_decay is what is known.

    Args:
        hyper: `lr`, and where they apply `momentum`, `betas` (or `beta1`, `beta2`), `alpha`
            (or `beta2`) of RMSprop, `eps` (outside the root, as PyTorch has it), `weight_decay`
            (PyTorch's), `steps`, `warmup_steps`, `milestones`; see `predict.FAMILIES`. What is
            absent and has a default other than zero in PyTorch is taken at that default, and
            appears in the result.
        from_batch: samples a step on one worker, before.
        to_batch: the same, after.
        optimizer: a family of `predict.FAMILIES`.
        from_workers: data-parallel workers before; total batch = workers x batch.
        to_workers: and after; by default as many.
        rule: another rule of `predict.RULES` for the rate; by default the optimizer's own.
        betas: what becomes of averages: `half-life`, beta' = beta^k (2507.07101); `sde`, 1 - beta'
            = k (1 - beta) (2205.10287), which agrees to first order and ends at k = 1 / (1 - beta);
            or `keep`. In the claim `adaptive-sde` the first two cannot be told apart at any k, and
            keeping is from 0.7 times (a short memory, k = 4) to 13 times as far off.
        noise_scale: B_simple = tr Sigma / ||grad L||^2 in samples, as `measure.gradient_noise`
            gives it at the old settings; the noise-to-signal ratio N/G at batch B is its B-th part.
        sharpness: largest eigenvalue of the Hessian at the old settings; of the preconditioned
            Hessian P^-1 H, P = diag(sqrt(v) + eps), for adaptive methods.

    Raises:
        TypeError: a count that is no whole number.
        ValueError: a name or value that the optimizer does not read, a rule that says nothing of
            it, or a k beyond the rule's range (1 - k (1 - beta) <= 0 with betas="sde", or lr' x
            weight_decay' >= 1); the message gives the largest k that is allowed.

    Sources: 2102.12470 (linear rule, closeness), 2205.10287 (square-root rule), 2507.07101
    (half-lives). The decay rules, and the rates of Adamax and of updates of one size, are derived
    from drift and noise per sample, as above.
    """
    if optimizer not in FAMILIES:
        raise ValueError(f"optimizer must be one of {', '.join(FAMILIES)}, got {optimizer!r}")
    if betas not in BETAS:
        raise ValueError(f"betas must be one of {', '.join(BETAS)}, got {betas!r}")
    if to_workers is None:
        to_workers = from_workers
    batches = (
        count("from_batch", from_batch) * count("from_workers", from_workers),
        count("to_batch", to_batch) * count("to_workers", to_workers),
    )
    noise = None if noise_scale is None else positive("noise_scale", noise_scale)
    family, factor = FAMILIES[optimizer], batches[1] / batches[0]
    old = completed(hyper, family)
    decoupled = family.decay == "decoupled" or bool(old.get("decoupled_weight_decay"))
    name = _chosen(rule, family, decoupled, noise, batches)
    averages = _averages(family, old, factor)
    moved = old | {key: own[betas] for key, own in averages.items()}
    check_averages(old, averages, betas, batches, family)

    def answer(which: str) -> Alternative:
        lr = rate(which, family, old, moved, batches, noise)
        decay = _decay(family, old, moved, lr, factor, decoupled)
        equation = equation_of(which, family, old, moved, factor)
        needs = _needs(which, noise, batches)
        return Alternative(RULES[which], equation, lr, decay, which == name, needs)

    chosen = answer(name)
    lr, decay = chosen.lr, chosen.weight_decay
    moved |= {"lr": lr} | ({"weight_decay": decay} if "weight_decay" in old else {})
    if decoupled or family.update == "gradient":  # elsewhere decay is normalised by the gradient
        check_decay(old, moved, batches)
    alternatives = [answer(each) for each in rules_for(family, decoupled=decoupled)]
    changes = [_change(key, old, moved, factor, family, name, betas) for key in old]
    values = {change.name: change.new for change in changes}
    warnings = few_steps(old, averages, betas, factor)
    if noise is not None and name in _PATH:
        warnings += noise_warnings(noise, *batches)
    if sharpness is not None and lr is not None:
        warnings += curvature_warnings(positive("sharpness", sharpness), values, family, factor)
    return Rescaled(
        values,
        factor,
        name,
        tuple(changes),
        assumptions(family),
        tuple(warnings),
        tuple(alternatives),
        averages,
        betas,
    )


# ---- what each hyperparameter becomes


def _chosen(
    rule: str | None,
    family: Family,
    decoupled: bool,
    noise: float | None,
    batches: tuple[int, int],
) -> str:
    """The rule to follow.

    Raises:
        ValueError: it says nothing of this optimizer, or not without the noise scale.
    """
    if rule is None:
        return family.rule or "timescale"
    name = rule_name(rule)
    there = rules_for(family, decoupled=decoupled)
    there.remove("batch warm-up")
    if family.rule is None and name != "timescale":
        raise ValueError(f"rule {name!r}: for optimizer {family.name!r} {family.reason}")
    missing = _needs(name, noise, batches)
    if name == "batch warm-up":
        raise ValueError(
            f"rule 'batch warm-up' moves the batch in the course of a run, and no rate: rescale by "
            f"{there[0]!r} when there is {missing or 'any noise scale'}"
        )
    if name not in there:
        raise ValueError(
            f"rule {name!r} says nothing of {family.name}; there are {', '.join(there)}"
        )
    if missing:
        raise ValueError(f"rule {name!r} needs {missing}, in samples: gradient_noise measures it")
    return name


def _needs(name: str, noise: float | None, batches: tuple[int, int]) -> str:
    """What a rule waits for."""
    if name in ("noise scale", "surge"):
        return "noise_scale" if noise is None else ""
    if name != "batch warm-up":
        return ""
    # Where `largest_batch` has come up to the new one.
    least = batches[1] - CLOSENESS**2 * batches[0]
    return f"a noise scale of {least / (CLOSENESS**2 - 1):.5g} samples" if least > 0 else ""


def _averages(family: Family, old: Mapping[str, Any], factor: float) -> dict[str, dict[str, Any]]:
    """What each of `BETAS` makes of each decay of an average; None where one of its has none."""

    def moved(name: str, value: Any, mode: str) -> Any:
        if not isinstance(value, tuple):
            return moved_average(value, factor, mode)
        # The first of a schedule-free pair is no average.
        new = [
            moved_average(beta, factor, mode if f"beta{place}" in family.averages else "keep")
            for place, beta in enumerate(value, 1)
        ]
        return None if None in new else tuple(new)

    names = [name for name in old if name in family.averages or name == "betas"]
    return {name: {mode: moved(name, old[name], mode) for mode in BETAS} for name in names}


def _decay(
    family: Family,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    lr: float | None,
    factor: float,
    decoupled: bool,
) -> float | None:
    """The new weight decay, which for LAMB is divided by the size of its direction, too."""
    decay: float | None = old.get("weight_decay")
    if not decay or not decoupled:
        return decay
    if lr is None:
        return None
    if family.name == "lamb":
        factor *= noise_left("lamb", new) / noise_left("lamb", old)
    return factor * decay * float(old["lr"]) / lr


def _change(
    name: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    factor: float,
    family: Family,
    rule: str,
    betas: Betas,
) -> Change:
    value = old[name]
    if name == "lr":
        return Change(name, value, new["lr"], *_lr_words(old, new, factor, family, rule))
    if name == "weight_decay":
        return Change(name, value, new[name], *_decay_words(value, new[name], factor, family))
    if name == "eps":
        reason = "falls with the noise that it is added to"
        return Change(name, value, value / math.sqrt(factor), "eps' = eps / sqrt(k)", reason)
    if name in STEPS:
        fewer = _each(lambda step: max(round(step / factor), 1) if step else 0, value)
        return Change(name, value, fewer, f"{name}' = {name} / k", _seen(value, fewer, factor))
    if name == "momentum_decay":
        quicker = "momentum_decay' = k momentum_decay"
        return Change(name, value, factor * value, quicker, "its schedule counts samples")
    if name in family.averages or name == "betas":
        equation = BETAS[betas]
        if name in ("alpha", "momentum"):
            equation = equation.replace("beta", name)
        return Change(name, value, new[name], equation, REASONS[betas])
    reasons = {
        "momentum": "lr / (1 - momentum) grows by k as it stands",
        "beta1": "a place between two sequences, not an average",
    }
    if family.name == "schedulefree-sgd":
        reasons["momentum"] = reasons["beta1"]
    return Change(name, value, value, f"{name}' = {name}", reasons.get(name, "as it was"))


def _seen(old: Any, new: Any, factor: float) -> str:
    """What becomes of the samples, as steps are whole."""
    share = 1.0 if isinstance(old, tuple | list) or not old else new * factor / old
    if abs(share - 1) < 0.01:
        return "the same samples are seen"
    return f"steps are whole: {share:.3g} times as many samples are seen"


def _lr_words(
    old: Mapping[str, Any], new: Mapping[str, Any], factor: float, family: Family, rule: str
) -> tuple[str, str]:
    """The equation of the rate, and its reason."""
    if new["lr"] is None:
        return RULES[rule].equation, family.reason
    followed = family.rule if rule == "timescale" and family.rule else rule
    equation = equation_of(followed, family, old, new, factor)
    if followed != family.rule:
        return equation, _BORROWED.get(followed, f"keeps {RULES[followed].keeps}")
    return equation, family.reason


def _decay_words(old: Any, new: Any, factor: float, family: Family) -> tuple[str, str]:
    if new is None:
        return "weight_decay' = k weight_decay lr / lr'", "keeps lr x weight_decay x steps"
    if new == old:
        reason = "coupled decay is a part of the loss"
        if old and family.decay == "decoupled":
            reason = "keeps lr x weight_decay x steps, the decay over a run"
        return "weight_decay' = weight_decay", reason
    reason = "keeps lr x weight_decay x steps, the decay over a run"
    if math.isclose(new, old * math.sqrt(factor)):
        return "weight_decay' = sqrt(k) weight_decay", reason
    if math.isclose(new, old * factor):
        return "weight_decay' = k weight_decay", reason
    return "weight_decay' = k weight_decay lr / lr'", reason


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)
