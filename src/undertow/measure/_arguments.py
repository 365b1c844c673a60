"""What estimates are asked for with: a relative tolerance, and a generator to draw from."""

from __future__ import annotations

import torch


def check_rtol(given: float, name: str = "rtol") -> None:
    """Refuse a tolerance that is no share.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 < given < 1:
        raise ValueError(f"{name} must be between 0 and 1, got {given!r}")


def or_new(generator: torch.Generator | None) -> torch.Generator:
    """The generator, or a new one from 0, so that a call without one draws the same every time."""
    return torch.Generator().manual_seed(0) if generator is None else generator
