"""What a forward pass does, apart from the numbers: its operations, their sizes, what feeds what.

Values can lead samples astray only through an operation that takes places from them (an index, a
sort), or where elements of several samples meet: in a sum or a product over them (a permutation
written as a matrix), or by shifting and choosing. Both are noted, so that passes without either and
with one trace are known to lay out their samples alike. It is watched where PyTorch dispatches, so
that nothing escapes.
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
_UNIFORM = """
    view _view reshape _unsafe_view _reshape_alias alias t transpose permute expand squeeze
    unsqueeze select slice split split_with_sizes unsafe_split unsafe_split_with_sizes unbind
    chunk diagonal movedim detach lift_fresh view_as_real view_as_complex _conj unfold narrow
    clone copy _to_copy contiguous cat stack repeat constant_pad_nd reflection_pad1d
    reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
    im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle masked_fill fill zero
    empty empty_like empty_strided new_empty new_empty_strided zeros zeros_like ones ones_like
    full full_like new_zeros new_ones new_full scalar_tensor
    sum mean var std var_mean std_mean amax amin aminmax max min prod any all norm
    linalg_vector_norm logsumexp argmax argmin nansum
    mm bmm addmm addmv mv dot vdot baddbmm addbmm addr matmul linear bilinear _trilinear
    convolution _convolution convolution_overrideable mkldnn_convolution cudnn_convolution
    mkldnn_linear
    native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit
    _native_batch_norm_legit_no_training _batch_norm_impl_index batch_norm cudnn_batch_norm
    batch_norm_with_update _fused_rms_norm rms_norm
    _softmax _log_softmax _safe_softmax softmax log_softmax
    avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices
    max_pool3d_with_indices adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa
    embedding
    scaled_dot_product_attention _scaled_dot_product_attention_math
    _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_fused_attention_overrideable _fused_sdp_choice
    mkldnn_rnn_layer _thnn_fused_lstm_cell _thnn_fused_gru_cell _cudnn_rnn
    nll_loss_forward nll_loss2d_forward nll_loss nll_loss2d
"""
# Of the same: what they do to an element depends on its place along any axis,
_PLACING = """
    arange linspace logspace eye tril triu tril_indices triu_indices roll flip as_strided cumsum
    cumprod logcumsumexp cummax cummin
"""
# along one axis,
_ALONG = "select slice split split_with_sizes unsafe_split unsafe_split_with_sizes unbind chunk "
_ALONG += "narrow unfold _softmax _log_softmax _safe_softmax softmax log_softmax"
# along all but the first,
_SPATIAL = ("conv", "pool", "upsample", "pad", "scaled_dot_product", "im2col", "col2im", "rnn")
# along those that are named, or all where none is,
_REDUCING = """
    sum mean var std var_mean std_mean amax amin aminmax max min prod any all norm
    linalg_vector_norm logsumexp argmax argmin nansum
"""
# or along the last of the matrix before the last one.
_MATRICES = "mm bmm addmm addmv mv dot vdot baddbmm addbmm matmul linear"


@dataclass
class Trace:
    """Of one forward pass.

    Attributes:
        fixed: operations, and which tensor each of their arguments is.
        sizes: of the arguments, and whole numbers among them.
        meeting: sizes of the axes along which elements meet, or are told apart by their place.
        by_values: whether some operation may have let values decide what goes where.
    """

    fixed: list[Any] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    meeting: list[int] = field(default_factory=list)
    by_values: bool = False

    @property
    def key(self) -> int:
        """To find one that is equal by."""
        return hash(tuple(self.sizes))

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
        # Samples meet, or their places tell, where these sizes grow with their number.
        if one.meeting != other.meeting:
            return None
        return cls(few, more)

    def covers(self, trace: Trace) -> bool:
        """Whether a pass ran the same program, if on other sizes."""
        return not trace.by_values and trace.fixed == self.few[1].fixed

    def foretells(self, samples: int, trace: Trace) -> bool:
        """Whether a pass over so many samples did what the two did, its sizes on their line."""
        (small, one), (large, other) = self.few, self.more
        if not self.covers(trace) or len(trace.sizes) != len(one.sizes):
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
        self.trace.fixed.append(func)
        for argument in args:
            self._note(argument)
        for name, argument in kwargs.items():
            self.trace.fixed.append(name)
            self._note(argument)
        output = func(*args, **kwargs)
        kind = _kind(func)
        self.trace.by_values |= kind == "values"
        if kind not in ("", "values"):
            self.trace.meeting += _meeting(kind, func, args, kwargs, output)
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
    """What an operation may do to samples: "values", a way of meeting, or "" for nothing."""
    found = _kinds.get(func)
    if found is None:
        space, _, name = func.name().partition("::")
        name = name.partition(".")[0].rstrip("_")
        plain = name.removesuffix("_copy")

        def among(names: str) -> bool:
            return not {name, plain}.isdisjoint(names.split())

        if space not in ("aten", "prims"):
            found = "values"
        elif among(_PLACING):
            found = "placing"
        elif torch.Tag.pointwise in func.tags:
            found = ""
        elif not among(_UNIFORM):
            found = "values"
        elif among(_ALONG):
            found = "along"
        elif among(_REDUCING):
            found = "reducing"
        elif among(_MATRICES):
            found = "matrices"
        else:
            found = "spatial" if any(part in name for part in _SPATIAL) else ""
        _kinds[func] = found
    return found


def _meeting(
    kind: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> list[int]:
    """Sizes of the axes along which elements meet in an operation, or their places matter."""
    shapes = [tuple(part.shape) for part in args if isinstance(part, Tensor)]
    if kind == "placing":
        flat = [size for shape in shapes for size in shape]
        return flat + [part for part in args if isinstance(part, int)]
    if kind == "spatial":
        return [size for shape in shapes for size in shape[1:]]
    if kind == "matrices":
        return list(shapes[-2][-1:])
    shape = shapes[0]
    if kind == "along" and isinstance(output, Tensor) and func in _SLICES and output.shape == shape:
        return []  # the slice that is all of it
    place, default = _axis_argument(func)
    axes = kwargs.get("dim", args[place] if place < len(args) else default)
    if axes is None or axes == []:
        return list(shape)
    return [shape[axis] for axis in ((axes,) if isinstance(axes, int) else axes) if shape]


_SLICES = (torch.ops.aten.slice.Tensor,)
_axis_arguments: dict[Any, tuple[int, Any]] = {}


def _axis_argument(func: Any) -> tuple[int, Any]:
    """The place of the argument that names axes, and what it is where it is not given."""
    if func not in _axis_arguments:
        arguments = func._schema.arguments  # noqa: SLF001 (the only name it has)
        places = [i for i, one in enumerate(arguments) if one.name in ("dim", "dimension")]
        place = places[0] if places else len(arguments)
        _axis_arguments[func] = place, arguments[place].default_value if places else None
    return _axis_arguments[func]
