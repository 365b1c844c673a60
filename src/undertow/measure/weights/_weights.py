"""Which weight matrices a model or a state dict has, and how each tensor becomes a matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from undertow.objective import StandIn, evaluating, original

Include = Callable[[str], bool] | Iterable[str] | None


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """A named weight; a convolution's also as its kernel `[c_out, c_in / groups, *taps]`."""

    name: str
    matrix: Float[Tensor, "rows cols"]
    kernel: Tensor | None = None
    groups: int = 1
    dilation: tuple[int, ...] | None = None


def weight_matrices(
    model_or_state_dict: nn.Module | Mapping[str, Any],
    include: Include = None,
    *,
    check_finite: bool = True,
    once: bool = True,
) -> tuple[list[WeightMatrix], tuple[str, ...]]:
    """Every weight matrix with its name, and a note on each tensor that was left out.

    Names are those of the state dict; a packed attention projection gives three, named as
    PyTorch names them where they are stored apart. Tensors that share memory are given once, or
    by every name with `once=False`. With `check_finite=False` no value is read, so that
    tensors mapped from a file stay there.

    Raises:
        TypeError: if the argument is neither a module nor a mapping.
        ValueError: if a weight has no values yet, is not finite, or nothing is left to measure.
    """
    if isinstance(model_or_state_dict, nn.Module):
        found = _of_module(model_or_state_dict)
    elif isinstance(model_or_state_dict, Mapping):
        found = _of_mapping(model_or_state_dict)
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
        stored = item.matrix if item.kernel is None else item.kernel
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
    for path, module in original(model).named_modules():
        if "parametrizations" in path.split("."):  # seen through the module that they belong to
            continue
        prefix = f"{path}." if path else ""
        kind = type(module).__module__
        if kind.startswith("torch.") and "quantized" in kind:
            yield f"{prefix}weight is quantised and was skipped"
        elif isinstance(module, _ConvNd):
            yield from _of_convolution(prefix, module)
        elif isinstance(module, nn.MultiheadAttention):
            for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                tensor = _value(module, name)
                if tensor is not None:
                    yield from _of_tensor(prefix + name, tensor)
        elif isinstance(module, nn.Linear | nn.Embedding | nn.EmbeddingBag):
            tensor = _value(module, "weight")
            if tensor is not None:
                yield from _of_tensor(f"{prefix}weight", tensor)
        else:
            own = [name for name, _ in module.named_parameters(recurse=False)]
            computed = list(module.parametrizations) if is_parametrized(module) else []
            for name in own + computed:
                tensor = _value(module, name)
                if tensor is not None:
                    yield from _of_tensor(prefix + name, tensor)


def _of_convolution(prefix: str, module: _ConvNd) -> Iterator[WeightMatrix | str]:
    weight = _value(module, "weight")
    if weight is None:
        return
    name = f"{prefix}weight"
    problem = _problem(name, weight)
    if problem is not None:
        yield problem
        return
    kernel = weight
    if isinstance(module, _ConvTransposeNd):
        # Stored c_in x (c_out / groups): the group moves from the first axis to the second.
        split = weight.unflatten(0, (module.groups, -1))
        kernel = split.transpose(1, 2).flatten(0, 1)
    yield WeightMatrix(name, kernel.flatten(1), kernel, module.groups, tuple(module.dilation))


def _of_mapping(state: Mapping[str, Any]) -> Iterator[WeightMatrix | str]:
    nested = [name for name, value in state.items() if isinstance(value, Mapping)]
    arrays = {k: v for k, v in state.items() if isinstance(v, Tensor | np.ndarray)}
    if nested and not arrays:
        raise ValueError(
            "model_or_state_dict is a mapping of mappings, as a training checkpoint is; "
            f"pass one of its entries, such as checkpoint[{nested[0]!r}]"
        )
    for name, value in arrays.items():
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "fciub":
                continue
            if value.dtype.kind == "f" and value.dtype.itemsize > 8:  # torch has no such type
                value = value.astype(np.float64)
            value = value.astype(value.dtype.newbyteorder("="), copy=False)
            # torch shares memory only with writable arrays of positive strides.
            value = torch.from_numpy(np.require(value, requirements=["C", "W"]))
        yield from _of_tensor(str(name), value)


def _value(module: nn.Module, name: str) -> Tensor | None:
    """A weight as the forward pass sees it, without moving buffers such as power iterations."""
    if is_parametrized(module, name):
        stand_in = StandIn(module)
        with evaluating(module), torch.no_grad():
            value = stand_in.apply(stand_in.own(), lambda copied, _: getattr(copied, name))
    else:
        value = getattr(module, name)
    if not isinstance(value, Tensor):
        return None
    return value if is_lazy(value) else value.detach()


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


def _of_tensor(name: str, tensor: Tensor) -> Iterator[WeightMatrix | str]:
    """A tensor whose layer is not known: its first axis against the rest."""
    if is_lazy(tensor) or tensor.ndim >= 2:
        problem = _problem(name, tensor)
        if problem is not None:
            yield problem
            return
        tensor = tensor.detach()
        stem = name.removesuffix("in_proj_weight")
        if name != stem and tensor.ndim == 2 and tensor.shape[0] % 3 == 0:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                yield WeightMatrix(f"{stem}{letter}_proj_weight", part)
        else:
            kernel = tensor if 3 <= tensor.ndim <= 5 else None
            yield WeightMatrix(name, tensor.flatten(1), kernel)
