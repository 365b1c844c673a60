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


def data_folders(name: str) -> list[Path]:
    """Where a dataset may lie in the folder that the environment names."""
    home = os.environ.get("UNDERTOW_DATA")
    return [Path(home, name), Path(home)] if home else []
