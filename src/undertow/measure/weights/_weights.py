"""Which weight matrices a model or a state dict has, and how each tensor becomes a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from undertow.measure.weights._layouts import (
    Layout,
    Sibling,
    is_no_weight,
    layout_in_module,
    layout_of,
    stacked,
)
from undertow.measure.weights._scaled import expanded, part_of, scale_of
from undertow.measure.weights._sharded import gathered
from undertow.objective import StandIn, evaluating, original

_EIGHT_BITS = {
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
}
Include = Callable[[str], bool] | Iterable[str] | None


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """A named weight; a convolution's also as its kernel `[c_out, c_in / groups, *taps]`.

    `stored` is the tensor that the model or the file holds. Where that is quantised, `matrix`
    multiplies it by its `scale`, anew at every call, so that many of them take no memory.
    """

    name: str
    stored: Shaped[Tensor, "rows cols"]
    kernel: Tensor | None = None
    groups: int = 1
    dilation: tuple[int, ...] | None = None
    scale: Tensor | None = None

    @property
    def matrix(self) -> Float[Tensor, "rows cols"]:
        """The weight itself."""
        if self.scale is None:
            return self.stored
        wide = expanded(self.scale, *self.stored.shape)
        assert wide is not None  # its shape was checked
        return self.stored.to(torch.float32) * wide

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, cols = self.stored.shape
        return rows, cols


def weight_matrices(
    model_or_state_dict: nn.Module | Mapping[str, Any],
    include: Include = None,
    *,
    check_finite: bool = True,
    once: bool = True,
    like: nn.Module | None = None,
) -> tuple[list[WeightMatrix], tuple[str, ...]]:
    """Every weight matrix with its name, and a note on each tensor that was left out.

    Names are those of the state dict; a packed attention projection gives three, named as
    PyTorch names them where they are stored apart, and a stack of experts as many as it holds,
    `experts.up_proj[0]` and so on. Tensors that share memory are given once, or by every name
    with `once=False`. Sharded ones (`DTensor`) are gathered, in the memory of each process; of a
    compiled or wrapped module the one inside is read. With `check_finite=False` no value is read,
    so that tensors mapped from a file stay there. With `like`, tensors of a mapping are laid out
    as that module's of the same names; else by the bias beside them, their names and their sizes,
    and a note says what was assumed.

    Raises:
        TypeError: if the argument is neither a module nor a mapping.
        ValueError: if a weight has no values yet, is not finite, or nothing is left to measure.
    """
    if isinstance(model_or_state_dict, nn.Module):
        found = _of_module(model_or_state_dict)
    elif isinstance(model_or_state_dict, Mapping):
        found = _of_mapping(model_or_state_dict, like)
    else:
        raise TypeError(
            "model_or_state_dict must be an nn.Module or a mapping from names to tensors, "
            f"got {type(model_or_state_dict).__name__}"
        )
    matrices: list[WeightMatrix] = []
    notes: list[str] = []
    first_name: dict[tuple[object, ...], str] = {}
    for item in found:
        if isinstance(item, str):
            notes.append(item)
            continue
        stored = item.stored if item.kernel is None else item.kernel
        place = (stored.data_ptr(), tuple(stored.shape), stored.stride(), stored.device)
        if once and place in first_name:
            notes.append(f"{item.name} is the same tensor as {first_name[place]}; reported once")
            continue
        first_name[place] = item.name
        matrices.append(item)
    chosen = _choose(matrices, include)
    if not chosen:
        reasons = "".join(f"; {note}" for note in notes)
        raise ValueError(
            "model_or_state_dict has no weight matrix to measure: it needs a floating-point "
            f"tensor with two or more dimensions{reasons}"
        )
    for item in chosen if check_finite else ():
        if not is_finite(item.matrix):
            raise ValueError(f"{item.name} holds infinities or NaN, so it has no singular values")
    return chosen, tuple(notes)


def is_finite(matrix: Tensor) -> bool:
    """Whether no entry is infinite or NaN.

    The extremes tell, in one pass and without a mask as large as the matrix.
    """
    return bool(torch.isfinite(torch.stack(torch.aminmax(matrix))).all())


def _choose(matrices: list[WeightMatrix], include: Include) -> list[WeightMatrix]:
    if include is None:
        return matrices
    if isinstance(include, str):
        raise TypeError(
            f"include must be a list of names or a function; did you mean [{include!r}]"
        )
    if callable(include):
        return [item for item in matrices if include(item.name)]
    wanted = list(include)
    names = [item.name for item in matrices]
    for name in wanted:
        if name not in names:
            near = get_close_matches(name, names, n=3) or names[:3]
            raise ValueError(f"include names {name!r}, which is not a weight matrix; near: {near}")
    return [item for item in matrices if item.name in wanted]


def _of_module(model: nn.Module) -> Iterator[WeightMatrix | str]:
    seen: dict[Any, Tensor] = {}
    for path, module in original(model).named_modules():
        if "parametrizations" in path.split("."):  # seen through the module that they belong to
            continue
        prefix = f"{path}." if path else ""
        kind = type(module).__module__
        if kind.startswith("torch.") and "quantized" in kind:
            yield f"{prefix}weight is quantised and was skipped"
        elif isinstance(module, _ConvNd):
            yield from _of_convolution(prefix, module, _value(module, "weight", seen))
        elif isinstance(module, nn.MultiheadAttention):
            for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                tensor = _value(module, name, seen)
                if tensor is not None:
                    yield from _of_tensor(prefix + name, tensor)
        elif isinstance(module, nn.Linear | nn.Embedding | nn.EmbeddingBag):
            tensor = _value(module, "weight", seen)
            if tensor is not None:
                yield from _of_tensor(f"{prefix}weight", tensor)
        else:
            own = [name for name, _ in module.named_parameters(recurse=False)]
            computed = list(module.parametrizations) if is_parametrized(module) else []
            for name in own + computed:
                tensor = _value(module, name, seen)
                if tensor is not None and not is_no_weight(name, _nothing):
                    yield from _of_parameter(prefix + name, tensor, module)


def _nothing(_: str) -> None:
    return None


def _of_parameter(name: str, tensor: Tensor, module: nn.Module) -> Iterator[WeightMatrix | str]:
    """A parameter of a module that torch does not know."""
    if is_lazy(tensor) or tensor.ndim <= 2:
        yield from _of_tensor(name, tensor)
    else:
        yield from _laid_out(name, tensor, layout_in_module(module, name, tensor))


def _of_convolution(
    prefix: str, module: _ConvNd, weight: Tensor | None
) -> Iterator[WeightMatrix | str]:
    """A convolution's weight, or one that is laid out as it is."""
    if weight is None:
        return
    name = f"{prefix}weight"
    problem = _problem(name, weight)
    if problem is not None:
        yield problem
        return
    kernel = weight
    if isinstance(module, _ConvTransposeNd):
        kernel = _turned(weight, module.groups)
    yield WeightMatrix(name, kernel.flatten(1), kernel, module.groups, tuple(module.dilation))


def _turned(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's kernel, stored c_in x (c_out / groups), as an ordinary one's.

    The group moves from the first axis to the second.
    """
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _of_mapping(
    state: Mapping[str, Any], like: nn.Module | None = None
) -> Iterator[WeightMatrix | str]:
    nested = [name for name, value in state.items() if isinstance(value, Mapping)]
    seen: dict[Any, Tensor] = {}
    arrays = {k: gathered(v, seen) for k, v in state.items() if isinstance(v, Tensor | np.ndarray)}
    if nested and not arrays:
        raise ValueError(
            "model_or_state_dict is a mapping of mappings, as a training checkpoint is; "
            f"pass one of its entries, such as checkpoint[{nested[0]!r}]"
        )
    owners = {} if like is None else dict(original(like).named_modules(remove_duplicate=False))

    def sibling(name: str) -> Tensor | None:
        return _as_tensor(arrays.get(name))

    for key, value in arrays.items():
        tensor, name = _as_tensor(value), str(key)
        if tensor is None:
            continue
        path, _, last = name.rpartition(".")
        owner = owners.get(path.replace("_orig_mod.", ""))
        if tensor.ndim >= 2 and is_no_weight(name, sibling):
            continue
        if isinstance(owner, _ConvNd) and last == "weight" and tensor.ndim == owner.weight.ndim:
            yield from _of_convolution(f"{path}.".lstrip("."), owner, tensor.detach())
        elif is_lazy(tensor) or tensor.ndim <= 2 or tensor.device.type == "meta":
            yield from _of_tensor(name, tensor, sibling)
        else:
            known = owner is not None and last in dict(owner.named_parameters(recurse=False))
            layout = (
                layout_in_module(owner, name, tensor)
                if owner is not None and known
                else layout_of(name, tensor, sibling)
            )
            yield from _laid_out(name, tensor.detach(), layout, sibling)


def _as_tensor(value: Any) -> Tensor | None:
    """A tensor, or an array of numbers as one that shares its memory where it can."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fciub":
        return None
    if value.dtype.kind == "f" and value.dtype.itemsize > 8:  # torch has no such type
        value = value.astype(np.float64)
    value = value.astype(value.dtype.newbyteorder("="), copy=False)
    # torch shares memory only with writable arrays of positive strides.
    return torch.from_numpy(np.require(value, requirements=["C", "W"]))


def _value(module: nn.Module, name: str, seen: dict[Any, Tensor]) -> Tensor | None:
    """A weight as the forward pass sees it, without moving buffers such as power iterations."""
    if is_parametrized(module, name):
        stand_in = StandIn(module)
        with evaluating(module), torch.no_grad():
            value = stand_in.apply(stand_in.own(), lambda copied, _: getattr(copied, name))
    else:
        value = getattr(module, name)
    if not isinstance(value, Tensor):
        return None
    return value if is_lazy(value) else gathered(value.detach(), seen)


def _problem(name: str, tensor: Tensor) -> str | None:
    """Why a tensor is left out of the measurement, or None if it is not."""
    if is_lazy(tensor) or tensor.device.type == "meta":
        state = "lazy" if is_lazy(tensor) else "on the meta device"
        raise ValueError(
            f"{name} has no values yet (it is {state}); run a forward pass or load weights first"
        )
    if tensor.is_quantized or (tensor.is_floating_point() and tensor.dtype.itemsize == 1):
        return f"{name} is quantised ({tensor.dtype}) and was skipped"
    if tensor.layout != torch.strided:
        return f"{name} is sparse and was skipped"
    if not tensor.is_floating_point():
        return f"{name} has dtype {tensor.dtype}, which is not a real number's, and was skipped"
    if tensor.numel() == 0:
        return f"{name} has no elements (shape {tuple(tensor.shape)}) and was skipped"
    return None


def _of_tensor(
    name: str, tensor: Tensor, sibling: Sibling = _nothing
) -> Iterator[WeightMatrix | str]:
    """A tensor of at most two axes: a matrix, three of a packed projection, or none."""
    if not is_lazy(tensor) and tensor.ndim < 2:
        return
    scale = _scale(name, tensor, sibling)
    problem = scale if isinstance(scale, str) else None
    problem = _problem(name, tensor) if scale is None else problem
    if problem is not None:
        yield problem
        return
    tensor = tensor.detach()
    stem = name.removesuffix("in_proj_weight")
    if name != stem and tensor.shape[0] % 3 == 0 and scale is None:
        for letter, part in zip("qkv", tensor.chunk(3), strict=True):
            yield WeightMatrix(f"{stem}{letter}_proj_weight", part)
    elif tensor.ndim == 2:
        yield WeightMatrix(name, tensor, scale=scale if isinstance(scale, Tensor) else None)


def _scale(name: str, tensor: Tensor, sibling: Sibling) -> Tensor | str | None:
    """What eight-bit floats are multiplied by, why they cannot be, or None of other tensors."""
    if is_lazy(tensor) or tensor.dtype not in _EIGHT_BITS or tensor.device.type == "meta":
        return None
    scale = scale_of(name, tensor, sibling)
    return f"{name} {scale} and was skipped" if isinstance(scale, str) else scale


def _laid_out(
    name: str, tensor: Tensor, layout: Layout, sibling: Sibling = _nothing
) -> Iterator[WeightMatrix | str]:
    """The matrices of a tensor of three or more axes."""
    scale = _scale(name, tensor, sibling)
    problem = scale if isinstance(scale, str) else None
    problem = _problem(name, tensor) if scale is None else problem
    if problem is None and layout.kind == "unknown":
        problem = f"{name} has {tensor.ndim} axes, which may be anything, and was skipped"
    if problem is None and layout.kind != "stack" and isinstance(scale, Tensor):
        problem = f"{name} is a quantised kernel ({tensor.dtype}) and was skipped"
    if problem is not None or layout.kind == "vector":
        if problem is not None:
            yield problem
        return
    if layout.assumed:
        yield f"{name} {layout.assumed}"
    if layout.kind != "stack":
        kernel = _turned(tensor, layout.groups) if layout.kind == "transposed" else tensor
        yield WeightMatrix(name, kernel.flatten(1), kernel)
        return
    *lead, rows, cols = stacked(tensor).shape
    count = math.prod(lead)
    matrices = tensor.reshape(count, rows, cols)
    for number, place in enumerate(np.ndindex(*lead)):
        part = None
        if isinstance(scale, Tensor):
            part = part_of(scale, number, count)
            if expanded(part, rows, cols, probe=True) is None:
                yield f"{name} is quantised with a scale {tuple(scale.shape)} and was skipped"
                return
        index = f"[{', '.join(map(str, place))}]" if count > 1 else ""
        yield WeightMatrix(f"{name}{index}", matrices[number], scale=part)
