"""A study: experiments, each with its trials and records, and a run that survives being killed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import polars as pl

from undertow.lab._engine import Failed, Group, GroupFunction, run_groups
from undertow.lab._progress import note, progress_bar
from undertow.lab._store import Failure, Store
from undertow.lab._trial import trial_columns, trial_hash


@dataclass(frozen=True)
class Experiment:
    """Trials of one kind, and what runs them. Their records make one frame of like rows.

    Attributes:
        trials: frozen dataclasses, each everything that determines its result (see `trial_hash`).
        run: takes one trial and returns its records: flat dictionaries (of None, booleans, numbers,
            strings, arrays, or lists of these), or one such dictionary. With `together` it takes a
            tuple of trials and returns, for each in order, its records, or an exception instance
            for a trial that failed. Worker processes import it: define it at the top level of a
            module.
        together: the fields in which trials that run as one may differ; none for one by one.
        group_size: the most trials that run as one.

    Raises:
        ValueError: `group_size` below 1, or `together` names no field of the trials.
    """

    trials: Sequence[Any]
    run: Callable[[Any], Any]
    together: tuple[str, ...] = ()
    group_size: int = 24

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {self.group_size}")
        for trial in self.trials[:1]:
            for name in self.together:
                if not hasattr(trial, name):
                    raise ValueError(
                        f"together must name fields of {type(trial).__name__}, got {name!r}"
                    )

    @property
    def function(self) -> GroupFunction:
        """What runs a group of trials."""
        return self.run if self.together else partial(_one_by_one, self.run)

    def groups(self) -> Iterator[tuple[int, ...]]:
        """The groups, as indices of trials: alike in the trials' order, cut at `group_size`.

        They depend on the trials only, never on what is stored: a resumed study runs a trial beside
        the same neighbours as one that was not stopped, and so gets the same digits.
        """
        if not self.together:
            yield from ((index,) for index in range(len(self.trials)))
            return
        alike: dict[Hashable, list[int]] = {}
        for index, trial in enumerate(self.trials):
            names = (f.name for f in dataclasses.fields(trial) if f.name not in self.together)
            key = repr([(name, getattr(trial, name)) for name in names])
            alike.setdefault(key, []).append(index)
        for indices in alike.values():
            for start in range(0, len(indices), self.group_size):
                yield tuple(indices[start : start + self.group_size])


def _one_by_one(run: Callable[[Any], Any], trials: Sequence[Any]) -> list[Any]:
    found = [run(trial) for trial in trials]
    return [[rows] if isinstance(rows, Mapping) else rows for rows in found]


@dataclass(frozen=True)
class Study:
    """Experiments by name, run in this order: the long ones first, so that no worker ends alone.

    Attributes:
        name: what the study is called; a store holds one study.
        experiments: each with its trials.
        config: the knobs that made the trials, for `config.json`; what JSON can hold.

    Raises:
        ValueError: the same trial twice in an experiment.
        TypeError: a trial that has no identity.
    """

    name: str
    experiments: Mapping[str, Experiment]
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for experiment, identities in self.identities.items():
            seen: set[str] = set()
            for trial, identity in zip(
                self.experiments[experiment].trials, identities, strict=True
            ):
                if identity in seen:
                    raise ValueError(f"{experiment}: the same trial is given twice: {trial!r}")
                seen.add(identity)

    @cached_property
    def identities(self) -> Mapping[str, tuple[str, ...]]:
        """The trials' hashes by experiment, in the trials' order; worked out once."""
        return {
            name: tuple(trial_hash(trial, f"{self.name}/{name}") for trial in experiment.trials)
            for name, experiment in self.experiments.items()
        }

    def __repr__(self) -> str:
        groups = sum(1 for experiment in self.experiments.values() for _ in experiment.groups())
        return f"study {self.name}: {len(self)} trials in {groups} groups"

    def __len__(self) -> int:
        return sum(map(len, self.identities.values()))

    def groups(self) -> Iterator[Group]:
        """What runs as one, in order."""
        for name, experiment in self.experiments.items():
            identities, function = self.identities[name], experiment.function
            for indices in experiment.groups():
                yield Group(
                    function,
                    tuple(identities[index] for index in indices),
                    tuple(experiment.trials[index] for index in indices),
                )


@dataclass(frozen=True)
class Results:
    """What a study gave.

    Attributes:
        records: by experiment, a row per record in the trials' order: `trial` (its hash), its
            fields, the record's keys.
        failures: of the trials that gave no records.
        computed: how many trials were run now.
        missing: how many trials have neither records nor a failure.
        stored: how many trials' records were in the store before.
    """

    records: Mapping[str, pl.DataFrame]
    failures: tuple[Failure, ...]
    computed: int = 0
    missing: int = 0
    stored: int = 0


def run(
    study: Study,
    store: Store,
    *,
    engine: str = "local",
    workers: int | None = None,
    progress: bool = True,
) -> Results:
    """Run the trials whose records are not in the store yet; returns the records of all of them.

    A group is stored as soon as it is finished, so that a run that was killed, however, goes on
    from there when started again and ends with the records of a run that was not. A trial that
    fails, or whose worker process dies, is stored as a failure, the others go on, and it is tried
    again by the next run.

    Args:
        study: what to run.
        store: where the records go; read first for what is there already.
        engine: "local" for worker processes with one computing thread each, or "inline" for this.
        workers: how many processes; by default as many as there are cores. Never more than groups.
        progress: whether to report on standard error.

    Raises:
        ValueError: an unknown engine, or fewer than one worker.
        TypeError: a function cannot be sent to a worker process.
        StoreError: the store holds another study or is in use, or the disk is full.
    """
    with store.exclusive():
        records, done = _read(study, store)
        stored = len(done)
        groups = [g for g in study.groups() if not done.issuperset(g.identities)]
        finished = run_groups(groups, engine=engine, workers=workers)
        store.begin(study.name, study.config, computing=bool(groups))
        failures: list[Failure] = []
        try:
            with (
                contextlib.closing(finished),
                progress_bar(study.name, total=len(study), done=stored, shown=progress) as advance,
            ):
                for index, outcomes in finished:
                    group = groups[index]
                    for identity, trial, outcome in zip(
                        group.identities, group.trials, outcomes, strict=True
                    ):
                        if identity in done:
                            continue
                        if isinstance(outcome, Failed):
                            failures.append(_failure(identity, trial, outcome))
                            store.write_failure(failures[-1])
                        else:
                            store.write_encoded(identity, outcome)
                            done.add(identity)
                        advance(1)
        except KeyboardInterrupt:
            note(
                f"Stopped: {len(done)} of {len(study)} trials are stored in {store.path}; "
                "run the same command again to go on from there.",
                shown=progress,
            )
            raise
    if failures:
        note(
            f"{len(failures)} of {len(study)} trials failed; why is in {store.path / 'failures'}. "
            "Run again to try them again.",
            shown=progress,
        )
    if groups:
        records, done = _read(study, store)
    return Results(
        records,
        tuple(failures),
        computed=len(study) - stored,
        missing=len(study) - len(done) - len(failures),
        stored=stored,
    )


def stored(study: Study, store: Store) -> Results:
    """What a store holds of a study, running nothing."""
    records, done = _read(study, store)
    ours = {identity for identities in study.identities.values() for identity in identities}
    failures = tuple(failure for failure in store.failures() if failure.trial in ours - done)
    return Results(
        records,
        failures,
        missing=len(ours) - len(done) - len(failures),
        stored=len(done),
    )


def _read(study: Study, store: Store) -> tuple[dict[str, pl.DataFrame], set[str]]:
    """The records of each experiment, and which trials are there, those without rows too."""
    loaded = {name: store.load(identities) for name, identities in study.identities.items()}
    records = {name: own.frame() for name, own in loaded.items()}
    return records, set[str]().union(*(own.trials for own in loaded.values()))


def _failure(identity: str, trial: Any, failed: Failed) -> Failure:
    fields = trial_columns(trial)
    return Failure(identity, fields, failed.error, failed.message, failed.traceback)
