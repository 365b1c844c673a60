"""A study: experiments, each with its trials and records, and a run that survives being killed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from undertow.lab._engine import check_engine, run_groups
from undertow.lab._group import Group, GroupFunction
from undertow.lab._ledger import Ledger, Results
from undertow.lab._progress import note, progress_bar
from undertow.lab._stop import stoppable
from undertow.lab._store import Store
from undertow.lab._trial import trial_hash


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

    def by_identity(self) -> dict[str, dict[str, Any]]:
        """The trials of each experiment by their hashes, in order."""
        return {
            name: dict(zip(self.identities[name], experiment.trials, strict=True))
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


def run(
    study: Study,
    store: Store,
    *,
    engine: str = "local",
    workers: int | None = None,
    timeout: float | None = None,
    progress: bool = True,
    again: str = "run the same again",
) -> Results:
    """Run the trials whose records are not in the store yet; returns the records of all of them.

    A group is stored as soon as it is finished, so that a run that was killed, however, goes on
    from there when started again and ends with the records of a run that was not. A trial that
    fails, or whose worker process dies, is stored as a failure, the others go on, and it is tried
    again by the next run. Each group starts from one state of the process, on one thread, its
    global random states seeded by its trials; it leaves none behind.

    Ctrl-C, SIGTERM and SIGHUP end the run: what has finished is stored, workers are ended, and the
    signal takes its usual course. A second one ends the process at once. With the engine "inline"
    the first waits for a library's call to return.

    Args:
        study: what to run.
        store: where the records go; read first for what is there already.
        engine: "local" for worker processes with one computing thread each, or "inline" for this.
        workers: how many processes; by default as many as there are cores. Never more than groups.
        timeout: seconds that a trial may take; then its worker is ended and it has failed. Trials
            that run as one may take as long together as one after the other.
        progress: whether to report on standard error.
        again: how to go on, told when the run is stopped or trials fail.

    Raises:
        ValueError: an unknown engine, fewer than one worker, or a time limit that cannot be kept.
        TypeError: a function cannot be sent to a worker process.
        RuntimeError: worker processes cannot be started.
        StoreError: the store holds another study or is in use, or the disk is full.
    """
    check_engine(engine, workers, timeout)
    with stoppable() as stop, store.exclusive():
        ledger = Ledger.read(study.by_identity(), store)
        before = len(ledger.kinds)
        groups = [g for g in study.groups() if not ledger.kinds.keys() >= set(g.identities)]
        finished = run_groups(groups, stop, engine=engine, workers=workers, timeout=timeout)
        store.begin(study.name, study.config, computing=bool(groups))
        with (
            contextlib.closing(finished),
            progress_bar(study.name, total=len(study), done=before, shown=progress) as advance,
        ):
            try:
                for group, ran in finished:
                    advance(ledger.enter(group, ran))
            except KeyboardInterrupt:
                if not stop.asked():
                    raise
            if groups:
                ledger.note()
        if stop.asked():
            note(
                f"Stopped: {len(ledger.kinds)} of {len(study)} trials are stored in {store.path};"
                f" to go on: {again}",
                shown=progress,
            )
            raise KeyboardInterrupt
        results = ledger.results(read=before)
    _tell(results, store, again, progress)
    return results


def stored(study: Study, store: Store) -> Results:
    """What a store holds of a study, running nothing."""
    ledger = Ledger.read(study.by_identity(), store)
    return ledger.results(read=len(ledger.kinds))


def _tell(results: Results, store: Store, again: str, shown: bool) -> None:
    """Say on standard error what is odd about the results."""
    if failed := len(results.failures):
        total = failed + sum(frame["trial"].n_unique() for frame in results.records.values())
        note(
            f"{failed} of {total} trials failed; why is in {store.path / 'failures'}. To try them"
            f" again: {again}",
            shown=shown,
        )
    if results.alone:
        note(
            f"{results.alone} trials ran alone, since another of their group took it down; their"
            " last digits may differ from those of a whole group.",
            shown=shown,
        )
