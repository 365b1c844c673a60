"""Reference networks that claims train: a multilayer perceptron and a small convolutional net.

Plain `nn.Sequential`s of PyTorch's own layers, with PyTorch's own initial distribution, drawn from
an explicit generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
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


def mlp(
    sizes: Sequence[int],
    *,
    activation: str = "relu",
    batch_norm: bool = False,
    bias: bool = True,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Flatten, then a linear layer between each two sizes, with the activation between layers.

    `mlp((196, 128, 10))` maps `[batch, ...]` with 196 numbers a sample to `[batch, 10]` logits.

    Args:
        sizes: inputs, hidden widths, outputs: at least two positive numbers.
        activation: relu, leaky_relu, tanh, gelu, softplus or identity (a deep linear network).
        batch_norm: put a `BatchNorm1d` between each hidden layer and its activation.
        bias: whether the linear layers have one.
        generator: draws the initial weights (uniform within `1 / sqrt(fan_in)`, PyTorch's default);
            None starts a new generator from 0.

    Raises:
        ValueError: fewer than two sizes, a size below 1, or an unknown activation.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(
            f"sizes={tuple(sizes)} would not do: give inputs, any hidden widths and outputs,"
            " each at least 1, such as (784, 128, 10)."
        )
    between = _activation(activation)
    generator = _or_new(generator)
    layers: list[nn.Module] = [nn.Flatten()]
    for depth, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        layers.append(_drawn(nn.Linear, fan_in, fan_out, bias=bias, generator=generator))
        if depth < len(sizes) - 1:
            layers += [nn.BatchNorm1d(fan_out)] * batch_norm + between()
    return nn.Sequential(*layers)


def conv_net(
    input_shape: tuple[int, int, int],
    channels: Sequence[int],
    num_classes: int,
    *,
    kernel_size: int = 3,
    stride: int = 2,
    activation: str = "relu",
    batch_norm: bool = False,
    bias: bool = True,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Convolutions padded by half their kernel, each with an activation, then one linear layer.

    `conv_net((1, 28, 28), (8, 16), 10)` maps `[batch, 1, 28, 28]` to `[batch, 10]` logits. With
    stride s a side of n pixels becomes `ceil(n / s)` (for an odd kernel).

    Args:
        input_shape: `(channels, height, width)` of one image.
        channels: the output channels of each convolution: at least one, each at least 1.
        num_classes: outputs of the linear layer.
        kernel_size: an odd side, in pixels.
        stride: of every convolution.
        activation: relu, leaky_relu, tanh, gelu, softplus or identity.
        batch_norm: put a `BatchNorm2d` between each convolution and its activation.
        bias: whether the convolutions and the linear layer have one.
        generator: draws the initial weights (uniform within `1 / sqrt(fan_in)`, PyTorch's default);
            None starts a new generator from 0.

    Raises:
        ValueError: a number below 1, an even kernel, or an unknown activation.
    """
    if not channels or min(*input_shape, *channels, num_classes, kernel_size, stride) < 1:
        raise ValueError(
            f"input_shape={input_shape}, channels={tuple(channels)}, num_classes={num_classes},"
            f" kernel_size={kernel_size}, stride={stride} would not do: give at least one"
            " convolution, and numbers of at least 1."
        )
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size={kernel_size} is even; give an odd one, such as 3.")
    between = _activation(activation)
    generator = _or_new(generator)
    fan_in, height, width = input_shape
    layers: list[nn.Module] = []
    for fan_out in channels:
        shape: dict[str, Any] = {"stride": stride, "padding": kernel_size // 2, "bias": bias}
        layers.append(_drawn(nn.Conv2d, fan_in, fan_out, kernel_size, **shape, generator=generator))
        layers += [nn.BatchNorm2d(fan_out)] * batch_norm + between()
        fan_in, height, width = fan_out, math.ceil(height / stride), math.ceil(width / stride)
    layers.append(nn.Flatten())
    features = fan_in * height * width
    layers.append(_drawn(nn.Linear, features, num_classes, bias=bias, generator=generator))
    return nn.Sequential(*layers)


def _activation(name: str) -> Callable[[], list[nn.Module]]:
    """A maker of the (zero or one) modules that an activation's name stands for."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation={name!r} is unknown; choose {', '.join(_ACTIVATIONS)}.")
    make = _ACTIVATIONS[name]
    return lambda: [make()] if make is not None else []


def _or_new(generator: torch.Generator | None) -> torch.Generator:
    return torch.Generator().manual_seed(0) if generator is None else generator


def _drawn(
    layer: type[nn.Linear] | type[nn.Conv2d], *sizes: int, generator: torch.Generator, **shape: Any
) -> nn.Module:
    """A layer with PyTorch's default initial weights, drawn without touching the global state."""
    module = nn.utils.skip_init(layer, *sizes, **shape)
    fan_in = module.weight[0].numel()
    # sqrt(5) is how PyTorch spells a bound of 1 / sqrt(fan_in).
    nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
    if module.bias is not None:
        bound = 1 / math.sqrt(fan_in)
        nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    return module
