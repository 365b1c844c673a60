"""How far back weights remember, by optimizer, and what that says of a run.

A decay that takes lr x weight_decay of the weights at every step makes them an average over the
last 1 / (lr weight_decay) steps, which should cover the data and forget the start (2405.13698).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from undertow import predict
from undertow.apply.rescaling import family

_NORMALISED = (
    "the coupled decay of {name} is divided by the gradient's size, so that it is not lr x "
    "weight_decay: E, the ranks and the memory are those of a decoupled decay of the same size"
)
_NOTES = {
    "lamb": "LAMB's decay is a part of the direction that it normalises: E, the ranks and the "
    "memory are those of a decay that takes lr x weight_decay of the weights",
    "schedulefree-sgd": "E is that of the fast weights; their average over the run, which is kept, "
    "forgets more slowly",
    "schedulefree-adamw": "E is that of the fast weights; their average over the run, which is "
    "kept, forgets more slowly",
}


_DECOUPLED = ("sgdw", "nadamw", "radamw")  # of families whose decay is coupled
_BY_SHARE = ("decoupledsgdw", "decoupledadamw", "decoupledlionw")  # of Composer
_SHARE = (
    "{name} takes weight_decay x lr / (its first lr) of the weights, and not lr x weight_decay: E, "
    "the ranks and the memory are those of a decay that does; give weight_decay / lr for its own"
)


@dataclass(frozen=True)
class Decay:
    """What weight decay does under an optimizer.

    Attributes:
        family: of `predict.FAMILIES`.
        momentum: by which a coupled decay is amplified, 1 / (1 - momentum); else 0.
        decoupled: whether a step takes lr x weight_decay of the weights.
        beta1: of AdamW, PyTorch's own where it is not known; None for the others.
        notes: where lr x weight_decay is not what is taken of the weights.
    """

    family: str
    momentum: float
    decoupled: bool
    beta1: float | None
    notes: tuple[str, ...]

    @property
    def follows_gradients(self) -> bool:
        """Whether this is SGD, whose effective rate is known."""
        return self.family in ("sgd", "momentum") and not self.decoupled

    @property
    def known(self) -> bool:
        """Whether a step takes lr x weight_decay of the weights, so that E describes it."""
        return self.decoupled or self.follows_gradients or self.family == "schedulefree-sgd"

    @property
    def equation(self) -> str:
        """The memory in steps."""
        return ("(1 - momentum)" if self.momentum else "1") + " / (lr weight_decay)"


def decay_of(
    optimizer: Any, momentum: float | None, weight_decay: float, moved: Any = None
) -> Decay:
    """What E is under an optimizer; one that is not known is taken to decay decoupled.

    Args:
        optimizer: its name, itself or its class; None for that which a scheduler moves, or SGD.
        momentum: of SGD; None for its own where there is one, or 0.
        weight_decay: whether there is any decides on the notes.
        moved: the optimizer that a scheduler moves.

    Raises:
        ValueError: a momentum that the optimizer does not have, or that it needs; or an optimizer
            that is not the one that the scheduler moves.
    """
    itself = optimizer if hasattr(optimizer, "param_groups") else moved
    named = _named(itself if optimizer is None else optimizer)
    name, decoupled = _family(named, itself)
    _check_moved(named, name, momentum, moved)
    kind = predict.FAMILIES[name]
    coupled = name in ("sgd", "momentum") and not decoupled
    own = float(itself.param_groups[0].get("momentum", 0.0)) if itself is not None else 0.0
    if momentum is None:
        momentum = own if coupled else 0.0
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
    if momentum and "betas" in kind.reads:
        raise ValueError(f"momentum is SGD's; {name} has betas, which E does not depend on")
    if name == "momentum" and not momentum:
        raise ValueError("momentum is needed for optimizer='momentum', such as 0.9; sgd has none")
    notes: list[str] = []
    if _letters(named) in _BY_SHARE:
        notes.append(_SHARE.format(name=named))
    elif name == "unknown":
        notes.append(
            f"how {named or 'it'} decays weights is not known: it is taken to be decoupled, lr x "
            "weight_decay of the weights a step"
        )
    elif kind.decay == "normalised" and not decoupled:
        notes.append(_NORMALISED.format(name=name))
    elif name in _NOTES:
        notes.append(_NOTES[name])
    if momentum and not coupled:
        notes.append(
            f"momentum does not enter: it does not amplify {name}'s decay, as it does SGD's"
        )
    given = itself.param_groups[0].get("weight_decay") if itself is not None else None
    if given is not None and not math.isclose(given, weight_decay):
        notes.append(f"the optimizer's own weight decay is {given:g}; {weight_decay:g} is taken")
    return Decay(
        name,
        momentum if coupled else 0.0,
        decoupled,
        _first_beta(itself) if _is_adamw(name, named, decoupled) else None,
        tuple(notes) if weight_decay else (),
    )


def _is_adamw(name: str, named: str, decoupled: bool) -> bool:
    """Whether the step is AdamW's own; Adam may be told to decay so."""
    return decoupled and (name == "adamw" or _letters(named) == "adam")


def _first_beta(itself: Any) -> float:
    own = itself.param_groups[0].get("betas") if itself is not None else None
    return 0.9 if own is None else float(own[0])


def _named(optimizer: Any) -> str:
    """The name of an optimizer, given as such, as itself or as its class."""
    if optimizer is None:
        return "sgd"
    if isinstance(optimizer, str):
        return optimizer.strip()
    if isinstance(optimizer, type):
        return optimizer.__name__
    rule = getattr(getattr(optimizer, "rule", None), "name", None)
    return str(rule or type(optimizer).__name__)


def _family(named: str, itself: Any) -> tuple[str, bool]:
    """The family of a name, and whether its decay takes lr x weight_decay of the weights."""
    name = named.lower()
    if _letters(named) in _BY_SHARE:
        return "unknown", False
    if name not in predict.FAMILIES:
        try:
            name = family(named)
        except ValueError:
            name = "unknown"
    decoupled = predict.FAMILIES[name].decay == "decoupled" and name not in ("lamb", "unknown")
    if itself is not None and itself.param_groups[0].get("decoupled_weight_decay"):
        decoupled = True
    if _letters(named) in _DECOUPLED:
        decoupled = True
    return name, decoupled


def _letters(name: str) -> str:
    """What is left of a name without modules, case and separators."""
    return re.sub(r"[^a-z0-9]", "", name.rpartition(".")[2].lower())


def _check_moved(named: str, name: str, momentum: float | None, moved: Any) -> None:
    """An optimizer that is named beside a scheduler must be the one that this moves."""
    if moved is None:
        return
    other, _ = _family(_named(moved), moved)
    kinds = ({"sgd", "momentum"}, {"adam", "adamw"})  # one class of PyTorch each
    if other not in (name, "unknown") and not any({name, other} <= kind for kind in kinds):
        raise ValueError(
            f"optimizer is {named!r}, and the scheduler moves {_named(moved)}: leave optimizer "
            "out, or make them agree"
        )
    own = moved.param_groups[0].get("momentum")
    if momentum is not None and own is not None and not math.isclose(momentum, own):
        raise ValueError(
            f"momentum is {momentum:g}, and that of the optimizer which the scheduler moves "
            f"{own:g}: leave momentum out, or make them agree"
        )


def judged(memory_steps: float, exponent: float, epoch_steps: float | None) -> str:
    """What a memory says of a run, in words.

    Args:
        memory_steps: at the peak rate.
        exponent: E over the run.
        epoch_steps: of one pass over the data; None where that is not known.
    """
    if math.isinf(memory_steps):
        return "the initial weights stay: there is no weight decay"
    left = math.exp(-exponent)
    short = epoch_steps is not None and memory_steps < epoch_steps
    if exponent < 1:
        said = f"longer than the run: {left:.0%} of the initial weights survive it"
        return f"{said}, though it is shorter than an epoch" if short else said
    if short and epoch_steps is not None:
        return (
            f"shorter than an epoch: the weights keep the last {memory_steps / epoch_steps:.2g} "
            "of the data, and not all of it"
        )
    if epoch_steps is None:
        return "shorter than the run: the initial weights are forgotten"
    return "between an epoch and the run: all data kept, the initial weights forgotten"
