"""What is known of a study's trials while it runs: their records, and how they came about.

`run.json` beside the records notes what they cannot say themselves: the seconds that their runs
took, and which trials ran without the others of their group.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from undertow.lab._group import Failed, Group, Ran
from undertow.lab._kinds import unlike
from undertow.lab._records import join_records
from undertow.lab._store import Failure, Store
from undertow.lab._trial import trial_columns

Trials = Mapping[str, Mapping[str, Any]]

_NOTE = "run.json"
_EVERY = 5.0  # seconds between two notes of the time


@dataclass(frozen=True)
class Results:
    """What a study gave.

    Attributes:
        records: by experiment, a row per record in the trials' order: `trial` (its hash), its
            fields, the record's keys.
        failures: of the trials that gave no records.
        computed: how many trials were run, those that failed among them.
        missing: how many trials have neither records nor a failure.
        read: how many trials' records were in the store.
        alone: how many trials' records are of a run by themselves, since another trial of their
            group took it down; their last digits may differ from those of a whole group.
        seconds: what the runs took in which the trials were computed; NaN where it was not noted.
    """

    records: Mapping[str, pl.DataFrame]
    failures: tuple[Failure, ...]
    computed: int = 0
    missing: int = 0
    read: int = 0
    alone: int = 0
    seconds: float = math.nan


@dataclass
class Ledger:
    """The records of a study's trials, read from its store and entered as groups finish.

    Attributes:
        trials: by experiment, its trials by their identities, in order.
        store: where records and failures go.
        frames: the records of the trials that have some, by identity.
    """

    trials: Trials
    store: Store
    frames: dict[str, pl.DataFrame]
    _alone: set[str]
    _seconds: float
    _failed: dict[str, Failure] = field(default_factory=dict)
    _computed: int = 0
    _noted: float = field(default_factory=time.monotonic)

    @classmethod
    def read(cls, trials: Trials, store: Store) -> Ledger:
        """What the store holds; records that do not go with the others count as not there."""
        every = [identity for own in trials.values() for identity in own]
        found = ((identity, store.read(identity)) for identity in every)
        frames = {identity: frame for identity, frame in found if frame is not None}
        alone, seconds = _read_note(store)
        ledger = cls(trials, store, frames, alone & frames.keys(), seconds if frames else 0.0)
        wanted = set(every)
        ledger._failed = {f.trial: f for f in store.failures() if f.trial in wanted - frames.keys()}
        ledger._set_unlike_aside()
        return ledger

    def enter(self, group: Group, ran: Ran) -> int:
        """Store what became of a group; returns how many trials are new.

        A trial keeps the records that it has, unless they are of a run alone and these are not.
        """
        named = list(zip(group.identities, group.trials, ran.outcomes, strict=True))
        new = [identity for identity in group.identities if identity not in self.frames]
        wanted = {*new, *(self._alone.intersection(group.identities) if ran.together else ())}
        gave = {i for i, _, outcome in named if i in wanted and not isinstance(outcome, Failed)}
        if not ran.together and gave:  # before the records are there: none may pass for another
            self._alone |= gave
            self.note()
        for identity, trial, outcome in named:
            if isinstance(outcome, Failed):
                if identity in new:
                    self._fail(identity, trial, outcome)
            elif identity in gave:
                self.store.write_encoded(identity, outcome)
                self.frames[identity] = pl.read_parquet(io.BytesIO(outcome))
                self._failed.pop(identity, None)
        if ran.together and self._alone & gave:
            self._alone -= gave
            self.note()
        if time.monotonic() > self._noted + _EVERY:
            self.note()
        self._computed += len(new)
        return len(new)

    def note(self) -> None:
        """Write down the time taken so far and who ran alone."""
        now = time.monotonic()
        self._seconds += now - self._noted
        self._noted = now
        content = {"seconds": self._seconds, "alone": sorted(self._alone)}
        self.store.write_json(_NOTE, content)

    def results(self, *, read: int) -> Results:
        """What the study gave; `read` of its trials were in the store before."""
        self._set_unlike_aside(noted=self._computed > 0)
        failures = tuple(self._failed[identity] for identity in sorted(self._failed))
        records = {
            name: join_records(self.frames[own] for own in trials if own in self.frames)
            for name, trials in self.trials.items()
        }
        return Results(
            records,
            failures,
            computed=self._computed,
            missing=sum(map(len, self.trials.values())) - len(self.frames) - len(failures),
            read=read,
            alone=len(self._alone & self.frames.keys()),
            seconds=self._seconds,
        )

    def _fail(self, identity: str, trial: Any, failed: Failed, *, noted: bool = True) -> None:
        fields = trial_columns(trial)
        failure = Failure(identity, fields, failed.error, failed.message, failed.traceback)
        self._failed[identity] = failure
        if noted:
            self.store.write_failure(failure)

    def _set_unlike_aside(self, *, noted: bool = False) -> None:
        """Trials whose records cannot stand in a table with the others' have failed."""
        for trials in self.trials.values():
            own = {each: self.frames[each] for each in trials if each in self.frames}
            fields = {"trial"}.union(*(trial_columns(trials[each]) for each in list(own)[:1]))
            for identity, why in unlike(own, fields).items():
                del self.frames[identity]
                self._fail(identity, trials[identity], Failed("TypeError", why), noted=noted)


def _read_note(store: Store) -> tuple[set[str], float]:
    """Who ran alone, and the seconds; none and NaN where there is no note that can be read."""
    try:
        noted = json.loads((store.path / _NOTE).read_bytes())
        return set(map(str, noted["alone"])), float(noted["seconds"])
    except (OSError, ValueError, TypeError, KeyError):
        return set(), math.nan
