"""Families of optimizers, and what each makes of a batch k times as large.

What decides is how an update depends on the size of the gradient: as SGD's it grows with it, as
Adam's it is divided by the noise, as Lion's it has one size, whatever the averages leave of the
noise. Where noise dominates, each has one rate that leaves drift and diffusion per sample alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Optimizer = Literal[
    "sgd",
    "momentum",
    "rmsprop",
    "adam",
    "adamw",
    "nadam",
    "radam",
    "adamax",
    "adafactor",
    "lamb",
    "lion",
    "muon",
    "sign",
    "schedulefree-sgd",
    "schedulefree-adamw",
    "unknown",
]
Update = Literal["gradient", "over noise", "direction"]
Decay = Literal["coupled", "normalised", "decoupled"]

STEPS = ("steps", "warmup_steps", "milestones")
_BETAS = ("betas", "beta1", "beta2")
_ADAM: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8}


@dataclass(frozen=True)
class Family:
    """What the rules must know of an optimizer.

    Attributes:
        name: as `predict.rescale` takes it.
        update: what an update is made of: the `gradient`; the gradient `over noise`, a running
            size of gradients; or a `direction`, of one size whatever the gradient's. None where it
            is not known.
        decay: `coupled` (a part of the loss), `normalised` (added to the gradient and divided by
            its size), or `decoupled` (lr x weight_decay of the weights a step).
        reads: the hyperparameters that it has.
        averages: those of them that are decays of averages over steps.
        defaults: what a hyperparameter is where it is not given, if not zero.
        reason: why the rate moves as it does, or what stands in the way of a rule.
    """

    name: str
    update: Update | None
    decay: Decay
    reads: tuple[str, ...]
    averages: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def rule(self) -> str | None:
        """The name of the rule that keeps its path; None where none is known."""
        return None if self.update is None else RULE_OF[self.update]


RULE_OF: Mapping[Update, str] = MappingProxyType(
    {"gradient": "linear", "over noise": "square root", "direction": "square root"}
)


def _adam_like(name: str, decay: Decay, *, reason: str, **more: Any) -> Family:
    """Two running averages, and an update of the first over the root of the second."""
    flag = () if decay == "decoupled" else ("decoupled_weight_decay",)
    reads = ("lr", *_BETAS, "eps", *more, "weight_decay", *flag, *STEPS)
    return Family(name, "over noise", decay, reads, _BETAS, _ADAM | more, reason)


_GRADIENT = "keeps lr / batch, the noise per unit time"
_OVER_NOISE = "keeps lr^2 steps, the time of a run"
_DIRECTION = "keeps lr sqrt(steps) over the noise that its averages leave"

_ALL = (
    Family(
        "sgd", "gradient", "coupled", ("lr", "momentum", "weight_decay", *STEPS), reason=_GRADIENT
    ),
    Family(
        "momentum",
        "gradient",
        "coupled",
        ("lr", "momentum", "weight_decay", *STEPS),
        reason=_GRADIENT,
    ),
    Family(
        "rmsprop",
        "over noise",
        "normalised",
        ("lr", "alpha", "beta2", "eps", "weight_decay", *STEPS),
        ("alpha", "beta2"),
        {"alpha": 0.99, "eps": 1e-8},
        _OVER_NOISE,
    ),
    _adam_like("adam", "normalised", reason=_OVER_NOISE),
    Family(
        "adamw",
        "over noise",
        "decoupled",
        ("lr", *_BETAS, "eps", "weight_decay", *STEPS),
        _BETAS,
        _ADAM | {"weight_decay": 1e-2},
        _OVER_NOISE,
    ),
    # The gradient that Nesterov's form adds to the mean moves the weights as the mean does, and
    # its noise is one step's: Adam's equation. The schedule of its momentum counts steps.
    _adam_like("nadam", "normalised", reason=_OVER_NOISE, momentum_decay=4e-3),
    # The rectification is a function of steps x (1 - beta2), which stays; its first five steps,
    # without a denominator, are five at any batch size.
    _adam_like("radam", "normalised", reason=_OVER_NOISE),
    # Divided by the largest |gradient| that the second average remembers: as the noise falls, and
    # with fewer steps remembered.
    Family(
        "adamax",
        "over noise",
        "normalised",
        ("lr", *_BETAS, "eps", "weight_decay", *STEPS),
        _BETAS,
        _ADAM,
        "keeps lr steps over the largest |gradient| remembered",
    ),
    # Factored, the mean square is still the noise's; 1 - beta2 = t^-0.8 follows k^0.2 by itself,
    # and the clipped size of an update does not depend on the batch.
    Family(
        "adafactor",
        "over noise",
        "decoupled",
        ("lr", "beta1", "weight_decay", *STEPS),
        ("beta1",),
        {},
        "keeps lr^2 steps, the time of a run, where lr is given and not relative",
    ),
    Family(
        "lamb",
        "direction",
        "decoupled",
        ("lr", *_BETAS, "eps", "weight_decay", *STEPS),
        _BETAS,
        {"betas": (0.9, 0.999), "eps": 1e-6},
        _DIRECTION,
    ),
    Family(
        "lion",
        "direction",
        "decoupled",
        ("lr", *_BETAS, "weight_decay", *STEPS),
        _BETAS,
        {"betas": (0.9, 0.99)},
        _DIRECTION,
    ),
    Family(
        "muon",
        "direction",
        "decoupled",
        ("lr", "momentum", "nesterov", "eps", "weight_decay", *STEPS),
        ("momentum",),
        {"momentum": 0.95, "nesterov": True, "weight_decay": 0.1},
        _DIRECTION,
    ),
    Family(
        "sign",
        "direction",
        "decoupled",
        ("lr", "momentum", "weight_decay", *STEPS),
        ("momentum",),
        {},
        _DIRECTION,
    ),
    # The weights that are kept are an average over the whole run, whose weights count shares of
    # it; beta1 and momentum say how far the gradient's place lies between two sequences.
    Family(
        "schedulefree-sgd",
        "gradient",
        "coupled",
        ("lr", "momentum", "weight_decay", *STEPS),
        (),
        {"momentum": 0.9},
        _GRADIENT,
    ),
    Family(
        "schedulefree-adamw",
        "over noise",
        "decoupled",
        ("lr", *_BETAS, "eps", "weight_decay", *STEPS),
        ("beta2",),
        _ADAM,
        _OVER_NOISE,
    ),
    Family(
        "unknown",
        None,
        "decoupled",
        ("lr", "weight_decay", *STEPS),
        reason="no rule is known for the rate: how its update depends on the noise is not known",
    ),
)
FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _ALL})
"""Every family by its name."""
