"""Nested arguments: lists of tensors, as `torch.cat` takes them, and dictionaries of inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from undertow.objective import EmpiricalRisk, over_tensors


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


def together(risk: EmpiricalRisk) -> tuple[Any, Tensor]:
    """All samples of a risk as one batch (inputs, targets)."""
    parts = list(risk.batches())
    columns = zip(*(tensors(inputs) for inputs, _ in parts), strict=True)
    joined = iter([torch.cat(column) for column in columns])
    inputs = over_tensors(lambda _: next(joined), parts[0][0])
    return inputs, torch.cat([targets for _, targets in parts])
