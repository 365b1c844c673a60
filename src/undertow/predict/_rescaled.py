"""What a scaling rule found: every hyperparameter before and after, and the rules beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from undertow.predict._rules import Alternative

Value = float | int | bool | tuple[float, ...] | None


@dataclass(frozen=True)
class Change:
    """One hyperparameter before and after, the equation that moved it, and why it must move.

    `new` is None where no rule is known for it.
    """

    name: str
    old: Value
    new: Value
    equation: str
    reason: str

    def __repr__(self) -> str:
        return (
            f"{self.name} {shown(self.old)} -> {shown(self.new)} ({self.equation}): {self.reason}"
        )


@dataclass(frozen=True)
class Rescaled:
    """Hyperparameters for another batch size, with what they rest on.

    Attributes:
        hyper: the new values, under the names that were given (and those PyTorch would default);
            None for a learning rate that no rule is known for, and for a decay that depends on it.
        factor: k, the new total batch over the old one.
        rule: `linear`, `square root`, or the name of the rule that was asked for.
        changes: one entry for each hyperparameter, those that stay included.
        assumptions: what must hold for the two runs to agree.
        warnings: where the given noise scale or sharpness says that they will not, and averages
            over so few steps that they are none.
        alternatives: the rules that say something of this optimizer, side by side.
        averages: of each decay of an average, what each of `betas` would make of it; None where
            that has no answer.
        betas: which of them was taken.
    """

    hyper: Mapping[str, Value]
    factor: float
    rule: str
    changes: tuple[Change, ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]
    alternatives: tuple[Alternative, ...] = ()
    averages: Mapping[str, Mapping[str, Value]] | None = None
    betas: str = "half-life"

    @property
    def disagreement(self) -> str:
        """By how much the rules differ in the rate, and what would decide; empty where there is
        one only.
        """
        rates = {one.rule.name: one.lr for one in self.alternatives if one.lr is not None}
        if len(rates) < 2 or self.factor == 1:
            return ""
        low, high = (pick(rates, key=lambda name: rates[name]) for pick in (min, max))
        said = (
            f"The rates lie between {rates[low]:.4g} ({low}) and {rates[high]:.4g} ({high}), a "
            f"factor {rates[high] / rates[low]:.3g}."
        )
        if {"linear", "square root"} <= set(rates):
            said += (
                " Which of linear and square root keeps the path of this job, short runs at both "
                "batch sizes decide: --verify, with each as --rule."
            )
        if len(rates) > 2:
            said += (
                " The others ask for the best rate, or the same memory of the weights; that the "
                "loss at the end of whole runs decides."
            )
        return said

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {shown(value)}" for name, value in self.hyper.items())
        count = len(self.warnings)
        caution = f" {count} warning{'s' if count > 1 else ''}." if count else ""
        return f"Batch x {self.factor:.6g} by the {self.rule} rule: {values}.{caution}"


def shown(value: Value) -> str:
    """A value as it is printed."""
    if isinstance(value, tuple):
        return "(" + ", ".join(shown(one) for one in value) + ")"
    if value is None:
        return "open"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
