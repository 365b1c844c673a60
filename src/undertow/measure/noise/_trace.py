"""What a forward pass does, apart from the numbers: its operations, their sizes, what feeds what.

Two passes with one trace, of operations that never look at values to decide where these go, move
every sample along the same way. It is watched where PyTorch dispatches, so that nothing escapes.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Besides what PyTorch tags as pointwise: operations by which an element of the result comes from
# places that sizes and plain arguments alone decide. Those that are not listed count as led by
# values, which costs time and is never wrong.
_UNIFORM = frozenset(
    [
        "view",
        "_view",
        "reshape",
        "_unsafe_view",
        "_reshape_alias",
        "alias",
        "t",
        "transpose",
        "permute",
        "expand",
        "squeeze",
        "unsqueeze",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "unsafe_split",
        "unsafe_split_with_sizes",
        "unbind",
        "chunk",
        "diagonal",
        "movedim",
        "detach",
        "lift_fresh",
        "view_as_real",
        "view_as_complex",
        "_conj",
        "unfold",
        "narrow",
        "clone",
        "copy",
        "_to_copy",
        "contiguous",
        "cat",
        "stack",
        "repeat",
        "constant_pad_nd",
        "reflection_pad1d",
        "reflection_pad2d",
        "reflection_pad3d",
        "replication_pad1d",
        "replication_pad2d",
        "replication_pad3d",
        "im2col",
        "col2im",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "masked_fill",
        "fill",
        "zero",
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "zeros",
        "zeros_like",
        "ones",
        "ones_like",
        "full",
        "full_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "scalar_tensor",
        "sum",
        "mean",
        "var",
        "std",
        "var_mean",
        "std_mean",
        "amax",
        "amin",
        "aminmax",
        "max",
        "min",
        "prod",
        "any",
        "all",
        "norm",
        "linalg_vector_norm",
        "logsumexp",
        "argmax",
        "argmin",
        "nansum",
        "mm",
        "bmm",
        "addmm",
        "addmv",
        "mv",
        "dot",
        "vdot",
        "baddbmm",
        "addbmm",
        "addr",
        "matmul",
        "linear",
        "bilinear",
        "_trilinear",
        "convolution",
        "_convolution",
        "convolution_overrideable",
        "mkldnn_convolution",
        "cudnn_convolution",
        "mkldnn_linear",
        "native_layer_norm",
        "native_group_norm",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_batch_norm_impl_index",
        "batch_norm",
        "cudnn_batch_norm",
        "batch_norm_with_update",
        "_fused_rms_norm",
        "rms_norm",
        "_softmax",
        "_log_softmax",
        "_safe_softmax",
        "softmax",
        "log_softmax",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "max_pool2d_with_indices",
        "max_pool3d_with_indices",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "adaptive_max_pool2d",
        "adaptive_max_pool3d",
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_nearest3d",
        "_upsample_nearest_exact1d",
        "_upsample_nearest_exact2d",
        "_upsample_nearest_exact3d",
        "upsample_linear1d",
        "upsample_bilinear2d",
        "upsample_bicubic2d",
        "upsample_trilinear3d",
        "_upsample_bilinear2d_aa",
        "embedding",
        "scaled_dot_product_attention",
        "_scaled_dot_product_attention_math",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
        "_fused_sdp_choice",
        "_fft_r2c",
        "_fft_c2r",
        "_fft_c2c",
        "mkldnn_rnn_layer",
        "_thnn_fused_lstm_cell",
        "_thnn_fused_gru_cell",
        "_cudnn_rnn",
        "nll_loss_forward",
        "nll_loss2d_forward",
        "nll_loss",
        "nll_loss2d",
        "_has_compatible_shallow_copy_type",
    ]
)
# The same, but what they do to a sample may depend on its place among the others.
_PLACING = frozenset(
    [
        "arange",
        "linspace",
        "logspace",
        "eye",
        "tril",
        "triu",
        "tril_indices",
        "triu_indices",
        "roll",
        "flip",
        "as_strided",
        "cumsum",
        "cumprod",
        "logcumsumexp",
        "cummax",
        "cummin",
    ]
)


@dataclass
class Trace:
    """Of one forward pass.

    Attributes:
        fixed: operations, and which tensor each of their arguments is.
        sizes: of the arguments, and whole numbers among them.
        placing: where in `sizes` those of an operation begin and end that may tell places apart.
        by_values: whether some operation may have let values decide what goes where.
    """

    fixed: list[Any] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    placing: list[tuple[int, int]] = field(default_factory=list)
    by_values: bool = False

    def __eq__(self, other: object) -> bool:
        """Whether the passes did the same."""
        if not isinstance(other, Trace):
            return NotImplemented
        return self.sizes == other.sizes and self.fixed == other.fixed

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Law:
    """Two traces of one program on other numbers of samples, which all its sizes follow.

    Attributes:
        few: the number of samples of one, and its trace.
        more: of the other.
    """

    few: tuple[int, Trace]
    more: tuple[int, Trace]

    @classmethod
    def of(cls, few: tuple[int, Trace], more: tuple[int, Trace]) -> Law | None:
        """None where sizes alone do not tell what the program does with another number."""
        one, other = few[1], more[1]
        if one.by_values or other.by_values or one.fixed != other.fixed:
            return None
        if len(one.sizes) != len(other.sizes):
            return None
        # A place among the samples is told apart where the sizes grow with their number.
        if any(one.sizes[a:b] != other.sizes[a:b] for a, b in one.placing):
            return None
        return cls(few, more)

    def foretells(self, samples: int, trace: Trace) -> bool:
        """Whether a pass over so many samples did what the two did: each size lies on their line."""
        (small, one), (large, other) = self.few, self.more
        if trace.by_values or trace.fixed != one.fixed or len(trace.sizes) != len(one.sizes):
            return False
        ahead, span = samples - small, large - small
        return all(
            (c - a) * span == (b - a) * ahead
            for a, b, c in zip(one.sizes, other.sizes, trace.sizes, strict=True)
        )


class Tracer(TorchDispatchMode):
    """While active, writes down the trace of what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace()
        self._count = 0
        self._numbers: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs one operation, and notes it."""
        del types
        kwargs = kwargs or {}
        start = len(self.trace.sizes)
        self.trace.fixed.append(func)
        for argument in args:
            self._note(argument)
        for name, argument in kwargs.items():
            self.trace.fixed.append(name)
            self._note(argument)
        output = func(*args, **kwargs)
        kind = _kind(func)
        if kind == "placing":
            self.trace.placing.append((start, len(self.trace.sizes)))
        self.trace.by_values |= kind == "values"
        many = output if isinstance(output, tuple | list) else (output,)
        self.trace.fixed.append(len(many))
        for tensor in many:
            if isinstance(tensor, Tensor):
                self.trace.fixed.append(self._number(tensor))
        return output

    def _note(self, argument: Any) -> None:
        trace = self.trace
        if isinstance(argument, Tensor):
            trace.fixed.append(self._number(argument))
            trace.fixed.append(argument.ndim)
            if argument.layout is torch.strided and not argument.is_nested:
                trace.sizes.extend(argument.shape)
            else:
                trace.by_values = True
        elif isinstance(argument, int):  # true and false too
            trace.sizes.append(argument)
        elif isinstance(argument, tuple | list):
            trace.fixed.append(len(argument))
            for part in argument:
                self._note(part)
        elif argument is None or isinstance(argument, str):
            trace.fixed.append(argument)

    def _number(self, tensor: Tensor) -> int:
        """Tensors are numbered as they come."""
        found = self._numbers.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        self._count += 1
        self._numbers[id(tensor)] = weakref.ref(tensor), self._count
        return self._count


_kinds: dict[Any, str] = {}


def _kind(func: Any) -> str:
    """Of an operation: "uniform", "placing" or "values"."""
    found = _kinds.get(func)
    if found is None:
        space, _, name = func.name().partition("::")
        name = name.partition(".")[0].rstrip("_")
        names = {name, name.removesuffix("_copy")}
        if space not in ("aten", "prims"):
            found = "values"
        elif names & _PLACING:
            found = "placing"
        elif names & _UNIFORM or torch.Tag.pointwise in func.tags:
            found = "uniform"
        else:
            found = "values"
        _kinds[func] = found
    return found
