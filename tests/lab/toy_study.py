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
            case "loops":
                while True:
                    pass
            case "holds the interpreter":
                pow(10, 10**10)
        path = np.random.default_rng(trial.seed).normal(size=trial.steps).cumsum()
        results.append(
            [
                {"step": step, "place": place, "path": path[: step + 1], "beside": len(trials)}
                for step, place in enumerate(path)
            ]
        )
    return results


def threads(trial: Walk) -> dict[str, int]:
    import polars as pl
    import torch

    return {"torch": torch.get_num_threads(), "polars": pl.thread_pool_size()}


def walks(*trials: Walk, size: int = 2, name: str = "walks") -> lab.Study:
    """A study of walks, any of which may run beside any other."""
    together = ("seed", "steps", "pause", "fate")
    return lab.Study(name, {"walks": lab.Experiment(trials, walk, together, size)})


def killable() -> lab.Study:
    return walks(*(Walk(seed, pause=0.1) for seed in range(24)), size=3)


def stuck(fate: str) -> lab.Study:
    """A group that comes to an end, then one that does not."""
    return walks(Walk(0), Walk(1), Walk(2, fate=fate), size=2)


if __name__ == "__main__":
    import toy_study  # not as __main__, which worker processes could not import

    folder, *fates = sys.argv[1:]
    made = toy_study.stuck(*fates) if fates else toy_study.killable()
    lab.run(made, lab.Store(folder), workers=2, progress=bool(fates))
