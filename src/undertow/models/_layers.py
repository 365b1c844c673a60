"""What all networks are made of: layers drawn from an explicit generator, and activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_ACTIVATIONS: dict[str, Callable[[], nn.Module] | None] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "identity": None,
}


def activation_maker(name: str) -> Callable[[], list[nn.Module]]:
    """A maker of the (zero or one) modules that an activation's name stands for."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation={name!r} is unknown; choose {', '.join(_ACTIVATIONS)}.")
    make = _ACTIVATIONS[name]
    return lambda: [make()] if make is not None else []


def or_new(generator: torch.Generator | None) -> torch.Generator:
    return torch.Generator().manual_seed(0) if generator is None else generator


def drawn_layer(
    layer: type[nn.Linear] | type[nn.Conv2d],
    *sizes: int,
    generator: torch.Generator,
    scale: float = 1.0,
    **shape: Any,
) -> nn.Module:
    """A layer with PyTorch's default initial weights, drawn without touching the global state."""
    module = nn.utils.skip_init(layer, *sizes, **shape)
    fan_in = module.weight[0].numel()
    # sqrt(5) is how PyTorch spells a bound of 1 / sqrt(fan_in).
    nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
    module.weight.detach().mul_(scale)
    if module.bias is not None:
        bound = 1 / math.sqrt(fan_in)
        nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    return module
