"""One network and its inputs, ready for attributions to be found and scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from undertow.measure.saliency._attributions import (
    Asked,
    Channels,
    Method,
    check_channels,
    is_bound,
    maps_of,
)
from undertow.measure.saliency._backgrounds import Background, backgrounds
from undertow.measure.saliency._classifier import Classifier
from undertow.measure.saliency._curves import Scoring, budgets_of, curves, orders_of
from undertow.measure.saliency._labels import labels_of
from undertow.measure.saliency._memory import MEMORY
from undertow.objective import whole_number

Models = nn.Module | Sequence[nn.Module]


@dataclass(frozen=True, eq=False)
class Settings:
    """How maps are found and scored, whatever the network; `evaluate` says what each is."""

    labels: Any = None
    floor: float = 0.1
    background: Background = "mean"
    data: Tensor | None = None
    budgets: int | Sequence[float] = 28
    channels: Channels = "sum"
    draws: int = 8
    embedding: nn.Module | None = None
    memory: int = MEMORY

    def __post_init__(self) -> None:
        check_channels(self.channels)
        if isinstance(self.floor, bool) or not isinstance(self.floor, int | float):
            raise TypeError(f"floor must be a number, got {type(self.floor).__name__}")
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor must lie above 0 and at most at 1, got {self.floor}")
        for name in ("draws", "memory"):
            whole_number(name, getattr(self, name))


class Bench:
    """A network, its inputs and the labels that are scored.

    Args:
        model: the network.
        inputs: of it.
        settings: how maps are scored.
        generator: draws backgrounds, orders of equal values, and the seed of what methods draw.
    """

    def __init__(
        self, model: nn.Module, inputs: Tensor, settings: Settings, generator: torch.Generator
    ) -> None:
        self.network = Classifier(
            model, inputs, embedding=settings.embedding, memory=settings.memory
        )
        self.labels: Int64[Tensor, "inputs labels"] = labels_of(self.network, settings.labels)
        filling = backgrounds(self.network, settings.background, settings.data)
        budgets = budgets_of(settings.budgets, self.network.spatial)
        self.scoring = Scoring(
            filling=filling,
            picks=filling.picks(1, settings.draws, generator)[0],
            budgets=budgets,
            orders=orders_of(budgets.pixels, settings.draws, generator),
            memory=settings.memory,
        )
        seed = int(torch.randint(2**31, (), generator=generator))
        self.asked = Asked(self.labels, settings.channels, settings.memory, seed)

    def maps(
        self, method: Method, name: str, tensors: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "inputs maps *spatial"]:
        """A method's maps, in this network or at other parameters and buffers of it."""
        return maps_of(self.network.beside(method, tensors), method, self.asked, name)

    def curves(
        self, maps: Float[Tensor, "inputs maps *spatial"]
    ) -> tuple[Float64[Tensor, "inputs labels budgets"], Bool[Tensor, "inputs labels"]]:
        """What maps keep of each label, and which of it is averaged over equal values."""
        return curves(self.network, maps, self.labels, self.scoring)

    def whole(self) -> Float64[Tensor, "inputs labels"]:
        """The probabilities of the whole inputs."""
        return self.network.whole.exp().gather(1, self.labels)


def networks_of(model: Models) -> list[nn.Module]:
    """One or several.

    Raises:
        TypeError, ValueError: none at all, or one of them twice.
    """
    if isinstance(model, nn.Module):
        return [model]
    if not isinstance(model, Sequence) or not all(isinstance(one, nn.Module) for one in model):
        kind = type(model).__name__
        raise TypeError(f"model must be an nn.Module, or several in a list, got {kind}")
    if not model or len({id(one) for one in model}) < len(model):
        raise ValueError("model must name at least one network, and each of them once")
    return list(model)


def check_bound(name: str, method: Method, networks: Sequence[nn.Module]) -> None:
    """Refuse the attributions of one network for several.

    Raises:
        ValueError: with what would do.
    """
    if len(networks) > 1 and is_bound(method):
        raise ValueError(
            f"{name} must be found in each of {len(networks)} networks: give a function of (model, "
            "inputs, labels) or a Captum class, not what is of one network"
        )
