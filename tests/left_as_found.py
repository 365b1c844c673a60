"""All that a measurement could leave changed, of a module and of the process."""

from __future__ import annotations

import os
import random
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, type(None))


def snapshot(net: nn.Module) -> list[Any]:
    """Both, to be compared before and after."""
    return [of_module(net), of_process()]


def of_module(net: nn.Module) -> list[Any]:
    """Identity, value, type, version and gradient of all that can be reached from a module."""
    return [part for _, part in _walk(net, "", set())]


def _walk(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    yield path, (path, type(value).__name__)
    if isinstance(value, _PLAIN):
        yield path, repr(value)
        return
    yield path, id(value)
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield path, (value._version, value.data_ptr(), value.requires_grad, value.dtype)
        yield path, value.detach().clone()
        yield from _walk(value.grad if value.is_leaf else None, path + ".grad", seen)
        return
    if isinstance(value, dict):
        parts = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple | deque):
        parts = [(str(index), part) for index, part in enumerate(value)]
    elif isinstance(value, nn.Module):
        parts = list(vars(value).items())
    else:
        return
    yield path, [key for key, _ in parts]
    for key, part in parts:
        yield from _walk(part, f"{path}.{key}", seen)


def of_process() -> list[Any]:
    """Random states, flags of PyTorch, environment, warning filters."""
    flags = torch.backends.cuda
    return [
        torch.get_rng_state(),
        random.getstate(),
        str(np.random.get_state(legacy=False)),  # noqa: NPY002
        dict(os.environ),
        os.getcwd(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        torch.get_num_threads(),
        torch.backends.mha.get_fastpath_enabled(),
        [flags.flash_sdp_enabled(), flags.math_sdp_enabled(), flags.mem_efficient_sdp_enabled()],
        list(map(repr, warnings.filters)),
        id(warnings.showwarning),
        torch._C._len_torch_function_stack(),
        len(nn.modules.module._global_forward_pre_hooks),
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def differences(before: list[Any], after: list[Any]) -> list[Any]:
    """Pairs that are not the same, for a message."""
    return [(a, b) for a, b in zip(before, after, strict=False) if not same(a, b)][:3] or (
        [] if len(before) == len(after) else [(len(before), len(after))]
    )
