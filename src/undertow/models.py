"""Reference networks that claims train: perceptrons, convolutional, residual, a transformer.

`nn.Sequential`s of PyTorch's own layers (the transformer adds one block of its own), with PyTorch's
own initial distribution where no other is asked for, drawn from an explicit generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

DeepInit = Literal["identity-plus-noise", "he"]

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
    between = _activation(activation)
    drawn: dict[str, Any] = {"bias": bias, "scale": scale, "generator": _or_new(generator)}
    fan_in, height, width = input_shape
    layers: list[nn.Module] = []
    for fan_out in channels:
        shape: dict[str, Any] = {"stride": stride, "padding": kernel_size // 2} | drawn
        layers.append(_drawn(nn.Conv2d, fan_in, fan_out, kernel_size, **shape))
        layers += [nn.BatchNorm2d(fan_out)] * batch_norm + between()
        fan_in, height, width = fan_out, math.ceil(height / stride), math.ceil(width / stride)
    layers.append(nn.Flatten())
    features = fan_in * height * width
    layers.append(_drawn(nn.Linear, features, num_classes, **drawn))
    return nn.Sequential(*layers)


def residual_net(
    input_shape: tuple[int, int, int],
    channels: int,
    blocks: int,
    num_classes: int,
    *,
    groups: int = 4,
    shortcuts: bool = True,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """A convolution of stride 2, blocks of two of stride 1 with a shortcut, then one linear layer.

    Kernels are 3 x 3, without bias, each followed by a `GroupNorm`. A block is relu(x + branch(x)),
    with a ReLU within the branch; without shortcuts it is relu(branch(x)): a plain network.
    `residual_net((1, 8, 8), 32, 2, 10)` maps `[batch, 1, 8, 8]` to `[batch, 10]` logits.

    Args:
        input_shape: `(channels, height, width)` of one image.
        channels: of every convolution's output.
        blocks: how many there are.
        num_classes: outputs of the linear layer, which sees all positions.
        groups: of each norm; must divide the channels.
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
    generator = _or_new(generator)

    def normed(fan_in: int, stride: int = 1) -> list[nn.Module]:
        shape: dict[str, Any] = {"stride": stride, "padding": 1, "bias": False}
        convolution = _drawn(nn.Conv2d, fan_in, channels, 3, **shape, generator=generator)
        return [convolution, nn.GroupNorm(groups, channels)]

    block = _Residual if shortcuts else nn.Sequential
    layers = [*normed(input_shape[0], 2), nn.ReLU()]
    for _ in range(blocks):
        layers += [block(*normed(channels), nn.ReLU(), *normed(channels)), nn.ReLU()]
    positions = math.prod(-(-side // 2) for side in input_shape[1:])
    head = _drawn(nn.Linear, channels * positions, num_classes, bias=True, generator=generator)
    return nn.Sequential(*layers, nn.Flatten(), head)


class _Residual(nn.Sequential):
    """x -> x + branch(x)."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x + super().forward(x)


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
    generator = _or_new(generator)
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


def transformer(
    vocabulary: int,
    context: int,
    *,
    width: int = 32,
    depth: int = 2,
    heads: int = 2,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """A causal transformer with layer norm before each sublayer, such as one for characters.

    Maps tokens `[batch, length]`, `length <= context`, to logits `[batch, vocabulary, length]`: the
    classes lie along axis 1, where `nn.CrossEntropyLoss` expects them for targets `[batch, length]`
    of following tokens. Logits at position j depend on tokens 0 to j only.

    Args:
        vocabulary: tokens run from 0 to `vocabulary - 1`.
        context: the longest input; positions are learned.
        width: of the residual stream; the hidden layer of each block is four times as wide.
        depth: the number of blocks; there are about `12 depth width^2` weights beside the tokens'.
        heads: of the attention; must divide the width.
        generator: draws the initial weights: normal with standard deviation 0.02 for embeddings (as
            GPT-2 has them), PyTorch's default for linear layers but those that write into the
            residual stream, which are divided by `sqrt(2 depth)`. None starts a new one from 0.

    Raises:
        ValueError: a number below 1, or heads that do not divide the width.
    """
    if min(vocabulary, context, width, depth, heads) < 1:
        raise ValueError(
            f"vocabulary={vocabulary}, context={context}, width={width}, depth={depth},"
            f" heads={heads} would not do: each must be at least 1."
        )
    if width % heads:
        raise ValueError(f"heads={heads} does not divide width={width}.")
    generator = _or_new(generator)
    layers: list[nn.Module] = [_Embedding(vocabulary, context, width, generator)]
    layers += [_Block(width, heads, 1 / math.sqrt(2 * depth), generator) for _ in range(depth)]
    head = _drawn(nn.Linear, width, vocabulary, bias=False, generator=generator)
    return nn.Sequential(*layers, nn.LayerNorm(width), head, _ClassesFirst())


class _Embedding(nn.Module):
    """The sum of a token's vector and its position's."""

    def __init__(self, vocabulary: int, context: int, width: int, generator: torch.Generator):
        super().__init__()
        self.token = nn.Parameter(torch.empty(vocabulary, width))
        self.position = nn.Parameter(torch.empty(context, width))
        for table in (self.token, self.position):
            nn.init.normal_(table, std=0.02, generator=generator)

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        length, context = tokens.shape[1], len(self.position)
        if length > context:
            raise ValueError(f"tokens: {length} a sample, but the context is {context}.")
        return self.token[tokens] + self.position[:length]


class _Block(nn.Module):
    """x + attention(norm(x)), then the same with a hidden layer of four times the width.

    Attention is written out: fused kernels have no batching rule for an ensemble of weights, and
    no second derivative.
    """

    def __init__(self, width: int, heads: int, residual_scale: float, generator: torch.Generator):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = _drawn(nn.Linear, width, 3 * width, bias=True, generator=generator)
        self.attention_out = _drawn(nn.Linear, width, width, bias=True, generator=generator)
        self.hidden_norm = nn.LayerNorm(width)
        self.hidden_in = _drawn(nn.Linear, width, 4 * width, bias=True, generator=generator)
        self.hidden_out = _drawn(nn.Linear, 4 * width, width, bias=True, generator=generator)
        with torch.no_grad():
            for layer in (self.attention_out, self.hidden_out):
                layer.get_parameter("weight").mul_(residual_scale)

    def forward(
        self, x: Float[Tensor, "batch length width"]
    ) -> Float[Tensor, "batch length width"]:
        x = x + self.attention_out(self._attend(self.attention_in(self.attention_norm(x))))
        hidden = nn.functional.gelu(self.hidden_in(self.hidden_norm(x)))
        return x + self.hidden_out(hidden)

    def _attend(
        self, packed: Float[Tensor, "batch length three_widths"]
    ) -> Float[Tensor, "batch length width"]:
        batch, length = packed.shape[:2]
        split = packed.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        future = torch.ones(length, length, dtype=torch.bool, device=packed.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return (weights @ value).transpose(1, 2).reshape(batch, length, -1)


class _ClassesFirst(nn.Module):
    def forward(
        self, logits: Float[Tensor, "batch length vocabulary"]
    ) -> Float[Tensor, "batch vocabulary length"]:
        return logits.mT


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
    generator = _or_new(generator)
    for index, layer in enumerate(square, start=1):
        noise = torch.randn(layer.weight.shape, dtype=torch.float64, generator=generator)
        noise *= scale * index**-power / torch.linalg.matrix_norm(noise, 2)
        layer.weight.copy_(torch.eye(layer.in_features, dtype=torch.float64) + noise)
        if layer.bias is not None:
            layer.bias.zero_()
    return stack


def _activation(name: str) -> Callable[[], list[nn.Module]]:
    """A maker of the (zero or one) modules that an activation's name stands for."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation={name!r} is unknown; choose {', '.join(_ACTIVATIONS)}.")
    make = _ACTIVATIONS[name]
    return lambda: [make()] if make is not None else []


def _or_new(generator: torch.Generator | None) -> torch.Generator:
    return torch.Generator().manual_seed(0) if generator is None else generator


def _drawn(
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
