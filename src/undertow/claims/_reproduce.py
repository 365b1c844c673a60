"""A claim put to the test: its trials run and stored, its verdict judged, its report written.

Everything lands in one folder, from which the run goes on if it was stopped, and from which the
report can be made again without running anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from undertow import lab
from undertow.claims._claim import BUILT_IN, Claim, errors_of
from undertow.claims._needs import check_needs
from undertow.claims._overview import REPORT, VERDICT
from undertow.claims._page import Facts, claim_document
from undertow.claims._plan import Plan, make_plan, stored_plan
from undertow.claims._registry import get
from undertow.claims._reproduction import Reproduction

DRAWS = 200  # of whole seeds, for the replication of a verdict


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
    timeout: float | None = None,
    replicate: int | None = None,
    progress: bool = True,
) -> Reproduction:
    """Run a claim's trials, judge it, and write its report.

    Trials that the folder already holds are read, not run again. What the trials need, such as a
    data set or a device, is looked for before any of them runs.

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
        timeout: seconds that a trial may take before it is ended and has failed.
        replicate: how many times whole seeds are drawn anew and judged, see `lab.replication`; 0
            for none, None for 200. A preset that promises no verdict has none to replicate.
        progress: show progress on standard error.

    Raises:
        TypeError, ValueError: an unknown claim, preset, knob or engine; a seed that is no whole
            number from 0 to 2^63 - 1.
        RuntimeError: every trial failed (the message quotes the first failure), or a claim of one's
            own raised (the message says in which line).
        OSError: the folder cannot be written, or holds something else or another run; or a data
            set is not there.
    """
    _check_draws(replicate)
    plan = make_plan(get(claim) if isinstance(claim, str) else claim, preset, seed, overrides or {})
    store = lab.Store(plan.default_out() if out is None else Path(out))
    _refuse_another(plan, store, replace=replace)
    how = {"engine": engine, "workers": workers, "timeout": timeout, "progress": progress}
    return _run(plan, store, how, replicate)


def resume(
    out: str | os.PathLike[str],
    *,
    engine: str = "local",
    workers: int | None = None,
    timeout: float | None = None,
    replicate: int | None = None,
    progress: bool = True,
) -> Reproduction:
    """Go on with the run that a folder holds; a finished one is judged and reported again.

    Raises:
        OSError: there is no such run.
        ValueError, RuntimeError: as in `reproduce`.
    """
    _check_draws(replicate)
    store = lab.Store(Path(out), create=False)
    how = {"engine": engine, "workers": workers, "timeout": timeout, "progress": progress}
    return _run(stored_plan(store), store, how, replicate)


def report(
    out: str | os.PathLike[str],
    *,
    replicate: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Reproduction:
    """Judge the records that a folder holds, and write its report again; nothing is run.

    Args:
        out: the folder.
        replicate: as in `reproduce`.
        workers: how many processes judge redrawn seeds; by default as many as pay.
        progress: report on standard error where that takes long.

    Raises:
        OSError: there is no such run.
        ValueError: trials are missing; the message says how many, and how to run them.
    """
    _check_draws(replicate)
    store = lab.Store(Path(out), create=False)
    plan = stored_plan(store)
    how = {"workers": workers, "progress": progress}
    return _conclude(plan, store, lab.stored(plan.study, store), how, replicate)


def _run(plan: Plan, store: lab.Store, how: dict[str, Any], replicate: int | None) -> Reproduction:
    check_needs(plan.study, store)
    results = lab.run(plan.study, store, again=_resume(store), **how)
    return _conclude(plan, store, results, how, replicate)


def _resume(store: lab.Store) -> str:
    """The command that goes on with a run."""
    return f"undertow resume {shlex.quote(str(store.path))}"


def _refuse_another(plan: Plan, store: lab.Store, *, replace: bool) -> None:
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


def _conclude(
    plan: Plan,
    store: lab.Store,
    results: lab.Results,
    how: Mapping[str, Any],
    replicate: int | None,
) -> Reproduction:
    if results.missing > 0:
        raise ValueError(
            f"{results.missing} of the {len(plan.study)} trials in {store.path} have not been run"
            f" yet; run them with: {_resume(store)}"
        )
    with _told_how_to_go_on(store):
        return _concluded(plan, store, results, how, DRAWS if replicate is None else replicate)


def _check_draws(draws: int | None) -> None:
    if draws is not None and draws < 0:
        raise ValueError(f"replicate must be at least 0, got {draws}")


@contextlib.contextmanager
def _told_how_to_go_on(store: lab.Store) -> Iterator[None]:
    """Give an interrupt the command that ends what it stopped; the records are stored already."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        if not stopped.args:
            stopped.args = (
                f"stopped: all trials are stored in {store.path}, the report is not written; to go"
                f" on: {_resume(store)}",
            )
        raise


def _concluded(
    plan: Plan, store: lab.Store, results: lab.Results, how: Mapping[str, Any], draws: int
) -> Reproduction:
    verdict, figures, table = _judged(plan, store, results)
    replication = None
    repeated = any("seed" in frame.columns for frame in results.records.values())
    if draws and repeated and verdict.promised and not results.failures:
        judge = partial(plan.claim.judge, knobs=plan.knobs)
        workers = 1 if how.get("engine") == "inline" else how["workers"]
        replication = lab.replication(
            judge, results.records, draws=draws, workers=workers, progress=how["progress"]
        )
    facts = Facts(
        preset=plan.preset,
        seed=plan.seed,
        changed=plan.changed,
        knobs=plan.knobs.flat(),
        trials=len(plan.study),
        computed=results.computed,
        stored=results.read,
        alone=results.alone,
        failures=results.failures,
        seconds=results.seconds,
        environment=store.environment,
        replication=replication,
    )
    reproduction = Reproduction(
        claim=plan.claim.name,
        preset=plan.preset,
        seed=plan.seed,
        verdict=verdict,
        records=results.records,
        seconds=results.seconds,
        out=store.path,
        trials=len(plan.study),
        failures=results.failures,
        alone=results.alone,
        replication=replication,
        report=store.path / REPORT,
        _document=claim_document(plan.claim, verdict, figures, table, facts),
    )
    try:
        _write(reproduction, figures, store)
    except lab.StoreError as error:
        if not error.read_only:
            raise
        return dataclasses.replace(reproduction, report=None)
    return reproduction


def _write(reproduction: Reproduction, figures: Sequence[lab.Figure], store: lab.Store) -> None:
    for figure in figures:
        for suffix in (".svg", ".png"):
            drawn = lab.draw_chart(figure.chart, suffix)
            store.write_bytes(f"figures/{figure.name}{suffix}", drawn)
    store.write_text(REPORT, lab.as_page(reproduction.document()))
    # Last, so that a verdict is only ever beside the report that explains it.
    store.write_json(VERDICT, reproduction.as_json())


def _judged(
    plan: Plan, store: lab.Store, results: lab.Results
) -> tuple[lab.Verdict, tuple[lab.Figure, ...], pl.DataFrame]:
    """The verdict, the figures and the table."""
    claim, records, failures = plan.claim, results.records, results.failures
    if len(failures) == len(plan.study):
        raise _cannot_judge(plan, store, failures, f"all {len(failures)}")
    try:
        with errors_of(claim.source):
            verdict = claim.judge(records, plan.knobs)
            # Charts need docstrings, which `python -OO` drops.
            figures = () if sys.flags.optimize > 1 else claim.figures(records, plan.knobs)
            table = claim.table(records, plan.knobs)
    except (pl.exceptions.PolarsError, RuntimeError) as error:
        columns = isinstance(error, pl.exceptions.PolarsError) or isinstance(
            error.__cause__, pl.exceptions.PolarsError
        )
        if not (failures and columns):
            raise
        some = f"{len(failures)} of {len(plan.study)}"
        raise _cannot_judge(plan, store, failures, some) from error
    if plan.preset == "smoke":
        said = f"smoke promises no verdict. {verdict.summary}".rstrip()
        verdict = dataclasses.replace(verdict, outcome="inconclusive", promised=False, summary=said)
    if failures:
        verdict = dataclasses.replace(
            verdict,
            outcome="inconclusive",
            summary=(
                f"{len(failures)} of {len(plan.study)} trials failed and are left out, so there is"
                f" no verdict on all of them; to try them again: {_resume(store)}."
                f" {verdict.summary}"
            ).rstrip(),
        )
    return verdict, figures, table


def _cannot_judge(
    plan: Plan, store: lab.Store, failures: Sequence[lab.Failure], how_many: str
) -> RuntimeError:
    first = failures[0]
    return RuntimeError(
        f"{how_many} trials of {plan.claim.name} failed, too many to judge it; the first with"
        f" {first.error}: {first.message.rstrip('.')} (tracebacks in {store.path / 'failures'})"
    )
