"""Small tables of measurements as matrices: what matrix completion is tried on."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.data._load import load

_IMAGES: dict[str, dict[str, Any]] = {
    "digits": {"name": "digits"},
    "garments": {"name": "fashion-mnist", "train_size": 3_000},
}
_VARIES = 0.3  # the least standard deviation of a pixel, in units of all pixels'


def load_table(name: str) -> Float64[Tensor, "rows columns"]:
    """A table that comes with scikit-learn, or of Fashion-MNIST; a row for each sample.

    `digits`: the training images of `load("digits")`, without the pixels that hardly vary.
    `garments`: the same of 3,000 images of `load("fashion-mnist")`.
    `tumours`: lengths, areas and their spreads of 569 breast tumours (30 columns). They are
    logarithms, since radius and area say the same; every column has mean zero and variance one.

    Args:
        name: `digits`, `tumours` or `garments`.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: `garments` where Fashion-MNIST is not on this machine.
    """
    if name in _IMAGES:
        pixels = load(**_IMAGES[name]).train_inputs.flatten(1).double()
        return pixels[:, pixels.std(0) > _VARIES]
    if name == "tumours":
        from sklearn.datasets import load_breast_cancer

        table = torch.from_numpy(load_breast_cancer().data)
        table = torch.log(table + 1e-3 * table.mean(0))  # some are zero
        return (table - table.mean(0)) / table.std(0)
    raise ValueError(f"name must be digits, tumours or garments, got {name!r}")


def draw_table(
    name: str, rows: int, columns: int, *, generator: torch.Generator
) -> Float64[Tensor, "rows columns"]:
    """Some rows and columns of `load_table(name)`, drawn at random without replacement.

    Args:
        name: as in `load_table`.
        rows: how many, at most the table's.
        columns: likewise.
        generator: of the draw.

    Raises:
        ValueError: more rows or columns than there are; and as `load_table`.
        FileNotFoundError: as `load_table`.
    """
    table = load_table(name)
    if rows > len(table) or columns > table.shape[1]:
        raise ValueError(f"{name} has at most {tuple(table.shape)}, got {(rows, columns)}")
    chosen, across = (
        torch.randperm(most, generator=generator)[:size]
        for most, size in zip(table.shape, (rows, columns), strict=True)
    )
    return table[chosen][:, across]
