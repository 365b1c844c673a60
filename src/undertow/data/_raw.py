"""A dataset as its files hold it, and where a user says that files lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class RawData:
    """One dataset as it was read: images `[n, channels, height, width]` and labels `[n]`.

    A dataset that is published in one piece has no `test`.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray] | None
    source: str


def check_subset(argument: str, size: int | None, classes: int, available: int) -> None:
    """Refuse a subset of fewer images than classes, or of more than there are."""
    if size is not None and not classes <= size <= available:
        raise ValueError(
            f"{argument}={size} is out of range: give {classes} (one image a class)"
            f" to {available:,} (all there are)."
        )


def check_side(image_size: int | None, side: int) -> None:
    """Refuse a side that images of another cannot be averaged to."""
    if image_size is not None and (image_size < 1 or side % image_size):
        divisors = [str(d) for d in range(1, side + 1) if side % d == 0]
        raise ValueError(
            f"image_size={image_size} does not divide the images' {side}; give one of"
            f" {', '.join(divisors)}."
        )


def check_windows(argument: str, size: int | None, context: int, length: int) -> int:
    """How many windows a text has; refuses a context that leaves none, or more windows than so."""
    available = (length - 1) // context
    if size is not None and not 1 <= size <= available:
        raise ValueError(f"{argument}={size} is out of range: give 1 to {available:,}.")
    return available


def check_context(context: int, length: int) -> int:
    """Where the test part of a text begins; refuses a context that leaves it no window."""
    boundary = length * 4 // 5
    longest = (length - boundary) - 1
    if not 1 <= context <= longest:
        raise ValueError(
            f"context={context} is out of range: give 1 to {longest:,} (one test window)."
        )
    return boundary


def data_folders(name: str) -> list[Path]:
    """Where a dataset may lie in the folder that the environment names."""
    home = os.environ.get("UNDERTOW_DATA")
    return [Path(home, name), Path(home)] if home else []
