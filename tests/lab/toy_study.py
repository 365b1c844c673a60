"""A small study for the tests; run as a script it runs in a folder until it is done or killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from undertow import lab


@dataclass(frozen=True)
class Walk:
    seed: int
    steps: int = 3
    pause: float = 0.0
    fate: str = "lives"


def walk(trials: Sequence[Walk]) -> list[Any]:
    """Random walks; each says how many ran beside it, so a group cut differently would show."""
    results: list[Any] = []
    for trial in trials:
        time.sleep(trial.pause)
        match trial.fate:
            case "raises":
                raise RuntimeError(f"walk {trial.seed} is lost")
            case "returns":
                results.append(ArithmeticError("diverged"))
                continue
            case "exits":
                os._exit(7)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        path = np.random.default_rng(trial.seed).normal(size=trial.steps).cumsum()
        results.append(
            [
                {"step": step, "place": place, "path": path[: step + 1], "beside": len(trials)}
                for step, place in enumerate(path)
            ]
        )
    return results


def threads(trials: Sequence[Walk]) -> list[Any]:
    import polars as pl
    import torch

    counts = {"torch": torch.get_num_threads(), "polars": pl.thread_pool_size()}
    return [[counts] for _ in trials]


def killable() -> lab.Study:
    trials = tuple(Walk(seed, pause=0.03) for seed in range(24))
    return lab.Study("walks", trials, walk, group=lambda trial: trial.seed % 2, group_size=3)


if __name__ == "__main__":
    import toy_study  # not as __main__: a class's module is part of its trials' identity

    lab.run(toy_study.killable(), lab.Store(sys.argv[1]), workers=2, progress=False)
