"""What a measure was given, checked before anything is run: an objective or a model."""

from __future__ import annotations

from torch import nn

from undertow.objective import Objective


def check_objective(given: object, name: str = "objective") -> None:
    """Refuse what is no objective.

    Raises:
        TypeError: with what would do.
    """
    if not isinstance(given, Objective):
        made = "; make one of it: Objective(model, loss, data)" * isinstance(given, nn.Module)
        raise TypeError(f"{name} must be an undertow.Objective, got {type(given).__name__}{made}")


def check_model(given: object, name: str = "model") -> None:
    """Refuse what is no module.

    Raises:
        TypeError: with what would do.
    """
    if not isinstance(given, nn.Module):
        its = "; its model is objective.model" * isinstance(given, Objective)
        raise TypeError(f"{name} must be an nn.Module, got {type(given).__name__}{its}")
