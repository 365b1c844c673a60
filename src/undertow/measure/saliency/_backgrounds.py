"""What stands where a mask hides the input: other data, a blurred input, a mean, or one's own.

2211.02912 draws it from the training data where masks are learned, and takes grey where they are
scored: the zero of standardised images, which is their mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from undertow.measure.saliency._classifier import Classifier

Name = Literal["data", "mean", "grey", "blur"]
Background = Name | float | Tensor

_BLUR = 0.1  # standard deviation, in shorter sides of the image
_BEYOND = 0.1  # how far inputs may lie outside the data's range, in parts of it


@dataclass(frozen=True, eq=False)
class Backgrounds:
    """What masked inputs may be filled with.

    Attributes:
        pool: `[m, ...]`: to be drawn from, or one for all inputs, or one for each.
        drawn: whether it is drawn from the pool.
        own: whether the pool is the inputs themselves, of which no one is its own background.
    """

    pool: Float[Tensor, "m ..."]
    drawn: bool
    own: bool

    def picks(
        self, steps: int, draws: int, generator: torch.Generator
    ) -> Int64[Tensor, "steps draws"]:
        """Which of the pool each step sees, the same for all inputs and labels."""
        if not self.drawn:
            return torch.zeros(steps, 1, dtype=torch.int64)
        return torch.randint(len(self.pool), (steps, draws), generator=generator)

    def at(
        self, rows: Int64[Tensor, " rows"], picks: Int64[Tensor, " draws"]
    ) -> Float[Tensor, "some draws ..."]:
        """For each row's input, or one for all of them."""
        picks = picks.to(rows.device)
        if not self.drawn:
            return (self.pool if len(self.pool) == 1 else self.pool[rows])[:, None]
        if not self.own:
            return self.pool[picks][None]
        shown = picks.expand(len(rows), -1)
        same = shown == rows[:, None]
        return self.pool[torch.where(same, (shown + 1) % len(self.pool), shown)]


def backgrounds(classifier: Classifier, background: Background, data: Any) -> Backgrounds:
    """The backgrounds of a name, a number or a tensor.

    Raises:
        TypeError: it is none of these.
        ValueError: an unknown name, another shape, too few data, or inputs that are not scaled as
            the data are.
    """
    inputs = classifier.inputs
    known = inputs if data is None else classifier.maskable("data", data)
    if data is not None and classifier.is_image:
        _check_range(inputs, known)
    if isinstance(background, Tensor):
        return Backgrounds(_given(background, classifier), drawn=False, own=False)
    if isinstance(background, int | float) and not isinstance(background, bool):
        return Backgrounds(torch.full_like(inputs[:1], background), drawn=False, own=False)
    if not isinstance(background, str):
        kind = type(background).__name__
        raise TypeError(f"background must be a name, a number or a tensor, got {kind}")
    if background not in get_args(Name):
        names = ", ".join(get_args(Name))
        raise ValueError(f"background must be {names}, a number or a tensor, got {background!r}")
    if background == "data":
        if len(known) < 2:
            raise ValueError(
                "background='data' needs at least two samples to draw from; give data=, or "
                "background='mean'"
            )
        return Backgrounds(known, drawn=True, own=data is None)
    if background == "mean":
        axes = (0, 2, 3) if classifier.is_image else (0, 1)
        pool = known.double().mean(axes, keepdim=True).to(inputs).expand_as(inputs[:1])
        return Backgrounds(pool, drawn=False, own=False)
    if not classifier.is_image:
        raise ValueError(f"background={background!r} is for images; of tokens take data or mean")
    if background == "grey":
        middle = (float(known.min()) + float(known.max())) / 2
        return Backgrounds(torch.full_like(inputs[:1], middle), drawn=False, own=False)
    return Backgrounds(blurred(inputs), drawn=False, own=False)


def blurred(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """By a Gaussian whose standard deviation is a tenth of the shorter side."""
    shorter = min(images.shape[2:])
    sigma = _BLUR * shorter
    reach = min(math.ceil(3 * sigma), shorter - 1)
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = (-(at**2) / (2 * sigma**2)).exp()
    weights = (weights / weights.sum()).to(images)
    channels = images.shape[1]
    padded = functional.pad(images, (reach,) * 4, mode="reflect")
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        kernel = weights.view(shape).expand(channels, 1, *weights.view(shape).shape[2:])
        padded = functional.conv2d(padded, kernel, groups=channels)
    return padded


def _given(background: Tensor, classifier: Classifier) -> Tensor:
    inputs = classifier.inputs
    found = background.detach().to(inputs)
    if not torch.isfinite(found).all():
        raise ValueError("background must be finite, got NaN or infinity")
    if found.ndim < inputs.ndim:
        found = found.reshape((1,) * (inputs.ndim - found.ndim) + tuple(found.shape))
    try:
        if len(found) in (1, len(inputs)):
            return found.expand(len(found), *inputs.shape[1:])
    except RuntimeError:
        pass
    raise ValueError(
        f"background must be of the inputs' shape {tuple(inputs.shape[1:])}, for all of them or "
        f"for each, got {tuple(background.shape)}"
    )


def _check_range(inputs: Tensor, data: Tensor) -> None:
    low, high = float(data.min()), float(data.max())
    least, most = float(inputs.min()), float(inputs.max())
    room = _BEYOND * (high - low)
    if least < low - room or most > high + room:
        raise ValueError(
            f"inputs must be scaled as the data, which lie in [{low:.3g}, {high:.3g}], got inputs "
            f"in [{least:.3g}, {most:.3g}]"
        )
