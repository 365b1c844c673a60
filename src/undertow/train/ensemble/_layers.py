"""Plain MLPs as a chain of layers that the fused ensemble trainer knows how to run.

`recognise` turns a module into that chain, or says that it is not a plain MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_aten = torch.ops.aten


@dataclass(frozen=True)
class Affine:
    """A `Linear` layer: the names of its weight and bias."""

    weight: str
    bias: str | None
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Norm:
    """A `BatchNorm1d` layer: the names of its parameters and running statistics."""

    weight: str | None
    bias: str | None
    running: str | None
    eps: float
    momentum: float | None
    features: int


@dataclass(frozen=True)
class Activation:
    """An elementwise nonlinearity.

    Attributes:
        forward: (x, out) writes the activation of x to out.
        backward: (grad, x, y, out) writes grad times the derivative to out, y being the output.
        keeps_input: whether `backward` reads x, so that it may not be overwritten.
        homogeneous: f(s x) = s f(x) for s > 0.
    """

    forward: Callable[[Tensor, Tensor], object]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor], object]
    keeps_input: bool
    homogeneous: bool


Layer = Affine | Norm | Activation


def _relu(module: nn.Module) -> Activation:
    return Activation(
        lambda x, out: torch.clamp_min(x, 0, out=out),
        lambda grad, x, y, out: _aten.threshold_backward.grad_input(grad, y, 0, grad_input=out),
        keeps_input=False,
        homogeneous=True,
    )


def _leaky_relu(module: nn.Module) -> Activation:
    slope = module.negative_slope
    return Activation(
        lambda x, out: _aten.leaky_relu.out(x, slope, out=out),
        lambda grad, x, y, out: _aten.leaky_relu_backward.grad_input(
            grad, x, slope, False, grad_input=out
        ),
        keeps_input=True,
        homogeneous=True,
    )


def _tanh(module: nn.Module) -> Activation:
    return Activation(
        lambda x, out: torch.tanh(x, out=out),
        lambda grad, x, y, out: _aten.tanh_backward.grad_input(grad, y, grad_input=out),
        keeps_input=False,
        homogeneous=False,
    )


def _sigmoid(module: nn.Module) -> Activation:
    return Activation(
        lambda x, out: torch.sigmoid(x, out=out),
        lambda grad, x, y, out: _aten.sigmoid_backward.grad_input(grad, y, grad_input=out),
        keeps_input=False,
        homogeneous=False,
    )


def _gelu(module: nn.Module) -> Activation:
    kind = module.approximate
    return Activation(
        lambda x, out: _aten.gelu.out(x, approximate=kind, out=out),
        lambda grad, x, y, out: _aten.gelu_backward.grad_input(
            grad, x, approximate=kind, grad_input=out
        ),
        keeps_input=True,
        homogeneous=False,
    )


def _silu(module: nn.Module) -> Activation:
    return Activation(
        lambda x, out: _aten.silu.out(x, out=out),
        lambda grad, x, y, out: _aten.silu_backward.grad_input(grad, x, grad_input=out),
        keeps_input=True,
        homogeneous=False,
    )


def _softplus(module: nn.Module) -> Activation:
    beta, threshold = module.beta, module.threshold
    return Activation(
        lambda x, out: _aten.softplus.out(x, beta, threshold, out=out),
        lambda grad, x, y, out: _aten.softplus_backward.grad_input(
            grad, x, beta, threshold, grad_input=out
        ),
        keeps_input=True,
        homogeneous=False,
    )


_ACTIVATIONS: dict[type[nn.Module], Callable[[nn.Module], Activation]] = {
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.GELU: _gelu,
    nn.SiLU: _silu,
    nn.Softplus: _softplus,
}


def recognise(module: nn.Module, *, input_ndim: int) -> list[Layer] | None:
    """The chain of layers of a plain MLP, or None where the module is anything else.

    A plain MLP is a `Sequential` (nested ones included) of an optional leading `Flatten`, then
    `Linear`, elementwise activations and `BatchNorm1d`, all trainable, none with tensors used
    twice, without hooks or parametrisations, and with a `Linear` first and last. Batches of
    inputs have `input_ndim` axes; without a `Flatten` they must have two.
    """
    leaves = _flatten(module, "")
    if leaves is None:
        return None
    first = leaves[0][1] if leaves else None
    if type(first) is nn.Flatten and (first.start_dim, first.end_dim) == (1, -1):
        leaves = leaves[1:]
    elif input_ndim != 2:
        return None
    stateful = [id(leaf) for _, leaf in leaves if type(leaf) in (nn.Linear, nn.BatchNorm1d)]
    if len(set(stateful)) < len(stateful):
        return None
    layers: list[Layer] = []
    for name, leaf in leaves:
        if type(leaf) is nn.Identity:
            continue
        layer = _layer(name, leaf)
        if layer is None:
            return None
        layers.append(layer)
    tensors = list(module.parameters())
    if len(tensors) < sum(1 for leaf in leaves for _ in leaf[1].parameters()):
        return None  # layers share a parameter
    if not all(tensor.requires_grad for tensor in tensors):
        return None
    ends_are_linear = (
        bool(layers) and isinstance(layers[0], Affine) and isinstance(layers[-1], Affine)
    )
    return layers if ends_are_linear else None


# PyTorch has no public way to ask whether a module has hooks.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _flatten(module: nn.Module, name: str) -> list[tuple[str, nn.Module]] | None:
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return None
    if type(module) is not nn.Sequential:
        return [(name, module)]
    # `named_children` would drop repeated modules.
    every = module.named_modules(remove_duplicate=False)
    children = [(key, child) for key, child in every if key and "." not in key]
    if len(children) != len(module):  # one is None
        return None
    leaves: list[tuple[str, nn.Module]] = []
    for key, child in children:
        below = _flatten(child, f"{name}{key}.")
        if below is None:
            return None
        leaves += below
    return leaves


def _layer(name: str, leaf: nn.Module) -> Layer | None:
    if type(leaf) is nn.Linear:
        bias = f"{name}bias" if leaf.bias is not None else None
        return Affine(f"{name}weight", bias, leaf.in_features, leaf.out_features)
    if type(leaf) is nn.BatchNorm1d and leaf.training:
        return Norm(
            f"{name}weight" if leaf.weight is not None else None,
            f"{name}bias" if leaf.bias is not None else None,
            name if leaf.track_running_stats else None,
            leaf.eps,
            leaf.momentum,
            leaf.num_features,
        )
    make = _ACTIVATIONS.get(type(leaf))
    return make(leaf) if make else None
