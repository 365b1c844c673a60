"""Norms of linear and convolutional layers as the maps that they are on one network's inputs.

A convolution applies one kernel at many positions: its kernel norm is what the bounds of Xu et al.
(Research, 2023) pay for, its Toeplitz norm what a bound for dense layers pays for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from undertow.measure._evaluation import evaluating, given, outputs_of, state_of
from undertow.measure._kinds import check_objective
from undertow.measure.weights._convolution import operator_spectrum
from undertow.measure.weights._spectrum import matrix_spectrum
from undertow.measure.weights._weights import WeightMatrix, weight_matrices
from undertow.objective import Objective, taken


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a linear or convolutional layer, with the shapes of one row of its batch.

    `rows` is how many rows one sample takes: more than one where the model folds an axis into the
    batch, or puts another axis first.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    rows: int = 1


@dataclass(frozen=True, eq=False)
class LayerNorms:
    """Norms of every linear and convolutional layer, in the order of the forward pass.

    Attributes:
        table: a row per call: name, rows, cols, positions (at which the kernel is applied),
            frobenius_norm of the kernel, toeplitz_norm (Frobenius norm of the layer as one
            matrix; NaN where it is not known), spectral_norm of the layer as one matrix (for a
            convolution an upper bound, exact for circular padding and stride 1).
        log_frobenius: log rho, rho = prod ||W_k||_F over the kernels.
        log_toeplitz: log of the product of the Toeplitz norms.
        log_spectral: log of the product of the spectral norms.
        notes: weights that are in none of the products.
    """

    table: pl.DataFrame
    log_frobenius: float
    log_toeplitz: float
    log_spectral: float
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        gain = self.log_toeplitz - self.log_frobenius
        text = (
            f"Norms of {len(self.table)} layers: log of the product of kernel norms "
            f"{self.log_frobenius:.4g}, of Toeplitz norms {self.log_toeplitz:.4g} "
            f"(e^{gain:.3g} times more), of spectral norms {self.log_spectral:.4g}."
        )
        return "\n".join([text, *(f"  note: {note}" for note in self.notes)])


def layer_norms(objective: Objective) -> LayerNorms:
    """Kernel, Toeplitz and spectral norms of the layers that one sample passes through.

    A layer that is called twice counts twice. Parametrised weights are taken as the forward pass
    sees them.

    Raises:
        ValueError: if the forward pass calls no linear or convolutional layer.
    """
    check_objective(objective)
    calls = layer_calls(objective)
    if not calls:
        raise ValueError("the model calls no nn.Linear and no convolution: it has no layer norms")
    rows = [_row(call) for call in calls]
    table = pl.DataFrame(rows)
    logs = {
        column: float(sum(_log(value) for value in table[column]))
        for column in ("frobenius_norm", "toeplitz_norm", "spectral_norm")
    }
    return LayerNorms(
        table,
        log_frobenius=logs["frobenius_norm"],
        log_toeplitz=logs["toeplitz_norm"],
        log_spectral=logs["spectral_norm"],
        notes=_notes(objective.model, calls),
    )


def toeplitz_norm(layer: nn.Module, size: Sequence[int]) -> float:
    """Frobenius norm of a convolution as one matrix on inputs of spatial size `size`.

    Without padding it is sqrt(output positions) ||kernel||_F; with zero padding each tap counts
    as often as it falls on the input. A transposed convolution is the adjoint of a convolution
    and has its norm. NaN for reflected and replicated padding, where taps add up.

    Raises:
        TypeError: if `layer` is not a convolution.
        ValueError: if `size` has not one positive whole number per spatial axis, or the layer has
            no output on an input of that size.
    """
    if not isinstance(layer, _ConvNd):
        raise TypeError(f"layer must be a convolution of torch.nn, got {type(layer).__name__}")
    if len(size) != len(layer.kernel_size) or any(not isinstance(n, int) or n < 1 for n in size):
        raise ValueError(
            f"size must hold {len(layer.kernel_size)} positive whole numbers, got {tuple(size)}"
        )
    kernel = _kernel(layer).kernel
    assert kernel is not None
    squares = kernel.double().square().sum((0, 1))
    padding = _padding(layer)
    for axis, length in enumerate(size):
        taps, stride = layer.kernel_size[axis], layer.stride[axis]
        reach = layer.dilation[axis] * (taps - 1) + 1
        left, right = padding[axis]
        if isinstance(layer, _ConvTransposeNd):
            steps = length
            extra = layer.output_padding[axis]
            length = (length - 1) * stride - left - right + reach + extra
        else:
            steps = (length + left + right - reach) // stride + 1
        if min(steps, length) < 1:
            raise ValueError(
                f"size {tuple(size)} is too small: the layer reaches over {reach} along axis {axis}"
            )
        outside = layer.padding_mode != "zeros" and left + right > 0
        if outside and (layer.padding_mode != "circular" or reach > length):
            return math.nan
        tap = torch.arange(taps)[:, None] * layer.dilation[axis]
        place = torch.arange(steps)[None] * stride - left + tap
        counts = torch.ones_like(place) if outside else (place >= 0) & (place < length)
        shape = [-1 if other == axis else 1 for other in range(len(size))]
        squares = squares * counts.sum(1).reshape(shape).to(squares)
    return float(squares.sum().sqrt())


def layer_calls(objective: Objective) -> list[LayerCall]:
    """The linear and convolutional layers that the first sample passes through, in order."""
    model = objective.model
    risk = objective.risk.apart()
    calls: list[LayerCall] = []
    names = {module: name for name, module in risk.stand_in.follow().named_modules()}

    def record(
        module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor
    ) -> None:
        shapes = tuple(given(args, named).shape[1:]), tuple(output.shape[1:])
        layer = model.get_submodule(names[module])
        calls.append(LayerCall(names[module], layer, *shapes, rows=len(output)))

    for module in names:
        if isinstance(module, nn.Linear | _ConvNd):
            module.register_forward_hook(record, with_kwargs=True)
    with evaluating(risk):
        inputs, _ = next(risk.batches())
        outputs_of(risk, state_of(risk), taken(inputs, slice(1)))
    return calls


def _row(call: LayerCall) -> dict[str, Any]:
    item = _kernel(call.module)
    rows, cols = item.matrix.shape
    frobenius = float(item.matrix.double().norm())
    if isinstance(call.module, _ConvNd):
        size = call.input_shape[1:]
        positions = math.prod(
            size if isinstance(call.module, _ConvTransposeNd) else call.output_shape[1:]
        )
        toeplitz = toeplitz_norm(call.module, size)
        spectral = _operator_norm(call, item)
    else:
        positions = math.prod(call.output_shape[:-1])
        toeplitz = math.sqrt(positions) * frobenius
        spectral = float(matrix_spectrum(item.matrix)[0])
    return {
        "name": call.name,
        "rows": rows,
        "cols": cols,
        "positions": call.rows * positions,
        "frobenius_norm": frobenius,
        "toeplitz_norm": math.sqrt(call.rows) * toeplitz,
        "spectral_norm": spectral,
    }


def _operator_norm(call: LayerCall, item: WeightMatrix) -> float:
    """The norm of the circular convolution of which the layer is a part: an upper bound.

    On the padded input, rows are left out for the border and the stride, and columns for the
    padding; leaving out rows and columns never raises the norm. Circular padding beyond the
    kernel's reach repeats rows instead; k copies raise the norm by sqrt(k) at most.
    """
    layer = call.module
    assert isinstance(layer, _ConvNd)
    assert item.kernel is not None
    shape = call.output_shape if isinstance(layer, _ConvTransposeNd) else call.input_shape
    if layer.padding_mode in ("reflect", "replicate"):
        return math.nan
    size = [
        max(1, length + (0 if layer.padding_mode == "circular" else left + right))
        for length, (left, right) in zip(shape[1:], _padding(layer), strict=True)
    ]
    spectrum = operator_spectrum(
        item.kernel, size, groups=layer.groups, dilation=tuple(layer.dilation)
    )
    copies = 1
    if layer.padding_mode == "circular":
        for axis, (left, right) in enumerate(_padding(layer)):
            reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
            copies *= -(-(size[axis] + left + right - reach + 1) // size[axis])
    return math.sqrt(copies) * float(spectrum[0])


def _padding(layer: _ConvNd) -> list[tuple[int, int]]:
    """Left and right padding of each axis."""
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    if isinstance(layer.padding, str):  # "valid"
        return [(0, 0)] * len(layer.kernel_size)
    return [(p, p) for p in layer.padding]


def _kernel(layer: nn.Module) -> WeightMatrix:
    found, _ = weight_matrices(layer)
    return found[0]


def _log(value: float) -> float:
    return math.log(value) if value > 0 else (-math.inf if value == 0 else math.nan)


def _notes(model: nn.Module, calls: Sequence[LayerCall]) -> tuple[str, ...]:
    called = {id(p) for call in calls for p in call.module.parameters()}
    left = [name for name, p in model.named_parameters() if id(p) not in called]
    if not left:
        return ()
    names = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
    return (f"not in the products of norms: {names}",)
