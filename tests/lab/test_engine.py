"""Engines: no trial takes others down, a run ends when told to, and every way gives one result."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_study
from polars.testing import assert_frame_equal
from test_study import alive, contents, descendants
from toy_study import Walk, walks

from undertow import lab


@dataclass(frozen=True)
class Deed:
    """A trial that does something of `DEEDS`."""

    name: str
    seed: int = 0


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Unpicklable(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__("unpicklable")
        self.lock = threading.Lock()


def raises(error: BaseException) -> Callable[[], None]:
    def deed() -> None:
        raise error

    return deed


def disturbs() -> None:
    """Leave nothing of a process as it was."""
    os.environ.clear()
    os.environ["PATH"] = "/nowhere"
    os.chdir("/")
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    np.seterr(all="ignore")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.alarm(1)
    sys.path.clear()
    sys.setrecursionlimit(2000)


DEEDS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "cannot be told": raises(Unspeakable()),
    "cannot travel": raises(Unpicklable(1, 2)),
    "exits": raises(SystemExit(0)),
    "interrupts": raises(KeyboardInterrupt()),
    "closes": raises(GeneratorExit()),
    "is marked up": raises(ValueError("[bold]of[/red] \\x1b[31m \\udc80")),
    "tells at length": raises(ValueError("long " * 10**6)),
    "gives text": lambda: [{"draw": "text"}],
    "gives a list": lambda: [{"draw": [1.0]}],
    "gives nothing": list,
    "gives a number": lambda: 3,
    "disturbs": disturbs,
}
FAIL = set(DEEDS) - {"nothing", "gives nothing", "disturbs"}


def do(deed: Deed) -> Any:
    """What the deed gives, or draws from every global random state and the shape of the process."""
    given = DEEDS[deed.name]()
    if given is not None:
        return given
    batch = torch.randn(257, 129)
    return {
        "draw": random.random() + float(np.random.rand()),  # noqa: NPY002
        "sum": (batch @ batch.T).sum().item(),
        "type": str(batch.dtype),
        "folder": os.getcwd(),
        "threads": torch.get_num_threads(),
        "subnormal": torch.tensor([1e-39]).mul(0.5).item(),
        "learns": torch.is_grad_enabled(),
    }


def deeds(*names: str) -> lab.Study:
    trials = [Deed(name, seed) for seed, name in enumerate(names)]
    return lab.Study("deeds", {"deeds": lab.Experiment(trials, do)})


def quietly(study: lab.Study, folder: Path, **options: Any) -> lab.Results:
    return lab.run(study, lab.Store(folder), progress=False, **options)


# --- one trial and the others -----------------------------------------------------------------


def test_whatever_a_trial_raises_or_gives_it_alone_has_failed(tmp_path: Path) -> None:
    """Interleaved with trials that do nothing, which must give what they give by themselves."""
    names = [name for deed in sorted(DEEDS) for name in (deed, "nothing", "nothing")]
    study = deeds(*names)
    results = quietly(study, tmp_path / "runs", engine="inline")
    failed = {failure.fields["name"]: failure for failure in results.failures}
    assert set(failed) == FAIL
    assert len(results.failures) == len(FAIL)
    assert failed["exits"].error == "SystemExit"
    assert failed["cannot be told"].message.startswith("its own message cannot be had")
    assert len(failed["tells at length"].message) < 3_000
    assert "column 'draw' holds text, that of other trials numbers" in failed["gives text"].message
    alone = quietly(deeds(*["nothing"] * len(names)), tmp_path / "alone", engine="inline")
    fine = results.records["deeds"].filter(name="nothing")
    same = alone.records["deeds"].join(fine.select("seed"), on="seed", how="semi")
    assert_frame_equal(fine, same, check_column_order=False)
    stored = lab.stored(study, lab.Store(tmp_path / "runs"))
    assert {failure.fields["name"] for failure in stored.failures} == FAIL
    assert (stored.missing, stored.read) == (0, len(names) - len(FAIL))


def test_the_process_is_left_as_it_was(tmp_path: Path, global_rng_untouched: None) -> None:
    def state() -> tuple[Any, ...]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return (
            *(dict(os.environ), os.getcwd(), handlers, list(sys.path), sys.getrecursionlimit()),
            *(torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()),
            *(torch.are_deterministic_algorithms_enabled(), np.geterr(), threading.active_count()),
            *(torch.tensor([1e-39]).mul(0.5).item(), signal.getitimer(signal.ITIMER_REAL)),
        )

    before = state()
    quietly(deeds("disturbs", "nothing"), tmp_path / "runs", engine="inline")
    assert state() == before


def test_a_run_does_not_depend_on_the_state_of_the_process(tmp_path: Path) -> None:
    study = deeds("nothing", "nothing", "nothing")
    plain = quietly(study, tmp_path / "plain", engine="inline")
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    try:
        with torch.no_grad():
            odd = quietly(study, tmp_path / "odd", engine="inline")
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
    assert contents(lab.Store(tmp_path / "odd")) == contents(lab.Store(tmp_path / "plain"))
    assert odd.records["deeds"]["learns"].all()
    assert (plain.records["deeds"]["threads"] == 1).all()


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes_after_whatever_ran_before(tmp_path: Path) -> None:
    study = deeds("nothing", "disturbs", "nothing", "exits", "interrupts", "nothing")
    here, there = tmp_path / "here", tmp_path / "there"
    quietly(study, here, engine="inline")
    found = quietly(study, there, workers=1)
    folder = {"folder": os.getcwd()}
    assert found.records["deeds"].filter(name="nothing", **folder).height == 3
    assert contents(lab.Store(there)) == contents(lab.Store(here))


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    found: list[lab.Results] = []
    study = deeds("nothing", "interrupts")
    thread = threading.Thread(
        target=lambda: found.append(quietly(study, tmp_path / "runs", engine="inline"))
    )
    thread.start()
    thread.join()
    assert [failure.error for failure in found[0].failures] == ["KeyboardInterrupt"]


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["loops", "holds the interpreter"])
def test_a_time_limit_ends_one_trial_of_a_group(tmp_path: Path, fate: str) -> None:
    trials = (Walk(0), Walk(1, fate=fate), Walk(2), Walk(3))
    found = quietly(walks(*trials, size=2), tmp_path / "runs", workers=2, timeout=1.0)
    (failure,) = found.failures
    assert (failure.fields["seed"], failure.error) == (1, "TimedOut")
    assert "more than 1 s" in failure.message
    assert sorted(found.records["walks"]["seed"].unique()) == [0, 2, 3]
    assert found.alone == 1  # the other of its group


@pytest.mark.slow
def test_a_worker_that_a_trial_cuts_off_is_not_said_to_be_killed_by_others(tmp_path: Path) -> None:
    def scribbles(trial: Deed) -> dict[str, int]:
        for number in range(3, 20) if trial.name == "scribbles" else ():
            with contextlib.suppress(OSError):
                os.write(number, b"not an answer")
        return {"value": 1}

    trials = [Deed("scribbles"), Deed("nothing")]
    study = lab.Study("scribbles", {"own": lab.Experiment(trials, scribbles)})
    (failure,) = quietly(study, tmp_path / "runs", workers=1).failures
    assert failure.fields["name"] == "scribbles"
    assert "cut off from this process" in failure.message


def test_what_ran_alone_is_said_and_runs_together_when_it_can(tmp_path: Path) -> None:
    """A group whose member failed has other digits than a whole one, until it runs whole."""
    lost = tmp_path / "lost"
    lost.touch()

    def walk(trials: Sequence[Walk]) -> list[Any]:
        if lost.exists() and any(trial.seed == 1 for trial in trials):
            raise RuntimeError("one is lost")
        return toy_study.walk(trials)

    trials = [Walk(seed) for seed in range(5)]
    study = lab.Study("walks", {"walks": lab.Experiment(trials, walk, ("seed",), 3)})
    store = lab.Store(tmp_path / "runs")
    first = quietly(study, store.path, engine="inline")
    assert (first.alone, len(first.failures)) == (2, 1)
    assert set(first.records["walks"].filter(seed=0)["beside"]) == {1}
    assert lab.stored(study, store).alone == 2
    again = quietly(study, store.path, engine="inline")
    assert (again.alone, len(again.failures), again.computed) == (2, 1, 1)
    lost.unlink()
    last = quietly(study, store.path, engine="inline")
    assert (last.alone, len(last.failures), last.computed) == (0, 0, 1)
    whole = quietly(study, tmp_path / "whole", engine="inline")
    assert_frame_equal(last.records["walks"], whole.records["walks"])
    assert contents(store) == contents(lab.Store(tmp_path / "whole"))


# --- told to end ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["loops", "holds the interpreter"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_run_ends_when_told_to_whatever_its_trials_do(
    tmp_path: Path, fate: str, number: signal.Signals
) -> None:
    folder = tmp_path / "runs"
    process = subprocess.Popen(
        [sys.executable, str(Path(toy_study.__file__)), str(folder), fate],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(list(folder.glob("trials/*.parquet"))) == 2)
    children = descendants(process.pid)
    assert children
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)  # it would be for ever
    assert process.returncode == -number
    wait_until(lambda: not any(map(alive, children)))
    assert not list(folder.rglob("*.tmp"))
    if number != signal.SIGKILL:
        assert "2 of 3 trials are stored" in errors
        assert json.loads((folder / "run.json").read_bytes())["seconds"] > 0


@pytest.mark.slow
def test_an_interrupt_at_any_instant_leaves_whole_records_and_no_worker(tmp_path: Path) -> None:
    """Also while workers start, and between a trial's end and its record."""
    whole = lab.Store(tmp_path / "whole")
    lab.run(toy_study.killable(), whole, engine="inline", progress=False)
    folder = tmp_path / "stopped"
    generator = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, str(Path(toy_study.__file__)), str(folder)], stderr=subprocess.PIPE
        )
        wait_until(lambda: (folder / "config.json").exists())
        time.sleep(generator.uniform(0, 3))
        children = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        wait_until(lambda found=children: not any(map(alive, found)))
    assert not list(folder.rglob("*.tmp"))
    lab.run(toy_study.killable(), lab.Store(folder), engine="inline", progress=False)
    assert contents(lab.Store(folder)) == contents(whole)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
