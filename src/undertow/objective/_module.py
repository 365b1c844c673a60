"""A module's parameters chosen by name, and its state while it is evaluated."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import reduce, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from undertow.objective._as_written import as_written

Given = ParamSpec("Given")
Result = TypeVar("Result")

_NOTHING = nullcontext()
# An environment variable.
_SET_BY_COMPILER = "TORCHINDUCTOR_CACHE_DIR"
_HALF = (torch.float16, torch.bfloat16)
_AUTOCAST = ("cpu", "cuda", "mps", "xpu")
# What processors, accelerators and their libraries say.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def select(
    model: nn.Module, params: Iterable[str] | Callable[[str, nn.Parameter], bool] | None
) -> tuple[str, ...]:
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        if is_lazy(parameter) or parameter.device.type == "meta":
            raise ValueError(f"parameter {name} has no values yet; run one forward pass first")
    if params is None:
        chosen = [name for name, parameter in named.items() if parameter.requires_grad]
    elif callable(params):
        chosen = [name for name, parameter in named.items() if params(name, parameter)]
    elif isinstance(params, str):
        raise TypeError(f"params must be a list of names or a function; did you mean [{params!r}]")
    else:
        wanted = list(params)
        for name in wanted:
            if name not in named:
                raise ValueError(f"params names {name!r}; the model has {shown(tuple(named))}")
        chosen = [name for name in named if name in wanted]
    places = sorted({str(named[name].device) for name in chosen})
    if len(places) > 1:
        raise ValueError(
            f"parameters are on {' and '.join(places)}: theta is one vector; move the model to one "
            "device, or choose parameters of one with params="
        )
    if not sum(named[name].numel() for name in chosen):
        raise ValueError("params selects no parameter: an objective needs at least one")
    for name in chosen:
        if not named[name].is_floating_point():
            raise TypeError(
                f"parameter {name} is {named[name].dtype}: theta must be real floating-point "
                "numbers; leave it out with params="
            )
    return tuple(chosen)


def shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def product_type(dtype: torch.dtype) -> torch.dtype:
    """What sums and products of numbers of a type are taken in: half precision as single."""
    return torch.float32 if dtype in _HALF else dtype


def widest(tensors: Iterable[Tensor]) -> torch.dtype:
    """The type that holds the numbers of all: what they have in one vector."""
    return reduce(torch.promote_types, [tensor.dtype for tensor in tensors])


def aligned(rows: Tensor) -> Tensor:
    """Rows out of longer ones, in memory of their own where pairs of numbers could not be viewed.

    As complex numbers are, which begin at even places.
    """
    odd = rows.storage_offset() % 2 or (len(rows) > 1 and rows.stride(0) % 2)
    return rows.clone() if odd else rows


def dense(gradient: Tensor) -> Tensor:
    """A gradient as autograd gives it, which of a sparse embedding is sparse, in full."""
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Real and complex floating-point numbers in the precision of `dtype`; all else as it is."""
    return tensor.to(type_in(tensor, dtype))


def differentiable(tensor: Tensor) -> Tensor:
    """A tensor that a graph can hold: a copy of one that inference mode made."""
    return tensor.clone() if tensor.is_inference() else tensor


def type_in(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type that `cast` gives a tensor."""
    if dtype is not None and tensor.is_complex():
        return torch.complex128 if dtype is torch.float64 else torch.complex64
    return tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype


def like_parameters(part: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Inputs in half precision as single where the parameters are no longer half."""
    if part.dtype in _HALF:
        types = {p.dtype for p in parameters.values() if p.is_floating_point()}
        return part if types & set(_HALF) else part.float()
    return part


@contextmanager
def precisely() -> Iterator[None]:
    """Without the caller's autocast and inference mode.

    The one would round products that are to be precise, the other leaves no graph to differentiate.
    Nothing is compiled, nor checkpointed.
    """
    with ExitStack() as stack:
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(as_written())
        yield


def outside_inference_mode(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The function with the caller's inference mode off, whose tensors cannot be worked on."""

    @wraps(function)
    def run(*args: Given.args, **named: Given.kwargs) -> Result:
        if not torch.is_inference_mode_enabled():
            return function(*args, **named)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **named)

    return run


@contextmanager
def unfused() -> Iterator[None]:
    """PyTorch's transformer layers operation by operation, not by their fused kernel."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def own_random_state(model: nn.Module) -> AbstractContextManager[None]:
    """A random state to be thrown away; the one before is put back at the end."""
    devices: set[int | None] = set()
    if torch.cuda.is_initialized():  # otherwise no parameter can be there
        devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    return torch.random.fork_rng(devices=devices)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A random state to be thrown away; the caller's, and its modes, are put back at the end."""
    with own_random_state(model), precisely(), _loading_quietly():
        yield


def _loading_quietly() -> AbstractContextManager[object]:
    """PyTorch's compiler, which many of its functions load first, without what it sets."""
    return _NOTHING if "torch._dynamo" in sys.modules else _without(_SET_BY_COMPILER)


@contextmanager
def _without(name: str) -> Iterator[None]:
    """An environment variable that is not set is not set at the end."""
    unset = name not in os.environ
    try:
        yield
    finally:
        if unset:
            os.environ.pop(name, None)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that the device has no memory left."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)
