"""Perceptrons, and deep ones of layers that are near the identity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import nn

from undertow.models._layers import activation_maker, drawn_layer, or_new

DeepInit = Literal["identity-plus-noise", "he"]
Norm = Literal["batch", "layer", "none"]

# Added to a variance, which may be 0. Beside any other one it is lost to rounding, so that scale
# invariance is exact, which PyTorch's 1e-5 spoils where weights are small.
_EPS = 1e-30


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
    between = activation_maker(activation)
    generator = or_new(generator)
    layers: list[nn.Module] = [nn.Flatten()]
    for depth, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        layers.append(drawn_layer(nn.Linear, fan_in, fan_out, bias=bias, generator=generator))
        if depth < len(sizes) - 1:
            layers += [nn.BatchNorm1d(fan_out)] * batch_norm + between()
    return nn.Sequential(*layers)


def scale_invariant_mlp(
    sizes: Sequence[int],
    *,
    norm: Norm = "batch",
    activation: str = "relu",
    frozen_head: bool = True,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """An MLP whose loss does not depend on the size of any layer that is trained.

    Flatten, then for each hidden width a linear layer without bias, a norm without gain and offset,
    and the activation; last a linear layer without bias that keeps its initial weights. Its loss
    at c W is that at W, for each layer alone and to the last bit for c a power of two. As in the
    experiments of 2010.02916, but for their convolutions.

    Args:
        sizes: inputs, hidden widths, outputs: at least three positive numbers.
        norm: `batch` and `layer` norm, or `none`: then nothing is scale-invariant.
        activation: as of `mlp`. Under layer norm a unit of a ReLU may die for good.
        frozen_head: whether the last layer keeps its initial weights; trained, it is not
            scale-invariant.
        generator: draws the initial weights, normal of variance 2 / fan_in (He et al., 2015) so
            that the frozen layer's logits are of order one; None starts a new one from 0.

    Raises:
        ValueError: fewer than three sizes, a size below 1, an unknown norm or activation.
    """
    if len(sizes) < 3 or min(sizes) < 1:
        raise ValueError(
            f"sizes={tuple(sizes)} would not do: give inputs, at least one hidden width, and"
            " outputs, each at least 1, such as (64, 32, 10)."
        )
    if norm not in get_args(Norm):
        raise ValueError(f"norm={norm!r} is unknown; choose {', '.join(get_args(Norm))}.")
    between = activation_maker(activation)
    generator = or_new(generator)
    norms: dict[str, Callable[[int], list[nn.Module]]] = {
        "batch": lambda width: [nn.BatchNorm1d(width, eps=_EPS, affine=False)],
        "layer": lambda width: [nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)],
        "none": lambda width: [],
    }
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, bias=False)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        layers += [layer, *norms[norm](fan_out), *between()]
    layers = layers[: layers.index(layer) + 1]
    layer.weight.requires_grad_(not frozen_head)
    return nn.Sequential(*layers)


def deep_plain_mlp(
    width: int,
    depth: int,
    *,
    inputs: int,
    outputs: int,
    init: DeepInit = "identity-plus-noise",
    scale: float = 0.5,
    power: float = 1.0,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """An MLP of constant width without shortcuts or normalisation, made to be very deep.

    Flatten, a linear layer from `inputs` to `width`, `depth` linear layers from `width` to `width`,
    each of these `depth + 1` followed by ReLU, and a linear layer to `outputs`. All biases start at
    zero, and the first and the last layer as `init="he"` has them.

    Args:
        width: of every hidden layer.
        depth: the number of layers that keep the width.
        inputs: numbers in a sample.
        outputs: numbers in the result.
        init: of the layers that keep the width: `identity-plus-noise` is `identity_plus_noise_`;
            `he` draws normal weights of variance 2 / fan_in (He et al., 2015).
        scale: of the noise.
        power: with which the noise falls in depth.
        generator: draws the initial weights; None starts a new one from 0.

    Raises:
        ValueError: a size below 1, an unknown `init`, or a scale or power out of range.
    """
    if min(width, depth, inputs, outputs) < 1:
        raise ValueError(
            f"width={width}, depth={depth}, inputs={inputs}, outputs={outputs} would not do: each"
            " must be at least 1."
        )
    if init not in get_args(DeepInit):
        raise ValueError(f"init={init!r} is unknown; choose {' or '.join(get_args(DeepInit))}.")
    generator = or_new(generator)
    sizes = [inputs, *[width] * (depth + 1), outputs]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    if init == "identity-plus-noise":
        hidden = nn.Sequential(*layers[3:-2])
        identity_plus_noise_(hidden, scale=scale, power=power, generator=generator)
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def identity_plus_noise_(
    stack: nn.Sequential,
    *,
    scale: float = 0.5,
    power: float = 1.0,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Set the l-th square linear layer of a stack to W_l = I + scale l^-power G_l, its bias to 0.

    G_l is a Gaussian matrix divided by its spectral norm, so ||W_l - I|| = scale l^-power exactly.
    A deep ReLU network then converges in depth for power > 1 (summable perturbations, arXiv
    2107.12530); as the G_l are independent with mean zero, already for power > 1/2.

    Args:
        stack: its `nn.Linear` layers with as many outputs as inputs are set, counted from l = 1;
            every other layer is left alone.
        scale: at least 0.
        power: at least 0.
        generator: draws the noise; None starts a new one from 0.

    Returns:
        The stack.

    Raises:
        ValueError: scale or power is negative or not finite, or there is no square linear layer.
    """
    for name, value in (("scale", scale), ("power", power)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} is out of range: give a number of at least 0.")
    square = [
        layer
        for layer in stack.modules()
        if isinstance(layer, nn.Linear) and layer.in_features == layer.out_features
    ]
    if not square:
        raise ValueError("stack has no nn.Linear layer with as many outputs as inputs to set.")
    generator = or_new(generator)
    for index, layer in enumerate(square, start=1):
        noise = torch.randn(layer.weight.shape, dtype=torch.float64, generator=generator)
        noise *= scale * index**-power / torch.linalg.matrix_norm(noise, 2)
        layer.weight.copy_(torch.eye(layer.in_features, dtype=torch.float64) + noise)
        if layer.bias is not None:
            layer.bias.zero_()
    return stack
