"""How far back weights remember, by optimizer, and what that says of a run.

A decay that takes lr x weight_decay of the weights at every step makes them an average over the
last 1 / (lr weight_decay) steps, which should cover the data and forget the start (2405.13698).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Decay:
    """What weight decay does under an optimizer.

    Attributes:
        family: of `predict.FAMILIES`.
        momentum: by which a coupled decay is amplified, 1 / (1 - momentum); else 0.
        notes: where lr x weight_decay is not what is taken of the weights.
    """

    family: str
    momentum: float
    notes: tuple[str, ...]

    @property
    def follows_gradients(self) -> bool:
        """Whether this is SGD, for which effective rate and equilibrium are known."""
        return self.family in ("sgd", "momentum")

    @property
    def known(self) -> bool:
        """Whether a step takes lr x weight_decay of the weights, so that E describes it."""
        kind = predict.FAMILIES[self.family]
        return kind.decay != "normalised" and self.family not in ("lamb", "unknown")

    @property
    def equation(self) -> str:
        """The memory in steps."""
        return ("(1 - momentum)" if self.momentum else "1") + " / (lr weight_decay)"


def decay_of(optimizer: str, momentum: float, weight_decay: float) -> Decay:
    """What E is under an optimizer; one that is not known is taken to decay decoupled.

    Raises:
        ValueError: a momentum that the optimizer does not have, or that it needs.
    """
    name = optimizer.strip().lower()
    notes: list[str] = []
    if name not in predict.FAMILIES:
        try:
            name = family(optimizer)
        except ValueError:
            name = "unknown"
    kind = predict.FAMILIES[name]
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
    if momentum and "betas" in kind.reads:
        raise ValueError(f"momentum is SGD's; {name} has betas, which E does not depend on")
    if name == "momentum" and not momentum:
        raise ValueError("momentum is needed for optimizer='momentum', such as 0.9; sgd has none")
    if weight_decay:
        if name == "unknown":
            notes.append(
                f"how {optimizer} decays weights is not known: it is taken to be decoupled, lr x "
                "weight_decay of the weights a step"
            )
        elif kind.decay == "normalised":
            notes.append(_NORMALISED.format(name=name))
        elif name in _NOTES:
            notes.append(_NOTES[name])
    coupled = name in ("sgd", "momentum")
    if momentum and not coupled and weight_decay:
        notes.append(
            f"momentum does not enter: only SGD's decay passes through it, and not {name}'s"
        )
    return Decay(name, momentum if coupled else 0.0, tuple(notes))


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
