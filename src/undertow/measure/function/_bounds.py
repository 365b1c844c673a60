"""Norm-based complexity of a chain of layers, with and without the locality of convolutions.

Xu et al. (Research, 2023) and its companion arXiv 2301.12033 pay for kernel norms; a bound for
dense layers (Golowich, Rakhlin and Shamir, 2018) pays for Toeplitz norms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from undertow.measure._evaluation import evaluating, outputs_of, state_of
from undertow.measure._kinds import check_objective
from undertow.measure.weights import LayerCall, LayerNorms, layer_calls, layer_norms
from undertow.objective import Objective

# Positively homogeneous and 1-Lipschitz, position by position, or without any effect in eval mode.
_HARMLESS = (
    nn.ReLU,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
)


@dataclass(frozen=True, eq=False)
class NormBounds:
    """Two bounds on the Rademacher complexity of the networks with these norms.

    Their ratio is the gain from locality. They rank networks of one architecture; neither is a
    generalisation gap. The constant of the kernel bound is rederived by peeling layer by layer,
    not quoted: the published one may differ.

    Attributes:
        kernel: (rho / N) (1 + sqrt(2 (L log 2 + sum log deg_l + log C))) times
            sqrt(prod deg_l * max over patches of sum_i ||patch of x_i||^2), rho = prod ||W_l||_F.
        toeplitz: (rho_T / N) (1 + sqrt(2 (L log 2 + log C))) sqrt(sum_i ||x_i||^2) with rho_T the
            product of Toeplitz norms. C counts the outputs at every position.
        log_kernel: its logarithm, where the bound leaves float64's range.
        log_toeplitz: likewise.
        locality_factor: rho_T / rho; sqrt of the product of positions without padding.
        degrees: deg_l for l = 2 ... L, how many positions of the layer below one unit reads.
        norms: of the layers.
        samples: N.
        notes: what the bounds leave out.
    """

    kernel: float
    toeplitz: float
    log_kernel: float
    log_toeplitz: float
    locality_factor: float
    degrees: tuple[int, ...]
    norms: LayerNorms
    samples: int
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        text = (
            f"Complexity over {self.samples:,} samples: {self.kernel:.4g} from kernel norms, "
            f"{self.toeplitz:.4g} from Toeplitz norms, which are {self.locality_factor:.4g} times "
            "the kernel norms in all. They compare networks of one architecture."
        )
        return "\n".join([text, *(f"  note: {note}" for note in self.notes)])


def norm_bounds(objective: Objective) -> NormBounds:
    """Norm-based bounds for a chain of linear and convolutional layers with ReLU between them.

    With deg_l the positions of layer l - 1 that a unit of layer l reads (taps of a convolution,
    positions that a linear layer flattens), L layers, C outputs and N samples. Each layer costs
    ||W_l||_F sqrt(deg_l) for the largest of the positions that it reads.

    Raises:
        TypeError: if `objective` is none, such as a bare model.
        ValueError: if the model has other layers (pooling, normalisation, attention), layers that
            do not follow one another or do not read whole positions, or padding other than zeros.
    """
    check_objective(objective)
    model = objective.model
    _check_chain(model)
    calls = layer_calls(objective)
    norms = layer_norms(objective)
    for call in calls:
        if call.rows != 1:
            raise ValueError(
                f"the bounds need samples on the first axis; {call.name} gets {call.rows} rows of "
                "each"
            )
    degrees = tuple(_degree(below, layer) for below, layer in pairwise(calls))
    patches, total, samples = _input_squares(objective, calls[0])

    outputs = math.prod(calls[-1].output_shape)
    log_reads = sum(math.log(degree) for degree in degrees)
    choices = len(calls) * math.log(2) + math.log(outputs)
    log_kernel = (
        norms.log_frobenius
        - math.log(samples)
        + math.log1p(math.sqrt(2 * (choices + log_reads)))
        + (log_reads + math.log(patches)) / 2
    )
    log_toeplitz = (
        norms.log_toeplitz
        - math.log(samples)
        + math.log1p(math.sqrt(2 * choices))
        + math.log(total) / 2
    )
    biased = [call.name for call in calls if _has_bias(call.module)]
    return NormBounds(
        kernel=_exp(log_kernel),
        toeplitz=_exp(log_toeplitz),
        log_kernel=log_kernel,
        log_toeplitz=log_toeplitz,
        locality_factor=_exp(norms.log_toeplitz - norms.log_frobenius),
        degrees=degrees,
        norms=norms,
        samples=samples,
        notes=(f"biases are left out: {', '.join(biased)}",) if biased else (),
    )


def _check_chain(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if "parametrizations" in name.split("."):
            continue
        allowed = isinstance(module, (nn.Sequential, nn.Linear, _ConvNd, *_HARMLESS))
        # A subclass may add a shortcut.
        if isinstance(module, nn.Sequential) and type(module).forward is not nn.Sequential.forward:
            allowed = False
        if not allowed or isinstance(module, _ConvTransposeNd):
            where = f"{name or 'the model'} is a {type(module).__name__}"
            raise ValueError(
                f"the bounds hold for an nn.Sequential of linear and convolutional layers with "
                f"ReLU; {where}"
            )
        if isinstance(module, _ConvNd) and module.padding_mode != "zeros":
            raise ValueError(f"the bounds need zero padding; {name} pads by {module.padding_mode}")


def _degree(below: LayerCall, layer: LayerCall) -> int:
    # Channels come first behind a convolution, last behind a linear layer.
    after_convolution = isinstance(below.module, _ConvNd)
    channels = below.output_shape[0 if after_convolution else -1]
    positions = math.prod(below.output_shape) // channels
    if isinstance(layer.module, _ConvNd):
        if after_convolution and layer.input_shape == below.output_shape:
            return math.prod(layer.module.kernel_size)
        if positions == 1:  # a part of the only one
            return 1
        raise ValueError(
            f"the bounds need a convolution to read whole positions of the layer before it; "
            f"{layer.name} gets {layer.input_shape} from {below.name}'s {below.output_shape}"
        )
    width = layer.input_shape[-1]
    whole = after_convolution and width != channels * positions
    if width % channels or whole:
        raise ValueError(
            f"{layer.name} reads {width} numbers, which are not whole positions of {below.name}'s "
            f"{channels} channels; an nn.Flatten between them may be missing"
        )
    return width // channels


def _input_squares(objective: Objective, first: LayerCall) -> tuple[float, float, int]:
    """Max over patches of sum_i ||patch||^2, sum_i ||x_i||^2, and N, at the first layer."""
    sums: list[Tensor] = []
    samples = batches = 0

    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal samples
        del module
        if len(sums) < batches:  # not when a later layer is the same module
            squares = args[0].double().square()
            samples += len(squares)
            sums.append(squares.sum(0))

    risk = objective.risk.apart()
    risk.stand_in.follow().get_submodule(first.name).register_forward_pre_hook(record)
    with evaluating(risk):
        state = state_of(risk)
        for inputs, _ in risk.batches():
            batches += 1
            outputs_of(risk, state, inputs)
    squares = torch.stack(sums).sum(0)
    layer = first.module
    if isinstance(layer, _ConvNd):
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)
        taps = torch.ones(1, 1, *layer.kernel_size, dtype=squares.dtype, device=squares.device)
        patches = convolve[len(layer.kernel_size) - 1](
            squares.sum(0)[None, None],
            taps,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
        )
    else:
        patches = squares.sum(-1)
    if not squares.any():
        raise ValueError("all inputs are zero, so the bounds are zero too")
    return float(patches.max()), float(squares.sum()), samples


def _has_bias(layer: nn.Module) -> bool:
    bias = layer.bias
    return isinstance(bias, Tensor) and bool(bias.any())


def _exp(log_value: float) -> float:
    return math.inf if log_value > 709.78 else math.exp(log_value)
