"""Reading a store of many trials, beside the Parquet reader called once a file, and scheduling.

A store is written once, without flushing. Both readers then run in turns, each in a fresh process,
for its processor time, its wall time and its peak memory. Scheduling is what a run costs beyond its
trials, which do next to nothing.

    python -m benchmarks.store [--trials 50000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from undertow import lab
from undertow.lab._records import encode_records


@dataclass(frozen=True)
class Point:
    """A trial of the size of those of a claim: nine columns, three rows."""

    seed: int
    width: int = 64
    rate: float = 0.1
    rule: str = "sgd"


def measured(trials: Sequence[Point]) -> list[list[dict[str, object]]]:
    """The records of some trials, in no time."""
    return [
        [
            {"step": step, "loss": trial.seed / (1 + step), "spectrum": [0.5] * (step + 1), "at": 3}
            for step in range(3)
        ]
        for trial in trials
    ]


def study_of(count: int) -> lab.Study:
    """So many trials, in groups of 24."""
    trials = [Point(seed) for seed in range(count)]
    return lab.Study("many", {"points": lab.Experiment(trials, measured, together=("seed",))})


def write(folder: Path, count: int) -> None:
    """A finished store."""
    store = lab.Store(folder)
    (experiment,) = study_of(count).experiments.values()
    (identities,) = study_of(count).identities.values()
    for identity, trial, rows in zip(
        identities, experiment.trials, measured(experiment.trials), strict=True
    ):
        store.write_encoded(identity, encode_records(identity, trial, rows), flush=False)


def ours(folder: Path, count: int) -> int:
    """Rows read by `lab.stored`, every digest checked."""
    return sum(map(len, lab.stored(study_of(count), lab.Store(folder)).records.values()))


def one_by_one(folder: Path, count: int) -> int:
    """Rows read by polars, file by file, nothing checked."""
    return len(pl.concat([pl.read_parquet(path) for path in (folder / "trials").iterdir()]))


READERS: dict[str, Callable[[Path, int], int]] = {"lab.stored": ours, "file by file": one_by_one}


def report_reading(folder: Path, count: int, repeats: int) -> None:
    """Medians of fresh processes, in turns."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in READERS}
    for _ in range(repeats):
        for name, own in found.items():
            command = [sys.executable, "-m", "benchmarks.store", "--read", name, str(folder)]
            done = subprocess.run(
                [*command, "--trials", str(count)], check=True, capture_output=True, text=True
            )
            own.append(tuple(map(float, done.stdout.split())))
    for name, own in found.items():
        wall, processor, peak = map(statistics.median, zip(*own, strict=True))
        print(f"{name:14} {wall:6.2f} s, {processor:6.2f} s of processor, peak {peak:.2f} GB")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.read:
        name, folder = chosen.read
        start, processor = time.perf_counter(), time.process_time()
        READERS[name](Path(folder), chosen.trials)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(time.perf_counter() - start, time.process_time() - processor, peak)
        return
    with tempfile.TemporaryDirectory() as place:
        write(Path(place) / "many", chosen.trials)
        print(f"reading {chosen.trials:,} trials")
        report_reading(Path(place) / "many", chosen.trials, chosen.repeats)
        print("scheduling, milliseconds a trial")
        for engine in ("inline", "local"):
            count, folder = chosen.trials // 10, Path(place) / engine
            start = time.perf_counter()
            lab.run(study_of(count), lab.Store(folder), engine=engine, progress=False)
            print(f"{engine:14} {1e3 * (time.perf_counter() - start) / count:6.2f}")


if __name__ == "__main__":
    main()
