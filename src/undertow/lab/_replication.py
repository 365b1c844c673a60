"""Replication: how often a verdict comes out the same when whole seeds are drawn anew.

The bootstrap (Efron 1979) at the unit of the study. From k seeds k are drawn with replacement, the
rows of each as they stand; the draw is judged as the records were; and so on, some hundred times.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from undertow.lab._cells import percent
from undertow.lab._engine import run_groups
from undertow.lab._grid import check_seed
from undertow.lab._group import Failed, Group
from undertow.lab._intervals import Interval
from undertow.lab._predictions import Verdict
from undertow.lab._progress import progress_bar
from undertow.lab._readings import Records
from undertow.lab._statistics import proportion
from undertow.lab._stop import stoppable

Judge = Callable[[Records], Verdict]

_WORTH_WORKERS = 12.0  # seconds of judging from which it pays to start processes
_CHUNKS = 4  # of the draws, for each worker, so that one that is slow holds up little


@dataclass(frozen=True)
class Replication:
    """How often a verdict repeats when whole seeds are drawn anew.

    Attributes:
        probability: the share of draws with the outcome of the records themselves.
        interval: of that share, 95%, exact; it speaks of how many draws there were, not of seeds.
        weakest: the check that passed in the fewest draws, and the share in which it did.
        checks: the share of draws in which each check passed, by its name.
        draws: how many there were.
        unjudged: how many could not be judged; they count as another outcome, and none of their
            checks as passed.
    """

    probability: float
    interval: Interval
    weakest: tuple[str, float]
    checks: Mapping[str, float] = field(repr=False)
    draws: int
    unjudged: int = 0

    def __repr__(self) -> str:
        return f"replicates {self.words()}"

    def words(self) -> str:
        """The probability with its interval, and the weakest check: for a line of a report."""
        low, high = self.interval
        said = f"in {percent(self.probability)} of {self.draws} redraws of the seeds"
        said += f" [{percent(low)}, {percent(high)}]"
        if self.unjudged:
            said += f", {self.unjudged} of which could not be judged"
        name, share = self.weakest
        if share == 1:
            return f"{said}; every check passed in all of them"
        return f"{said}; weakest check: {name} ({percent(share)})"


def replication(
    judge: Judge,
    records: Records,
    *,
    draws: int = 200,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Replication:
    """How often whole seeds, drawn anew with replacement, are judged as the records are.

    A seed is drawn with all its rows. Experiments that have the same seeds get the same draw, so
    that pairs stay pairs; those with seeds of their own are drawn by themselves. Where some of
    several experiments' seeds are the same, those that the same experiments have are drawn among
    themselves, and every experiment keeps its number of seeds. A draw has the labels of the seeds
    that it stands for, so a seed drawn twice is two seeds; its second copy is of other trials, as
    `trial` says. Rows without a seed, and experiments without a column `seed`, stay as they are.

    The probability is that of the bootstrap: of k seeds it draws with (k - 1) / k of the variance
    that new seeds have, and knows no seed that was not run.

    Args:
        judge: from records to a verdict, the same for the same records. It must cross to another
            process (a function of a module, or a `functools.partial` of one), and read its records
            only.
        records: by experiment.
        draws: how many times the seeds are drawn. Of 200, one in which a check fails is 0.5%.
        seed: from 0 to 2^63 - 1; draw i depends on it and i alone.
        workers: how many processes, at most; one a core by default. What would take less than some
            seconds is judged here, without any.
        progress: whether to report on standard error where it takes longer.

    Raises:
        ValueError: fewer than one draw or worker, a seed out of range, or records without a seed.
        RuntimeError: a worker process died. What judging the records themselves raises passes.
    """
    check_seed(seed)
    for name, count in (("draws", draws), ("workers", workers)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    start = time.monotonic()
    verdict = judge(records)
    took = time.monotonic() - start
    redrawing = _Redrawing(judge, _Parted(records), seed)
    several = workers != 1 and took * draws > _WORTH_WORKERS
    with progress_bar(
        "replication", total=draws, done=0, shown=progress and several, what="draws"
    ) as advance:
        parts = _apart(redrawing, draws, workers) if several else _here(redrawing, draws)
        found = []
        for judged in parts:
            found += judged
            advance(len(judged))
    return _summary(verdict, found)


def _summary(verdict: Verdict, found: Sequence[_Judged]) -> Replication:
    draws = len(found)
    known = [judged for judged in found if judged is not None]
    same = proportion(sum(outcome == verdict.outcome for outcome, _ in known), draws)
    names = [check.name for check in verdict.checks]
    checks = {name: sum(name in passed for _, passed in known) / draws for name in names}
    weakest = min(checks.items(), key=lambda item: item[1], default=("none", 1.0))
    return Replication(same.value, same.interval, weakest, checks, draws, draws - len(known))


# --- a draw -----------------------------------------------------------------------------------


class _Parted:
    """Records, ready to be drawn from.

    Attributes:
        records: by experiment.
    """

    def __init__(self, records: Records) -> None:
        self.records = dict(records)
        self._rows: dict[str, dict[Any, np.ndarray]] = {}
        for name, frame in records.items():
            if "seed" in frame.columns and not frame.is_empty():
                rows = frame.select("seed").with_row_index("row").group_by("seed").agg("row")
                known = rows.drop_nulls("seed").sort("seed")
                self._rows[name] = {
                    seed: np.array(own) for seed, own in known.select("seed", "row").iter_rows()
                }
        if not any(self._rows.values()):
            raise ValueError("records must have a column seed in some experiment, got none")
        having: dict[tuple[str, ...], list[Any]] = {}
        for seed in sorted(set().union(*self._rows.values())):
            having.setdefault(tuple(n for n in self._rows if seed in self._rows[n]), []).append(
                seed
            )
        self._alike = list(having.values())  # seeds of the same experiments

    def drawn(self, generator: np.random.Generator) -> Records:
        """Records with the seeds drawn anew."""
        taken: dict[Any, tuple[Any, int]] = {}  # by label: whose rows, and for which time
        for seeds in self._alike:
            times = dict.fromkeys(seeds, 0)
            for label in seeds:
                source = seeds[int(generator.integers(len(seeds)))]
                taken[label] = source, times[source]
                times[source] += 1
        return {
            name: _relabelled(frame, self._rows[name], taken) if name in self._rows else frame
            for name, frame in self.records.items()
        }


def _relabelled(
    frame: pl.DataFrame, rows: Mapping[Any, np.ndarray], taken: Mapping[Any, tuple[Any, int]]
) -> pl.DataFrame:
    """The rows that each label of a frame takes, in the frame's order, under it."""
    labels = list(rows)
    sources = [taken[label] for label in labels]
    parts = [rows[source] for source, _ in sources]
    lengths = [len(part) for part in parts]
    free = np.setdiff1d(np.arange(len(frame)), np.concatenate(list(rows.values())))
    place = np.concatenate([*parts, free])
    order = np.argsort(place, kind="stable")
    whose = np.repeat(np.arange(len(labels) + 1), [*lengths, len(free)])[order]
    copy = np.array([time for _, time in sources] + [0])[whose]
    chosen = frame[place[order]]
    known = pl.Series("seed", [*labels, None], dtype=frame.schema["seed"])
    columns = [known[whose]]
    if "trial" in frame.columns and copy.any():
        again = pl.format("{}/{}", "trial", pl.Series("copy", copy))
        columns += [
            chosen.select(
                pl.when(pl.Series("again", copy > 0))
                .then(again)
                .otherwise(pl.col("trial").cast(pl.String))
                .alias("trial")
            )["trial"]
        ]
    return chosen.with_columns(columns)


# --- judging draws, here and in worker processes ----------------------------------------------

_Judged = tuple[str, frozenset[str]] | None
"""The outcome of a draw and the names of the checks that passed; None where it raised."""


@dataclass(frozen=True)
class _Redrawing:
    """How a draw is made, and judged."""

    judge: Judge
    parted: _Parted
    seed: int

    def judged(self, draw: int) -> _Judged:
        generator = np.random.default_rng([self.seed, draw])
        try:
            verdict = self.judge(self.parted.drawn(generator))
        except Exception:
            return None
        return verdict.outcome, frozenset(c.name for c in verdict.checks if c.passed)

    def rows(self, chunks: Sequence[_Chunk]) -> list[list[dict[str, Any]]]:
        """The draws of each chunk as records, which is what workers answer with."""
        return [[_row(self.judged(draw)) for draw in range(c.first, c.end)] for c in chunks]


@dataclass(frozen=True)
class _Chunk:
    """The draws from `first` to before `end`."""

    first: int
    end: int


def _row(judged: _Judged) -> dict[str, Any]:
    outcome, passed = judged or (None, ())
    return {"outcome": outcome, "passed": sorted(passed)}


def _here(redrawing: _Redrawing, draws: int) -> Iterator[list[_Judged]]:
    for draw in range(draws):
        yield [redrawing.judged(draw)]


def _apart(redrawing: _Redrawing, draws: int, workers: int | None) -> Iterator[list[_Judged]]:
    from loky import cpu_count

    workers = workers or cpu_count()
    size = -(-draws // (workers * _CHUNKS))
    chunks = [_Chunk(i, min(i + size, draws)) for i in range(0, draws, size)]
    groups = [Group(redrawing.rows, (f"draws {c.first}",), (c,)) for c in chunks]
    with stoppable() as stop:
        ran_groups = run_groups(groups, stop, engine="local", workers=workers)
        with contextlib.closing(ran_groups) as finished:
            for _, ran in finished:
                (outcome,) = ran.outcomes
                if isinstance(outcome, Failed):
                    raise RuntimeError(f"judging redrawn seeds failed: {outcome.message}")
                answered = pl.read_parquet(outcome).select("outcome", "passed")
                yield [None if o is None else (o, frozenset(p)) for o, p in answered.iter_rows()]
        if stop.asked():
            raise KeyboardInterrupt
