"""A claim put to the test: its trials run and stored, its verdict judged, its report written.

Everything lands in one folder, from which the run goes on if it was stopped, and from which the
report can be made again without running anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from undertow import lab
from undertow.claims._claim import BUILT_IN, Claim, Records, errors_of
from undertow.claims._overview import REPORT, RUNS, VERDICT
from undertow.claims._page import Facts, claim_document
from undertow.claims._registry import by_value, get


@dataclass(frozen=True)
class Reproduction:
    """What became of a claim.

    Attributes:
        claim: its name.
        preset: `smoke`, `small` or `paper`.
        seed: the base seed.
        verdict: the outcome, with each check.
        records: by experiment, a row per record of each trial, in the trials' order.
        seconds: wall time of the run that gave the verdict; NaN where none was noted.
        out: the folder with `report.html`, `verdict.json`, `figures/` and the store.
    """

    claim: str
    preset: str
    seed: int
    verdict: lab.Verdict
    records: Records = field(repr=False)
    seconds: float
    out: Path
    _document: lab.Document = field(repr=False, compare=False)

    def document(self) -> lab.Document:
        """Verdict and checks; on a page also the figures, the numbers, and how it was run."""
        return dataclasses.replace(self._document, data=self.as_json())

    def __repr__(self) -> str:
        return (
            f"{self.claim} ({self.preset}, seed {self.seed}) is {self.verdict!r}"
            f" {self.seconds:.1f} s; report in {self.out / 'report.html'}"
        )

    def as_json(self) -> dict[str, Any]:
        """The object of `undertow reproduce --json`; a number that JSON cannot hold is None."""
        return {
            "claim": self.claim,
            "preset": self.preset,
            "seed": self.seed,
            "verdict": self.verdict.outcome,
            "checks": [
                {
                    "name": check.name,
                    "value": _finite(check.value),
                    "interval": [_finite(bound) for bound in check.interval],
                    "rule": check.rule,
                    "passed": bool(check.passed),
                    "control": bool(check.control),
                }
                for check in self.verdict.checks
            ],
            "seconds": _finite(round(self.seconds, 3)),
            "out": str(self.out),
        }


def reproduce(
    claim: Claim | str,
    *,
    preset: str = "small",
    seed: int = 0,
    engine: str = "local",
    out: str | os.PathLike[str] | None = None,
    replace: bool = False,
    overrides: Mapping[str, Any] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Reproduction:
    """Run a claim's trials, judge it, and write its report.

    Trials that the folder already holds are read, not run again.

    Args:
        claim: a claim or its name.
        preset: `smoke` (seconds, promises no verdict), `small` (minutes) or `paper`.
        seed: the base seed that every trial's own seed is derived from.
        engine: how trials are run, see `lab.run`.
        out: the folder; by default `undertow-runs/<claim>-<preset>-seed<seed>`, with a short hash
            of the knobs that differ from the preset's.
        replace: whether `out` may hold another run of the claim, with other knobs or another seed:
            its records stay, its verdict and report are written over.
        overrides: knobs by name, to use in place of the preset's.
        workers: how many worker processes; None for one a core.
        progress: show progress on standard error.

    Raises:
        ValueError: an unknown claim, preset, knob or engine.
        RuntimeError: every trial failed (the message quotes the first failure), or a claim of one's
            own raised (the message says in which line).
        OSError: the folder cannot be written, or holds something else or another run.
    """
    plan = _plan(get(claim) if isinstance(claim, str) else claim, preset, seed, overrides or {})
    store = lab.Store(plan.default_out() if out is None else Path(out))
    _refuse_another(plan, store, replace=replace)
    return _run(plan, store, engine=engine, workers=workers, progress=progress)


def resume(
    out: str | os.PathLike[str],
    *,
    engine: str = "local",
    workers: int | None = None,
    progress: bool = True,
) -> Reproduction:
    """Go on with the run that a folder holds; a finished one is judged and reported again.

    Raises:
        OSError: there is no such run.
        ValueError, RuntimeError: as in `reproduce`.
    """
    store = lab.Store(Path(out), create=False)
    return _run(_stored_plan(store), store, engine=engine, workers=workers, progress=progress)


def report(out: str | os.PathLike[str]) -> Reproduction:
    """Judge the records that a folder holds, and write its report again; nothing is run.

    Raises:
        OSError: there is no such run.
        ValueError: trials are missing; the message says how many, and how to run them.
    """
    store = lab.Store(Path(out), create=False)
    plan = _stored_plan(store)
    results = lab.stored(plan.study, store)
    if results.missing > 0:
        raise ValueError(
            f"{results.missing} of the {len(plan.study)} trials in {store.path} have not been run"
            f" yet; run them with: undertow resume {store.path}"
        )
    return _conclude(plan, store, results, seconds=_noted_seconds(store))


# --- from knobs to trials -------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Everything that determines a run: `changed` are the knobs that differ from the preset's."""

    claim: Claim
    preset: str
    seed: int
    changed: Mapping[str, Any]
    knobs: Any

    @cached_property
    def study(self) -> lab.Study:
        config = {
            "claim": self.claim.name,
            "source": self.claim.source,
            "preset": self.preset,
            "seed": self.seed,
            "knobs": dict(self.changed),
        }
        with errors_of(self.claim.source):
            self.claim.check_parts()
            self.claim.predictions(self.knobs)  # written before the run, so sound before it
            experiments = self.claim.experiments(self.knobs, self.seed)
            by_value(self.claim)
            study = lab.Study(self.claim.name, experiments, config=config)
        if not len(study):
            raise ValueError(f"{self.claim.name} has no trials with these knobs")
        return study

    def default_out(self) -> Path:
        name = f"{self.claim.name}-{self.preset}-seed{self.seed}"
        if self.changed:
            content = json.dumps(dict(self.changed), sort_keys=True).encode()
            name += f"-{hashlib.sha256(content).hexdigest()[:8]}"
        return RUNS / name


def _plan(claim: Claim, preset: str, seed: int, overrides: Mapping[str, Any]) -> _Plan:
    base = claim.preset(preset)
    try:
        knobs = base.with_values(overrides)
    except ValueError as error:
        raise ValueError(f"{claim.name}: {error}") from error
    flat, given = base.flat(), knobs.flat()
    changed = {name: given[name] for name in overrides if given[name] != flat[name]}
    return _Plan(claim, preset, seed, changed, knobs)


def _stored_plan(store: lab.Store) -> _Plan:
    stored = store.config.get("config") or {}
    try:
        claim, preset, seed, knobs = (stored[key] for key in ("claim", "preset", "seed", "knobs"))
    except KeyError as error:
        raise ValueError(
            f"{store.path} holds no run of a claim (its config.json has no {error.args[0]!r});"
            " start one with: undertow reproduce CLAIM"
        ) from error
    source = stored.get("source", BUILT_IN)
    try:
        found = get(source if os.path.isabs(source) else claim)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{store.path} holds a run of the claim {claim}, whose file is no longer at {source};"
            " put it back there"
        ) from error
    return _plan(found, preset, seed, {name: _as_knob(knobs[name]) for name in knobs})


def _as_knob(value: Any) -> Any:
    """JSON has lists where knobs have tuples."""
    return tuple(_as_knob(item) for item in value) if isinstance(value, list) else value


# --- from trials to a verdict ---------------------------------------------------------------


def _run(
    plan: _Plan, store: lab.Store, *, engine: str, workers: int | None, progress: bool
) -> Reproduction:
    start = time.perf_counter()
    results = lab.run(plan.study, store, engine=engine, workers=workers, progress=progress)
    seconds = time.perf_counter() - start if results.computed else _noted_seconds(store)
    return _conclude(plan, store, results, seconds=seconds)


def _refuse_another(plan: _Plan, store: lab.Store, *, replace: bool) -> None:
    """A folder holds one run, and two claims of one name are two."""
    stored = store.config.get("config") or {}
    if stored.get("claim") != plan.claim.name:
        return  # a new folder, or a study of another name, which the store refuses
    source = stored.get("source", BUILT_IN)
    moved = os.path.isabs(source) and not os.path.exists(source)
    by_path = os.path.isabs(source) or os.path.isabs(plan.claim.source)
    if source != plan.claim.source and by_path and not moved:
        raise lab.StoreError(
            f"{store.path} holds a run of another claim ({stored['claim']}, {source}); give another"
            " folder"
        )
    ours = _as_stored({"preset": plan.preset, "seed": plan.seed, "knobs": dict(plan.changed)})
    if not replace and any(stored.get(key) != value for key, value in ours.items()):
        knobs = [f"{name} {value}" for name, value in stored.get("knobs", {}).items()]
        words = [f"preset {stored.get('preset')}", f"seed {stored.get('seed')}", *knobs]
        raise lab.StoreError(
            f"{store.path} holds another run of {plan.claim.name} ({', '.join(words)}); give"
            " another folder, or --replace (replace=True) to write over its verdict and report"
        )


def _as_stored(value: Any) -> Any:
    """A value as JSON gives it back; the store writes infinities as strings."""
    return json.loads(json.dumps(value), parse_constant=str)


def _noted_seconds(store: lab.Store) -> float:
    """What the run took that computed the trials, when this one only reads them."""
    try:
        return float((store.read_json(VERDICT) or {})["seconds"])
    except (KeyError, TypeError):
        return math.nan


def _conclude(
    plan: _Plan, store: lab.Store, results: lab.Results, *, seconds: float
) -> Reproduction:
    claim, records, failures = plan.claim, results.records, results.failures
    if len(failures) == len(plan.study):
        raise _cannot_judge(plan, store, failures, f"all {len(failures)}")
    try:
        with errors_of(claim.source):
            verdict = claim.judge(records, plan.knobs)
            figures = claim.figures(records, plan.knobs)
            table = claim.table(records, plan.knobs)
    except (pl.exceptions.PolarsError, RuntimeError) as error:
        columns = isinstance(error, pl.exceptions.PolarsError) or isinstance(
            error.__cause__, pl.exceptions.PolarsError
        )
        if not (failures and columns):
            raise
        some = f"{len(failures)} of {len(plan.study)}"
        raise _cannot_judge(plan, store, failures, some) from error
    for figure in figures:
        for suffix in (".svg", ".png"):
            drawn = lab.draw_chart(figure.chart, suffix)
            store.write_bytes(f"figures/{figure.name}{suffix}", drawn)
    facts = Facts(
        preset=plan.preset,
        seed=plan.seed,
        changed=plan.changed,
        knobs=plan.knobs.flat(),
        trials=len(plan.study),
        computed=results.computed,
        failures=failures,
        seconds=seconds,
        environment=store.environment,
    )
    reproduction = Reproduction(
        claim=plan.claim.name,
        preset=plan.preset,
        seed=plan.seed,
        verdict=verdict,
        records=records,
        seconds=seconds,
        out=store.path,
        _document=claim_document(plan.claim, verdict, figures, table, facts),
    )
    store.write_text(REPORT, lab.as_page(reproduction.document()))
    # Last, so that a verdict is only ever beside the report that explains it.
    store.write_json(VERDICT, reproduction.as_json())
    return reproduction


def _cannot_judge(
    plan: _Plan, store: lab.Store, failures: Sequence[lab.Failure], how_many: str
) -> RuntimeError:
    first = failures[0]
    return RuntimeError(
        f"{how_many} trials of {plan.claim.name} failed, too many to judge it; the first with"
        f" {first.error}: {first.message.rstrip('.')} (tracebacks in {store.path / 'failures'})"
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
