"""PyTorch's functions recorded so that differentiating a backward pass does no needless work.

For a convolution PyTorch then computes every gradient whether it is wanted or not, by slower
kernels than in the first backward pass; for ReLU and max-pooling it fills and adds tensors of
zeros; batch and layer norms take many small steps. Numbers are the same up to rounding, but for
weight norm, whose second derivative PyTorch has wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_ATEN = torch.ops.aten
# Running Python in the backward pass costs more than it saves on smaller inputs.
_WORTH_BYTES = 2**17


class DoubleBackwardMode(TorchFunctionMode):
    """While active, large calls of the functions in `_RECORDED` are recorded that way.

    Those in `_CORRECTED` always are: PyTorch's own second derivative of them is wrong.

    Args:
        will_be_linear: whether `as_linear` is going to be entered.
        fast: whether to do more than to correct.

    Attributes:
        linear: whether backward passes are recorded as functions of their cotangent alone, as
            which they are linear; what they depend on otherwise then counts as constant.
        used: whether any call was.
    """

    def __init__(self, *, will_be_linear: bool, fast: bool = True) -> None:
        super().__init__()
        self.will_be_linear = will_be_linear
        self.fast = fast
        self.linear = self.used = False

    @contextmanager
    def as_linear(self) -> Iterator[None]:
        """Record the backward passes inside as linear maps."""
        self.linear = True
        try:
            yield
        finally:
            self.linear = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one function of PyTorch, recorded its own way where that is possible and pays."""
        del types
        kwargs = kwargs or {}
        record = _CORRECTED.get(func)
        if record is None and self.fast:
            record = _RECORDED.get(func)
        if record is None:
            return func(*args, **kwargs)
        return record(self, func, *args, **kwargs)


def _pays(inputs: Any, *weights: Any) -> bool:
    tensors = [inputs, *(weight for weight in weights if weight is not None)]
    return (
        all(type(t) in (Tensor, torch.nn.Parameter) and t.is_floating_point() for t in tensors)
        and inputs.numel() * inputs.element_size() >= _WORTH_BYTES
        and any(t.requires_grad for t in tensors)
    )


class _Relu(Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        outputs = inputs.relu()
        ctx.save_for_backward(outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (outputs,) = ctx.saved_tensors
        return _ATEN.threshold_backward(cotangent, outputs.detach(), 0)


def _relu(
    mode: DoubleBackwardMode, func: Callable[..., Tensor], input: Tensor, inplace: bool = False
) -> Tensor:
    if inplace or not _pays(input):
        return func(input, inplace) if inplace else func(input)
    mode.used = True
    return _Relu.apply(input)


class _MaxPool(Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, options: tuple[Any, ...]) -> Tensor:
        outputs, indices = _ATEN.max_pool2d_with_indices(inputs, *options)
        ctx.save_for_backward(inputs, indices)
        ctx.options = options
        return outputs

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        inputs, indices = ctx.saved_tensors
        scatter = _ATEN.max_pool2d_with_indices_backward
        return scatter(cotangent, inputs.detach(), *ctx.options, indices), None


def _max_pool(
    mode: DoubleBackwardMode,
    func: Callable[..., Any],
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if return_indices or not _pays(input) or input.ndim != 4:
        return func(
            input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=return_indices
        )
    mode.used = True
    sizes = [kernel_size, stride or kernel_size, padding, dilation]
    return _MaxPool.apply(input, (*(_pair(size, 2) for size in sizes), ceil_mode))


def _pair(size: Any, dimensions: int) -> list[int]:
    return [size] * dimensions if isinstance(size, int) else list(size)


class _Convolution(Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        options: tuple[Any, ...],
        mode: DoubleBackwardMode,
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.options, ctx.mode = options, mode
        return _ATEN.convolution(inputs, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        if not torch.is_grad_enabled():
            found = _convolution_gradients(cotangent, inputs, weight, ctx.options, wanted)
            return *found, None, None
        if ctx.mode.linear:
            inputs, weight = inputs.detach(), weight.detach()
        found = _ConvolutionBackward.apply(cotangent, inputs, weight, ctx.options, wanted)
        return *found, None, None


class _ConvolutionBackward(Function):
    @staticmethod
    def forward(
        ctx: Any,
        cotangent: Tensor,
        inputs: Tensor,
        weight: Tensor,
        options: tuple[Any, ...],
        wanted: list[bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        bilinear = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.save_for_backward(inputs, weight, cotangent if bilinear else None)
        ctx.options, ctx.shape = options, cotangent.shape
        return _convolution_gradients(cotangent, inputs, weight, options, wanted)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        along_inputs: Tensor | None,
        along_weight: Tensor | None,
        along_bias: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        inputs, weight, cotangent = ctx.saved_tensors
        options = ctx.options
        of_cotangent = of_inputs = of_weight = None
        if ctx.needs_input_grad[0]:
            parts = []
            if along_weight is not None:
                parts.append(_ATEN.convolution(inputs, along_weight, along_bias, *options))
            elif along_bias is not None:
                flat = along_bias.reshape(-1, *(1,) * (len(ctx.shape) - 2))
                parts.append(flat.expand(ctx.shape))
            if along_inputs is not None:
                parts.append(_ATEN.convolution(along_inputs, weight, None, *options))
            of_cotangent = sum(parts[1:], parts[0]) if parts else None
        if ctx.needs_input_grad[1] and along_weight is not None:
            only = [True, False, False]
            of_inputs = _convolution_gradients(cotangent, inputs, along_weight, options, only)[0]
        if ctx.needs_input_grad[2] and along_inputs is not None:
            only = [False, True, False]
            of_weight = _convolution_gradients(cotangent, along_inputs, weight, options, only)[1]
        return of_cotangent, of_inputs, of_weight, None, None


def _convolution_gradients(
    cotangent: Tensor, inputs: Tensor, weight: Tensor, options: tuple[Any, ...], wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    """Those in the inputs, the weight and the bias."""
    sizes = [weight.shape[0]]
    found: tuple[Tensor | None, ...] = _ATEN.convolution_backward(
        cotangent, inputs, weight, sizes, *options, wanted
    )
    return found


def _convolution(
    mode: DoubleBackwardMode,
    func: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    padding = 0 if padding == "valid" else padding
    if isinstance(padding, str) or not _pays(input, weight, bias) or input.ndim != weight.ndim:
        return func(input, weight, bias, stride, padding, dilation, groups)
    dimensions = weight.ndim - 2
    sizes = [_pair(size, dimensions) for size in (stride, padding, dilation)]
    options = (*sizes, False, [0] * dimensions, groups)
    mode.used = True
    return _Convolution.apply(input, weight, bias, options, mode)


class _LayerNorm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        options: tuple[list[int], float],
        mode: DoubleBackwardMode,
    ) -> Tensor:
        shape, eps = options
        outputs, mean, scale = _ATEN.native_layer_norm(inputs, shape, weight, bias, eps)
        ctx.save_for_backward(inputs, weight, bias, mean, scale)
        ctx.shape, ctx.mode = shape, mode
        return outputs

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, bias, mean, scale = ctx.saved_tensors
        compute: Callable[..., Any] = _ATEN.native_layer_norm_backward
        if ctx.mode.linear and torch.is_grad_enabled():
            compute = _LayerNormBackward.apply
            inputs, weight = inputs.detach(), weight if weight is None else weight.detach()
        wanted = list(ctx.needs_input_grad[:3])
        return *compute(cotangent, inputs, ctx.shape, mean, scale, weight, bias, wanted), None, None


class _LayerNormBackward(Function):
    """Linear in the cotangent; its derivative there is that of the layer norm, forwards."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor | None, ...]:
        _, inputs, ctx.shape, mean, scale, weight, _, _ = args
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs, weight, mean, scale)
        found: tuple[Tensor | None, ...] = _ATEN.native_layer_norm_backward(*args)
        return found

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        along_inputs: Tensor | None,
        along_weight: Tensor | None,
        along_bias: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, scale = ctx.saved_tensors
        total = along_bias
        if along_weight is not None:
            part = (inputs - mean) * scale * along_weight
            total = part if total is None else total + part
        if along_inputs is not None:
            # Without a weight, the derivative is its own transpose.
            part, _, _ = _ATEN.native_layer_norm_backward(
                along_inputs, inputs, ctx.shape, mean, scale, None, None, [True, False, False]
            )
            part = part if weight is None else part * weight
            total = part if total is None else total + part
        return total if total is None else total.expand_as(inputs), *(None,) * 7


def _layer_norm(
    mode: DoubleBackwardMode,
    func: Callable[..., Tensor],
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if not mode.will_be_linear or not _pays(input, weight, bias):
        return func(input, normalized_shape, weight, bias, eps)
    mode.used = True
    return _LayerNorm.apply(input, weight, bias, (list(normalized_shape), eps), mode)


def _batch_norm(
    mode: DoubleBackwardMode,
    func: Callable[..., Tensor],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """With frozen statistics, an affine map of each channel; recorded as one."""
    frozen = not training and running_mean is not None and running_var is not None
    if not frozen or not _pays(input, weight, bias) or input.ndim < 2:
        return func(input, running_mean, running_var, weight, bias, training, momentum, eps)
    assert running_mean is not None
    assert running_var is not None
    mode.used = True
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    shift = shift if bias is None else shift + bias
    channels = (-1, *(1,) * (input.ndim - 2))
    return torch.addcmul(shift.view(channels), input, scale.view(channels))


def _weight_norm(
    mode: DoubleBackwardMode, func: Callable[..., Any], v: Tensor, g: Tensor, dim: int = 0
) -> Any:
    """G v / ||v|| step by step: PyTorch's backward pass takes ||v|| for a constant.

    The norm is over all axes but `dim`, over all for -1; the interface returns it beside.
    """
    mode.used = True
    kept = None if dim == -1 and func is torch._weight_norm else dim % v.ndim  # noqa: SLF001
    axes = [axis for axis in range(v.ndim) if axis != kept]
    norm = torch.linalg.vector_norm(v, dim=axes, keepdim=True) if axes else v.abs()
    norm = norm.reshape(()) if kept is None else norm
    weight = v * (g / norm)
    return weight if func is torch._weight_norm else (weight, norm)  # noqa: SLF001


_CORRECTED: dict[Any, Callable[..., Any]] = {
    torch._weight_norm: _weight_norm,  # noqa: SLF001
    torch._weight_norm_interface: _weight_norm,  # noqa: SLF001
}
_RECORDED: dict[Any, Callable[..., Any]] = {
    torch.relu: _relu,
    functional.relu: _relu,
    functional.max_pool2d: _max_pool,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    functional.layer_norm: _layer_norm,
    functional.batch_norm: _batch_norm,
}
