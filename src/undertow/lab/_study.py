"""A study: trials, the function that runs them in groups, and a run that survives being killed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from undertow.lab._engine import Failed, GroupFunction, run_groups
from undertow.lab._progress import note, progress_bar
from undertow.lab._store import Store
from undertow.lab._trial import trial_hash


def _one_key(trial: Any) -> Hashable:
    return None


@dataclass(frozen=True)
class Study:
    """Trials, and how to run them.

    Attributes:
        name: what the study is called; a store holds one study.
        trials: frozen dataclasses, each everything that determines its result (see `trial_hash`).
        function: takes a group of trials (a tuple) and returns, for each in order, a sequence of
            flat records (dictionaries of None, booleans, numbers, strings, arrays, or lists of
            these), or an exception instance for a trial that failed. Worker processes import it:
            define it at the top level of a module.
        group: trials for which it gives equal keys may run as one group.
        group_size: the largest group.
        config: the knobs that made the trials, for `config.json`; what JSON can hold.

    Raises:
        ValueError: the same trial twice, or `group_size` below 1.
        TypeError: a trial that has no identity.
    """

    name: str
    trials: tuple[Any, ...]
    function: GroupFunction
    group: Callable[[Any], Hashable] = _one_key
    group_size: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"group_size: expected at least 1, got {self.group_size}")
        seen: set[str] = set()
        for trial, identity in zip(self.trials, self.hashes(), strict=True):
            if identity in seen:
                raise ValueError(f"trials: given twice: {trial!r}")
            seen.add(identity)

    def __repr__(self) -> str:
        return f"study {self.name}: {len(self.trials)} trials in {len(self.groups())} groups"

    def hashes(self) -> tuple[str, ...]:
        """The trials' identities, in the trials' order."""
        return tuple(trial_hash(trial) for trial in self.trials)

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The groups, as indices of trials: equal keys in the trials' order, cut at `group_size`.

        They depend on the study only, never on what is stored: a resumed study runs a trial beside
        the same neighbours as one that was not stopped, and so gets the same digits.
        """
        by_key: dict[Hashable, list[int]] = {}
        for index, trial in enumerate(self.trials):
            by_key.setdefault(self.group(trial), []).append(index)
        return tuple(
            tuple(indices[start : start + self.group_size])
            for indices in by_key.values()
            for start in range(0, len(indices), self.group_size)
        )


def run(
    study: Study,
    store: Store,
    *,
    engine: str = "local",
    workers: int | None = None,
    progress: bool = True,
) -> pl.DataFrame:
    """Run the trials whose records are not in the store yet; returns the records of all of them.

    A group is stored as soon as it is finished, so that a run that was killed, however, goes on
    from there when started again and ends with the records of a run that was not. A trial that
    fails, or whose worker process dies, is stored as a failure (`store.failures()`), the others go
    on, and it is tried again by the next run.

    Args:
        study: what to run.
        store: where the records go; read first for what is there already.
        engine: "local" for worker processes with one computing thread each, or "inline" for this.
        workers: how many processes; by default as many as there are cores. Never more than groups.
        progress: whether to report on standard error.

    Returns:
        A row per record, in the trials' order: `trial` (its hash), its fields, the record's keys.

    Raises:
        ValueError: an unknown engine, or fewer than one worker.
        TypeError: the function cannot be sent to a worker process.
        StoreError: the store holds another study or is in use, or the disk is full.
    """
    hashes = study.hashes()
    with store.exclusive():
        missing = {index for index, identity in enumerate(hashes) if not store.has(identity)}
        groups = [group for group in study.groups() if not missing.isdisjoint(group)]
        finished = run_groups(
            study.function,
            [[study.trials[index] for index in group] for group in groups],
            engine=engine,
            workers=workers,
        )
        store.begin(study.name, study.config)
        total, failed = len(hashes), 0
        stored = total - len(missing)
        try:
            with (
                contextlib.closing(finished),
                progress_bar(study.name, total=total, done=stored, shown=progress) as advance,
            ):
                for index, outcomes in finished:
                    for trial, outcome in zip(groups[index], outcomes, strict=True):
                        if trial not in missing:
                            continue
                        _write(store, study.trials[trial], hashes[trial], outcome)
                        failed += isinstance(outcome, Failed)
                        stored += not isinstance(outcome, Failed)
                        advance(1)
        except KeyboardInterrupt:
            note(
                f"Stopped: {stored} of {total} trials are stored in {store.path}; "
                "run the same command again to go on from there.",
                shown=progress,
            )
            raise
    if failed:
        note(
            f"{failed} of {total} trials failed; why is in {store.path / 'failures'}. "
            "Run again to try them again.",
            shown=progress,
        )
    return store.records(hashes)


def _write(store: Store, trial: Any, identity: str, outcome: bytes | Failed) -> None:
    if isinstance(outcome, Failed):
        store.write_failure(
            trial, error=outcome.error, message=outcome.message, traceback=outcome.traceback
        )
    else:
        store.write_encoded(identity, outcome)
