"""Nested arguments: lists of tensors, as `torch.cat` takes them, and dictionaries of inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def flattened(argument: Any) -> Iterator[Any]:
    """Everything in tuples, lists and dictionaries, one after the other."""
    if isinstance(argument, Mapping):
        argument = list(argument.values())
    if isinstance(argument, tuple | list):
        for part in argument:
            yield from flattened(part)
    else:
        yield argument


def tensors(argument: Any) -> Iterator[Tensor]:
    """The tensors among it."""
    return (part for part in flattened(argument) if isinstance(part, Tensor))
