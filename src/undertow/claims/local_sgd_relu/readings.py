"""What is read of a run's log loss, and when."""

from __future__ import annotations

import numpy as np

READINGS = 15  # of every run after its start, equally spaced


def read_at(rounds: int) -> list[int]:
    """The rounds after which a run is read."""
    return sorted({max(1, round(rounds * part / READINGS)) for part in range(1, READINGS + 1)})


def rates(losses: np.ndarray, expected: np.ndarray) -> dict[str, float | None]:
    """Of the log loss a round: error, slope over all rounds and over the last third, linearity."""
    rounds, logs, known = np.arange(len(losses)), np.log(losses), np.log(expected)
    last = slice(2 * len(losses) // 3, None)
    return {
        "error": float(np.abs(logs - known).max()),
        "rate": slope(rounds, logs),
        "rate_expected": slope(rounds, known),
        "r_squared": linearity(rounds, logs),
        "late": slope(rounds[last], logs[last]),
        "late_expected": slope(rounds[last], known[last]),
    }


def residual_error(path: np.ndarray, known: np.ndarray) -> float:
    """The largest error of the residuals `[readings, n]`, over their norm at the start."""
    errors = np.linalg.norm(path - known, axis=1)
    return float(errors.max() / np.linalg.norm(path[0]))


def linearity(x: np.ndarray, y: np.ndarray) -> float | None:
    """R^2 of y against x; None where y does not move, as of a network none of whose units sees."""
    return float(np.corrcoef(x, y)[0, 1] ** 2) if np.ptp(y) > 0 else None


def slope(x: np.ndarray, y: np.ndarray) -> float | None:
    """Of y on x, by least squares; None of a single point."""
    off = x - x.mean()
    return float(off @ y / (off @ off)) if len(x) > 1 else None
