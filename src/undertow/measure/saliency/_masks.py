"""How masks are written down and what they are charged for: 2211.02912's certificates.

Coarse cells hold shares of K + 1 masks, the last of which hides; they are upsampled bilinearly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn import functional

from undertow.objective import whole_number

Fit = Literal["log probability", "double softmax"]


@dataclass(frozen=True)
class Shape:
    """The masks of an input.

    Attributes:
        spatial: of the mask, `(height, width)` or `(tokens,)`.
        upsample: side of a cell, in pixels or tokens.
        certificates: how many masks share the input between them.
    """

    spatial: tuple[int, ...]
    upsample: int
    certificates: int

    @property
    def cells(self) -> tuple[int, ...]:
        """The coarse grid; the cells at its end may hang over."""
        return tuple(math.ceil(side / self.upsample) for side in self.spatial)

    def start(
        self, restart: int, generator: torch.Generator
    ) -> Float[Tensor, " certificates *cells"]:
        """Where descent starts: at equal shares, or at random ones.

        The first of one certificate starts at 0 as the paper's does; several would stay alike.
        """
        drawn = torch.randn(self.certificates, *self.cells, generator=generator)
        return drawn if restart or self.certificates > 1 else torch.zeros_like(drawn)

    def masks(
        self, weights: Float[Tensor, "lanes certificates *cells"]
    ) -> Float[Tensor, "lanes certificates *spatial"]:
        """Disjoint masks: with those that hide they add up to one at each pixel."""
        shares = torch.cat([weights, torch.zeros_like(weights[:, :1])], 1).softmax(1)[:, :-1]
        if self.upsample == 1:
            return shares
        mode = "bilinear" if len(self.spatial) == 2 else "linear"
        return functional.interpolate(shares, self.spatial, mode=mode, align_corners=False)


@dataclass(frozen=True)
class Price:
    """What a mask costs, in nats.

    Attributes:
        sparsity: of keeping the whole input; a mask costs as much of it as the share it keeps.
        total_variation: times the sum of the squared differences of neighbours.
    """

    sparsity: float
    total_variation: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, got {type(value).__name__}")
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value}")

    def of(
        self, masks: Float[Tensor, "lanes certificates *spatial"]
    ) -> Float[Tensor, "lanes certificates"]:
        """What each mask costs."""
        axes = tuple(range(2, masks.ndim))
        cost = self.sparsity * masks.mean(axes)
        if self.total_variation:
            for axis in axes:
                cost = cost + self.total_variation * masks.diff(dim=axis).square().sum(axes)
        return cost


def fits(
    log_probabilities: Float[Tensor, "lanes certificates draws classes"],
    labels: Int64[Tensor, " lanes"],
    fit: Fit,
) -> Float[Tensor, "lanes certificates"]:
    """How far masked inputs are from their label, over the drawn backgrounds.

    `log probability` is the mean of -log f. `double softmax` is what the published code minimises:
    it hands probabilities to a loss that takes a softmax, so that it lies between log(1 + (C - 1) /
    e) and log(e + C - 1) and its gradient vanishes where f is small.
    """
    chosen = labels.view(-1, 1, 1).expand(-1, log_probabilities.shape[1], 1)
    if fit == "log probability":
        return -log_probabilities.mean(2).gather(2, chosen)[..., 0]
    mean = log_probabilities.exp().mean(2)
    return -mean.log_softmax(2).gather(2, chosen)[..., 0]


def shape_of(spatial: tuple[int, ...], upsample: int, certificates: int) -> Shape:
    """The masks of inputs of such a shape.

    Raises:
        TypeError, ValueError: no whole number, below 1, or cells larger than the input.
    """
    upsample = whole_number("upsample", upsample)
    if upsample > min(spatial):
        raise ValueError(
            f"upsample must be at most the input's side {min(spatial)}, got {upsample}"
        )
    return Shape(spatial, upsample, whole_number("certificates", certificates))


def check_fit(fit: str) -> None:
    """Refuse an objective that is not known.

    Raises:
        ValueError: with those that are.
    """
    if fit not in get_args(Fit):
        raise ValueError(f"fit must be {' or '.join(get_args(Fit))}, got {fit!r}")


Weights = Float64[Tensor, "lanes certificates *cells"]
