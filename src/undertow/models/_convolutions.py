"""Convolutional networks, with and without shortcuts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undertow.models._layers import activation_maker, drawn_layer, or_new


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
    scale: float = 1.0,
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
        scale: of the initial weights, in parts of PyTorch's; biases are as they are.
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
    between = activation_maker(activation)
    drawn: dict[str, Any] = {"bias": bias, "scale": scale, "generator": or_new(generator)}
    fan_in, height, width = input_shape
    layers: list[nn.Module] = []
    for fan_out in channels:
        shape: dict[str, Any] = {"stride": stride, "padding": kernel_size // 2} | drawn
        layers.append(drawn_layer(nn.Conv2d, fan_in, fan_out, kernel_size, **shape))
        layers += [nn.BatchNorm2d(fan_out)] * batch_norm + between()
        fan_in, height, width = fan_out, math.ceil(height / stride), math.ceil(width / stride)
    layers.append(nn.Flatten())
    features = fan_in * height * width
    layers.append(drawn_layer(nn.Linear, features, num_classes, **drawn))
    return nn.Sequential(*layers)


def residual_net(
    input_shape: tuple[int, int, int],
    channels: int,
    blocks: int,
    num_classes: int,
    *,
    groups: int = 4,
    norms: bool = True,
    shortcuts: bool = True,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """A convolution of stride 2, blocks of two of stride 1 with a shortcut, then one linear layer.

    Kernels are 3 x 3, without bias, each followed by a `GroupNorm` if there are `norms`. A block is
    relu(x + branch(x)), with a ReLU within the branch; without shortcuts it is relu(branch(x)): a
    plain network.
    `residual_net((1, 8, 8), 32, 2, 10)` maps `[batch, 1, 8, 8]` to `[batch, 10]` logits.

    Args:
        input_shape: `(channels, height, width)` of one image.
        channels: of every convolution's output.
        blocks: how many there are.
        num_classes: outputs of the linear layer, which sees all positions.
        groups: of each norm; must divide the channels.
        norms: whether kernels are normalised; the initial weights are the same either way.
        shortcuts: whether a block adds its input.
        generator: draws the initial weights (PyTorch's default); None starts a new one from 0.

    Raises:
        ValueError: a number below 1, or groups that do not divide the channels.
    """
    if min(*input_shape, channels, blocks, num_classes, groups) < 1 or channels % groups:
        raise ValueError(
            f"input_shape={input_shape}, channels={channels}, blocks={blocks}, groups={groups},"
            f" num_classes={num_classes} would not do: each must be at least 1, and groups divide"
            " channels."
        )
    generator = or_new(generator)

    def normed(fan_in: int, stride: int = 1) -> list[nn.Module]:
        shape: dict[str, Any] = {"stride": stride, "padding": 1, "bias": False}
        convolution = drawn_layer(nn.Conv2d, fan_in, channels, 3, **shape, generator=generator)
        return [convolution, nn.GroupNorm(groups, channels)] if norms else [convolution]

    block = _Residual if shortcuts else nn.Sequential
    layers = [*normed(input_shape[0], 2), nn.ReLU()]
    for _ in range(blocks):
        layers += [block(*normed(channels), nn.ReLU(), *normed(channels)), nn.ReLU()]
    positions = math.prod(-(-side // 2) for side in input_shape[1:])
    head = drawn_layer(nn.Linear, channels * positions, num_classes, bias=True, generator=generator)
    return nn.Sequential(*layers, nn.Flatten(), head)


class _Residual(nn.Sequential):
    """x -> x + branch(x)."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x + super().forward(x)
