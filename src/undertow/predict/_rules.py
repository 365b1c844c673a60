"""The scaling rules there are, side by side: equation, source, and where each holds.

They do not ask for the same thing. Some keep the path of a run (2102.12470, 2205.10287), some the
rate that a step gains most from (1812.06162, 2405.14578), some how long weights are remembered
(2405.13698, 2505.13738).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from undertow.predict._averages import largest_gradient, noise_left
from undertow.predict._families import Family
from undertow.predict._noise_scale import best_lr

RuleName = Literal[
    "linear", "square root", "fixed rate", "timescale", "noise scale", "surge", "batch warm-up"
]


@dataclass(frozen=True)
class ScalingRule:
    """What a rule says, and what it rests on.

    Attributes:
        name: as `predict.rescale` takes it.
        keeps: what it holds fixed.
        equation: of the rate, k being the new batch B' over the old one B, and N the noise scale.
        source: where it was derived or measured.
        range: where it holds.
    """

    name: str
    keeps: str
    equation: str
    source: str
    range: str


@dataclass(frozen=True)
class Alternative:
    """One rule's answer.

    Attributes:
        rule: what it says.
        equation: of the rate, for this optimizer: `s` is the size that its averages leave of a
            gradient's noise.
        lr: the new rate; None where the rule leaves it open, or `needs` something.
        weight_decay: the new weight decay; None where there is none, or it is open.
        chosen: whether this is the rule that was followed.
        needs: what the rule waits for, if anything: a noise scale that is not given, or one that
            is reached later.
    """

    rule: ScalingRule
    equation: str
    lr: float | None
    weight_decay: float | None
    chosen: bool = False
    needs: str = ""


_RULES = (
    ScalingRule(
        "linear",
        "the path of a run",
        "lr' = k lr",
        "2102.12470; 1706.02677",
        "SGD while noise outweighs signal and steps are small against curvature. For Adam it is no "
        "rule: 4 to 20 times farther off the path than the square root in the claim adaptive-sde",
    ),
    ScalingRule(
        "square root",
        "the path of a run",
        "lr' = sqrt(k) lr",
        "2205.10287",
        "updates of one size whatever the gradient's (Adam's, signs) while noise outweighs signal. "
        "For SGD it keeps the spread of one step (1404.5997), and the path slows by sqrt(k)",
    ),
    ScalingRule(
        "fixed rate",
        "the rate, and how long weights are remembered",
        "lr' = lr, decay' = k decay",
        "2505.13738",
        "AdamW near its best batch in pre-training, betas left alone there: best weight decays "
        "were found in proportion to the batch. The path is another: fewer steps of one size",
    ),
    ScalingRule(
        "timescale",
        "lr x weight_decay x steps, how long weights are remembered",
        "lr' decay' = k lr decay",
        "2405.13698; 2505.13738",
        "decoupled decay: B / (lr weight_decay D) of the D samples of a run. It says the product "
        "alone; the rate is that of the family's own rule",
    ),
    ScalingRule(
        "noise scale",
        "the rate that a step gains most from",
        "lr' = k lr (N + B) / (N + B')",
        "1812.06162",
        "SGD whose rate is the best one now. Linear far below N, level above",
    ),
    ScalingRule(
        "surge",
        "the rate that a step gains most from",
        "lr' = sqrt(k) lr (N + B) / (N + B')",
        "2405.14578",
        "signs, and Adam so far as it is one, whose rate is the best one now. The square root far "
        "below N; above it the best rate falls again, where curvature couples parameters",
    ),
    ScalingRule(
        "batch warm-up",
        "noise over signal",
        "B' grows with N",
        "1812.06162; 1711.00489",
        "runs whose noise scale grows as the loss falls: the old batch first, and the new one when "
        "the noise scale has come up to it",
    ),
)
RULES: Mapping[str, ScalingRule] = {rule.name: rule for rule in _RULES}
"""Every rule by its name."""


def rule_name(given: str) -> str:
    """A rule's name from a spelling of it: `square-root`, `sqrt`, `fixed_rate`.

    Raises:
        TypeError: it is no text.
        ValueError: there is no such rule.
    """
    if not isinstance(given, str):
        raise TypeError(f"rule must be a name, got {given!r}")
    plain = given.strip().lower().replace("-", " ").replace("_", " ")
    plain = {"sqrt": "square root", "root": "square root", "batch warm up": "batch warm-up"}.get(
        plain, plain
    )
    if plain not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {given!r}")
    return plain


def rules_for(family: Family, *, decoupled: bool) -> list[str]:
    """The rules that say something about a family, its own first; `batch warm-up` for all."""
    if family.update is None:
        return ["timescale", "batch warm-up"]
    if family.update == "gradient":
        own = ["linear", "square root", "noise scale"]
    else:
        own = ["square root", "linear", "surge"]
    decay = ["fixed rate", "timescale"] if decoupled else []
    return [*own, *decay, "batch warm-up"]


def rate(
    name: str,
    family: Family,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    batches: tuple[int, int],
    noise_scale: float | None,
) -> float | None:
    """The new learning rate under a rule; None where the rule leaves it open.

    Args:
        name: of the rule.
        family: of the optimizer.
        old: its hyperparameters, and `new` with the averages that it will have.
        new: see `old`.
        batches: the old one and the new one.
        noise_scale: in samples, for the rules that need it.
    """
    lr, factor = float(old["lr"]), batches[1] / batches[0]
    if name == "timescale":
        name = family.rule or "none"
    if name == "linear":
        return lr * factor
    if name == "fixed rate":
        return lr
    if name == "square root":
        return lr * root(family, old, new, factor)
    if noise_scale is None or name not in ("noise scale", "surge"):
        return None
    update: Literal["gradient", "sign"] = "sign" if name == "surge" else "gradient"
    before, after = (best_lr(batch, noise_scale, update=update) for batch in batches)
    if name == "surge":  # far below the noise scale it is the square root, averages and all
        lr *= root(family, old, new, factor) / math.sqrt(factor)
    return lr * after / before


def equation_of(
    name: str, family: Family, old: Mapping[str, Any], new: Mapping[str, Any], factor: float
) -> str:
    """The equation of a rate, with what the averages have to do with it where they have."""
    equation = RULES[name].equation
    if name not in ("square root", "surge") or math.isclose(
        root(family, old, new, factor), math.sqrt(factor)
    ):
        return equation
    return equation.replace("sqrt(k) lr", "sqrt(k) (s' / s) lr")


def root(family: Family, old: Mapping[str, Any], new: Mapping[str, Any], factor: float) -> float:
    """What keeps the path of an update that does not grow with the gradient.

    With U the size that a gradient is divided by, drift and noise per sample both stay where
    lr' / U' = k lr / U. A mean square has U the noise's, so U' = U / sqrt(k) and lr' = sqrt(k) lr.
    The largest gradient that Adamax remembers falls by a little more, as fewer are remembered. An
    update of one size is divided by what its averages leave of the noise (`noise_left`), which
    grows where they remember fewer steps.
    """
    size = 1.0
    if family.name == "adamax":
        size = largest_gradient(_second(new)) / largest_gradient(_second(old))
    elif family.update == "direction":
        size = noise_left(family.name, new) / noise_left(family.name, old)
    return math.sqrt(factor) * size


def _second(hyper: Mapping[str, Any]) -> float:
    return float(hyper["betas"][1] if "betas" in hyper else hyper["beta2"])
