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
    """All samples of a risk as one batch (inputs, targets).

    Raises:
        ValueError: samples of one batch of the data differ in shape from those of another.
    """
    parts = list(risk.batches())
    columns = [
        *zip(*(tensors(inputs) for inputs, _ in parts), strict=True),
        [targets for _, targets in parts],
    ]
    for column in columns:
        shapes = {tuple(tensor.shape[1:]) for tensor in column}
        if len(shapes) > 1:
            one, other = sorted(shapes)[:2]
            raise ValueError(
                f"samples must be of one shape to be drawn together, got {one} and {other}: pad "
                "them alike"
            )
    *joined, targets = (torch.cat(list(column)) for column in columns)
    rest = iter(joined)
    return over_tensors(lambda _: next(rest), parts[0][0]), targets
