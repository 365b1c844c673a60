"""What is known of a study's trials while it runs: their records, and how they came about.

`run.json` beside the records notes what they cannot say themselves: the seconds that their runs
took, and which trials ran without the others of their group.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from undertow.lab._group import Failed, Group, Ran
from undertow.lab._kinds import unlike
from undertow.lab._records import Loaded
from undertow.lab._seal import kind_of
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

    Records are in the store; what is kept here of each trial while others run is their kind.

    Attributes:
        trials: by experiment, its trials by their identities, in order.
        store: where records and failures go.
        kinds: of the trials that have records, by identity, the kind of their files.
    """

    trials: Trials
    store: Store
    kinds: dict[str, bytes] = field(default_factory=dict)
    _schemas: dict[bytes, pl.Schema] = field(default_factory=dict)
    _loaded: dict[str, Loaded] = field(default_factory=dict)
    _alone: set[str] = field(default_factory=set)
    _seconds: float = 0.0
    _failed: dict[str, Failure] = field(default_factory=dict)
    _computed: int = 0
    _noted: float = field(default_factory=time.monotonic)

    @classmethod
    def read(cls, trials: Trials, store: Store) -> Ledger:
        """What the store holds; records that do not go with the others count as not there."""
        ledger = cls(trials, store)
        ledger._load()
        alone, seconds = _read_note(store)
        if ledger.kinds:
            ledger._alone, ledger._seconds = alone & ledger.kinds.keys(), seconds
        wanted = {identity for own in trials.values() for identity in own} - ledger.kinds.keys()
        ledger._failed = {f.trial: f for f in store.failures() if f.trial in wanted}
        ledger._set_unlike_aside()
        return ledger

    def enter(self, group: Group, ran: Ran) -> int:
        """Store what became of a group; returns how many trials are new.

        A trial keeps the records that it has, unless they are of a run alone and these are not.
        """
        self._loaded = {}  # read again when all are there
        named = list(zip(group.identities, group.trials, ran.outcomes, strict=True))
        new = [identity for identity in group.identities if identity not in self.kinds]
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
                self._keep(identity, outcome)
        if ran.together and self._alone & gave:
            self._alone -= gave
            self.note()
        if time.monotonic() > self._noted + _EVERY:
            self.note()
        self._computed += len(new)
        return len(new)

    def _keep(self, identity: str, outcome: bytes) -> None:
        self.store.write_encoded(identity, outcome, flush=False)
        kind = self.kinds[identity] = kind_of(outcome)
        if kind not in self._schemas:
            self._schemas[kind] = pl.read_parquet(io.BytesIO(outcome)).schema
        self._failed.pop(identity, None)

    def note(self) -> None:
        """Write down the time taken so far and who ran alone; see that records are on the disk."""
        now = time.monotonic()
        self._seconds += now - self._noted
        self._noted = now
        self.store.flush()
        self.store.write_json(_NOTE, {"seconds": self._seconds, "alone": sorted(self._alone)})

    def results(self, *, read: int) -> Results:
        """What the study gave; `read` of its trials were in the store before."""
        if not self._loaded:
            self._load()
        self._set_unlike_aside(noted=self._computed > 0)
        failures = tuple(self._failed[identity] for identity in sorted(self._failed))
        return Results(
            {name: self._kept(loaded).frame() for name, loaded in self._loaded.items()},
            failures,
            computed=self._computed,
            missing=sum(map(len, self.trials.values())) - len(self.kinds) - len(failures),
            read=read,
            alone=len(self._alone & self.kinds.keys()),
            seconds=self._seconds,
        )

    def _load(self) -> None:
        self._loaded = {name: self.store.load(trials) for name, trials in self.trials.items()}
        self.kinds, self._schemas = {}, {}
        for loaded in self._loaded.values():
            self.kinds |= loaded.trials
            self._schemas |= loaded.schemas()

    def _kept(self, loaded: Loaded) -> Loaded:
        left_out = loaded.trials.keys() - self.kinds.keys()
        return loaded.without(left_out) if left_out else loaded

    def _fail(self, identity: str, trial: Any, failed: Failed, *, noted: bool = True) -> None:
        fields = trial_columns(trial)
        failure = Failure(identity, fields, failed.error, failed.message, failed.traceback)
        self._failed[identity] = failure
        if noted:
            self.store.write_failure(failure)

    def _set_unlike_aside(self, *, noted: bool = False) -> None:
        """Trials whose records cannot stand in a table with the others' have failed."""
        for trials in self.trials.values():
            own = {each: self.kinds[each] for each in trials if each in self.kinds}
            fields = {"trial"}.union(*(trial_columns(trials[each]) for each in list(own)[:1]))
            for identity, why in unlike(own, self._schemas, fields).items():
                del self.kinds[identity]
                self._fail(identity, trials[identity], Failed("TypeError", why), noted=noted)


def _read_note(store: Store) -> tuple[set[str], float]:
    """Who ran alone, and the seconds; none and NaN where there is no note that can be read."""
    noted = store.read_json(_NOTE, then="what runs took, and which trials ran alone, is not known")
    if noted is None:
        return set(), math.nan
    return set(noted["alone"]), float(noted["seconds"])
