"""Running a study: any engine and any interruption leave the same records."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import toy_study
from polars.testing import assert_frame_equal
from toy_study import Walk, walk
from toy_study import walks as study

from undertow import lab


def run(made: lab.Study, store: lab.Store, **options: Any) -> pl.DataFrame:
    """The records of a study of one experiment."""
    (frame,) = lab.run(made, store, **options).records.values()
    return frame


def one_by_one(function: Any, *trials: Walk) -> lab.Study:
    """A study whose function takes one trial."""
    return lab.Study("walks", {"walks": lab.Experiment(trials, function)})


def contents(store: lab.Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store.path / "trials").iterdir()}


@pytest.mark.slow
def test_engines_give_the_same_bytes_in_the_trials_order(tmp_path: Path) -> None:
    trials = [Walk(seed, steps=seed) for seed in (3, 1, 2, 0)]
    inline, local = lab.Store(tmp_path / "inline"), lab.Store(tmp_path / "local")
    here = run(study(*trials), inline, engine="inline", progress=False)
    there = run(study(*trials), local, workers=2, progress=False)
    assert here["seed"].to_list() == [3, 3, 3, 1, 2, 2]
    assert_frame_equal(here, there)
    assert contents(inline) == contents(local)


def test_groups_do_not_depend_on_what_is_stored(tmp_path: Path) -> None:
    store = lab.Store(tmp_path / "runs")
    trials = [Walk(seed) for seed in range(4)]
    whole = run(study(*trials, size=4), lab.Store(tmp_path / "whole"), engine="inline")
    store.write_records(trials[1], [{"step": 0, "beside": -1}], kind="walks/walks")
    resumed = run(study(*trials, size=4), store, engine="inline")
    fresh = pl.col("seed") != 1
    assert_frame_equal(resumed.filter(fresh), whole.filter(fresh), check_column_order=False)
    assert resumed.filter(~fresh)["beside"].to_list() == [-1]


def test_only_what_is_missing_runs(tmp_path: Path) -> None:
    store = lab.Store(tmp_path / "runs")
    run(study(Walk(0), Walk(1)), store, engine="inline")
    before = {path: path.stat().st_mtime_ns for path in store.path.glob("trials/*")}
    both = run(study(Walk(0), Walk(1), Walk(2)), store, engine="inline")
    assert both["seed"].unique().sort().to_list() == [0, 1, 2]
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())
    one = run(study(Walk(2)), store, engine="inline")
    assert one["seed"].unique().to_list() == [2]


def test_groups_are_alike_but_for_what_may_differ() -> None:
    trials = [Walk(seed, steps=seed % 2) for seed in range(5)]
    experiment = lab.Experiment(trials, walk, together=("seed",), group_size=2)
    assert [*experiment.groups()] == [(0, 2), (4,), (1, 3)]
    assert "5 trials in 3 groups" in repr(lab.Study("s", {"walks": experiment}))
    assert [*lab.Experiment(trials, walk).groups()] == [(0,), (1,), (2,), (3,), (4,)]


def test_each_experiment_has_records_of_its_own(tmp_path: Path) -> None:
    """One trial or several at a time, one record or several; the same trial in two experiments."""
    trials = (Walk(0, steps=2), Walk(1, steps=2))
    made = lab.Study(
        "both",
        {
            "ends": lab.Experiment(trials, lambda trial: {"end": trial.seed + 0.5}),
            "walks": lab.Experiment(trials, walk, together=("seed",)),
        },
    )
    results = lab.run(made, lab.Store(tmp_path / "runs"), engine="inline", progress=False)
    assert results.records["ends"].select("seed", "end").rows() == [(0, 0.5), (1, 1.5)]
    assert results.records["walks"]["step"].to_list() == [0, 1, 0, 1]
    assert "end" not in results.records["walks"].columns
    assert (results.computed, results.missing) == (4, 0)
    stored = lab.stored(made, lab.Store(tmp_path / "runs"))
    for name, frame in results.records.items():
        assert_frame_equal(stored.records[name], frame)


def test_what_is_stored_is_told_from_what_failed_and_what_is_missing(tmp_path: Path) -> None:
    store = lab.Store(tmp_path / "runs")
    run(study(Walk(0), Walk(1, fate="raises")), store, engine="inline", progress=False)
    found = lab.stored(study(Walk(0), Walk(1, fate="raises"), Walk(2)), store)
    assert (len(found.failures), found.computed, found.missing) == (1, 0, 1)


def test_a_trial_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from undertow.lab import _study

    hashed: list[Any] = []

    def counted(trial: Any, kind: str = "") -> str:
        hashed.append(trial)
        return lab.trial_hash(trial, kind)

    monkeypatch.setattr(_study, "trial_hash", counted)
    made = study(*(Walk(seed) for seed in range(5)))
    run(made, lab.Store(tmp_path / "runs"), engine="inline", progress=False)
    assert len(hashed) == 5


@pytest.mark.parametrize(
    ("fate", "error"), [("raises", "RuntimeError"), ("returns", "ArithmeticError")]
)
def test_a_failing_trial_takes_no_other_with_it(tmp_path: Path, fate: str, error: str) -> None:
    store = lab.Store(tmp_path / "runs")
    trials = [Walk(0), Walk(1, fate=fate), Walk(2)]
    frame = run(study(*trials, size=3), store, engine="inline")
    assert frame["seed"].unique(maintain_order=True).to_list() == [0, 2]
    (failure,) = store.failures()
    assert failure.error == error
    assert failure.fields["seed"] == 1
    assert error in failure.traceback


def test_failed_trials_are_tried_again(tmp_path: Path) -> None:
    store = lab.Store(tmp_path / "runs")
    identity = lab.trial_hash(Walk(0), "walks/walks")
    store.write_failure(lab.Failure(identity, {"seed": 0}, "OSError", "network"))
    run(study(Walk(0)), store, engine="inline")
    assert store.failures() == ()


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["exits", "killed"])
def test_a_dying_worker_is_isolated_to_its_trial(tmp_path: Path, fate: str) -> None:
    store = lab.Store(tmp_path / "runs")
    trials = [Walk(seed, fate=fate if seed == 3 else "lives") for seed in range(6)]
    frame = run(study(*trials), store, workers=2, progress=False)
    assert frame["seed"].unique(maintain_order=True).to_list() == [0, 1, 2, 4, 5]
    (failure,) = store.failures()
    assert failure.fields["seed"] == 3
    how = {"exits": "exit code 7", "killed": "by SIGKILL"}[fate]
    assert failure.message == f"worker process died ({how})"


def test_wrong_results_are_failures_that_say_so(tmp_path: Path) -> None:
    store = lab.Store(tmp_path / "runs")
    empty = lab.Study(
        "s", {"walks": lab.Experiment((Walk(0),), lambda trials: [], together=("seed",))}
    )
    assert run(empty, store, engine="inline").is_empty()
    assert "0 results for 1 trials" in store.failures()[0].message


@pytest.mark.slow
def test_workers_compute_in_one_thread(tmp_path: Path) -> None:
    single = one_by_one(toy_study.threads, Walk(0))
    frame = run(single, lab.Store(tmp_path / "runs"), workers=2, progress=False)
    assert frame.select("torch", "polars").row(0) == (1, 1)


def test_a_function_that_cannot_travel_is_named(tmp_path: Path) -> None:
    import threading

    lock = threading.Lock()
    closed = one_by_one(lambda trial: {"locked": lock.locked()}, Walk(0))
    with pytest.raises(TypeError, match="function: cannot be sent"):
        run(closed, lab.Store(tmp_path / "runs"), progress=False)


@pytest.mark.slow
def test_no_more_workers_than_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from undertow.lab import _engine

    started: list[None] = []

    class Counted(_engine._Worker):
        def __init__(self) -> None:
            started.append(None)
            super().__init__()

    monkeypatch.setattr(_engine, "_Worker", Counted)
    store = lab.Store(tmp_path / "runs")
    run(study(Walk(0), Walk(1)), store, workers=8, progress=False)
    run(study(Walk(0), Walk(1)), store, workers=8, progress=False)
    assert len(started) == 1  # one group, then nothing left to do


@pytest.mark.slow
def test_kill_at_any_moment_then_resume_gives_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = lab.Store(tmp_path / "whole"), tmp_path / "killed"
    expected = run(toy_study.killable(), whole, engine="inline")
    script = str(Path(toy_study.__file__))
    counts = []
    for stored in (1, 7, 14):  # killed as soon as so many trials are stored
        process = subprocess.Popen([sys.executable, script, str(killed)])
        deadline = time.monotonic() + 30
        while len(list(killed.glob("trials/*.parquet"))) < stored and time.monotonic() < deadline:
            time.sleep(0.005)
        children = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        counts.append(len(list(killed.glob("trials/*.parquet"))))
        assert children
        while any(map(alive, children)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, children))
    assert 1 <= counts[0] < counts[1] < counts[2] < 24
    resumed = run(toy_study.killable(), lab.Store(killed), engine="inline")
    assert_frame_equal(resumed, expected)
    assert contents(lab.Store(killed)) == contents(whole)
    assert not list(killed.rglob("*.tmp"))


def descendants(parent: int) -> list[int]:
    listing = subprocess.run(
        ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    pairs = [tuple(map(int, line.split())) for line in listing.stdout.splitlines()]
    found = [child for child, its_parent in pairs if its_parent == parent]
    return found + [each for child in found for each in descendants(child)]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not (state.exists() and ") Z " in state.read_text())


def test_a_full_disk_stops_the_run_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, replace = lab.Store(tmp_path / "runs"), os.replace
    full = lab.trial_hash(Walk(2), "walks/walks")

    def fills_up(source: Any, target: Any) -> None:
        if full in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    trials = [Walk(seed) for seed in range(4)]
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fills_up)
        with pytest.raises(lab.StoreError, match="disk is full"):
            run(study(*trials, size=1), store, engine="inline")
    assert store.records()["seed"].unique().sort().to_list() == [0, 1]
    assert not list(store.path.rglob("*.tmp"))
    assert run(study(*trials, size=1), store, engine="inline")["seed"].n_unique() == 4


def test_ctrl_c_says_how_to_resume(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = lab.Store(tmp_path / "runs")

    def interrupted(trial: Walk) -> Any:
        if trial.seed == 1:
            signal.raise_signal(signal.SIGINT)
        return walk((trial,))[0]

    three = one_by_one(interrupted, *(Walk(seed) for seed in range(3)))
    with pytest.raises(KeyboardInterrupt):
        run(three, store, engine="inline")
    out, error = capfd.readouterr()
    assert out == ""
    assert "1 of 3 trials are stored" in error
    assert "to go on: run the same again" in error


def test_progress_is_two_plain_lines_away_from_a_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(study(Walk(0), Walk(1)), lab.Store(tmp_path / "runs"), engine="inline")
    out, error = capfd.readouterr()
    assert out == ""
    assert [line.split(":")[0] for line in error.splitlines()] == ["walks", "walks"]
    run(study(Walk(2)), lab.Store(tmp_path / "runs"), engine="inline", progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "slurm"}, "'local', 'inline'"),
        ({"engine": "ray"}, "not available"),
        ({"workers": 0}, "workers"),
        ({"timeout": 0.0}, "timeout must be a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout must be a number of seconds above 0"),
        ({"timeout": 1.0, "engine": "inline"}, "timeout needs worker processes"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(study(Walk(0)), lab.Store(tmp_path / "runs"), **options)


def test_bad_studies_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="walks: the same trial is given twice"):
        study(Walk(0), Walk(0))
    with pytest.raises(ValueError, match="group_size"):
        study(Walk(0), size=0)
    with pytest.raises(TypeError, match="frozen dataclass"):
        lab.Study("s", {"walks": lab.Experiment(({"seed": 0},), walk)})
    with pytest.raises(ValueError, match="together must name fields of Walk, got 'sed'"):
        lab.Experiment((Walk(0),), walk, together=("sed",))
    store = lab.Store(tmp_path / "runs")
    run(study(Walk(0)), store, engine="inline")
    with pytest.raises(lab.StoreError, match="another folder"):
        run(study(Walk(0), name="other"), store, engine="inline")
