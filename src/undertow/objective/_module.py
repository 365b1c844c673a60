"""A module's parameters chosen by name, and its state while it is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

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
    if not chosen:
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


def cast(part: Any, dtype: torch.dtype | None) -> Any:
    """Real floating-point tensors, alone or in a dictionary, in `dtype`; all else as it is."""
    if dtype is None:
        return part
    if isinstance(part, Mapping):
        return {name: cast(value, dtype) for name, value in part.items()}
    return part.to(dtype) if isinstance(part, Tensor) and part.is_floating_point() else part


def like_parameters(part: Any, parameters: Mapping[str, Tensor]) -> Any:
    """Inputs in half precision as single where the parameters are no longer half."""
    if isinstance(part, Tensor) and part.dtype in _HALF:
        types = {p.dtype for p in parameters.values() if p.is_floating_point()}
        return part if types & set(_HALF) else part.float()
    return part


@contextmanager
def precisely() -> Iterator[None]:
    """Without the caller's autocast and inference mode.

    The one would round products that are to be precise, the other leaves no graph to differentiate.
    """
    with ExitStack() as stack:
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        yield


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
    with own_random_state(model), precisely():
        yield


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that the device has no memory left."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)
