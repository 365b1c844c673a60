"""Runs killed at random instants, and stores with random bits flipped: never a different number."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import toy_study
from damage import flip, same_records
from toy_study import Walk

from undertow import claims, lab
from undertow.claims import Claim

Scaled = Callable[[int], int]
STUDY = toy_study.walks(*(Walk(seed) for seed in range(4)), Walk(9, fate="returns"), size=2)


class Killed(BaseException):
    """The process is gone: nobody tidies up."""


def run(folder: Path, study: lab.Study = STUDY) -> lab.Results:
    return lab.run(study, lab.Store(folder), engine="inline", progress=False)


def files_of(folder: Path) -> list[Path]:
    """The files that hold something, the longest weighing most as in a disk's errors."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize("part", range(4))  # for as many processes
def test_flips_in_a_study(tmp_path: Path, scaled: Scaled, tally: Counter[str], part: int) -> None:
    folder, draws = tmp_path / "run", random.Random(part)
    expected = run(folder)
    files = [(path, path.read_bytes()) for path in files_of(folder)]
    for _ in range(scaled(20_000)):
        path, content = draws.choice(files)
        path.write_bytes(flip(content, draws.randrange(8 * len(content))))
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            results = run(folder)
        same_records(results, expected)
        assert len(results.failures) == 1
        said = errors.getvalue()
        assert said.count("\n") <= 1, said
        tally["flips"] += 1
        tally["named and mended" if path.name in said else "written anew unread"] += 1
        shutil.rmtree(folder / "damaged", ignore_errors=True)
        for other, whole in files:
            other.write_bytes(whole)


@pytest.mark.parametrize("part", range(4))
def test_flips_in_a_run_of_a_claim(
    toy_claim: Claim, scaled: Scaled, tally: Counter[str], part: int
) -> None:
    """The report of a run in which any bit of any file is flipped says the same, or says why not."""
    draws = random.Random(part)

    def judged(found: claims.Reproduction) -> str:
        return json.dumps({**found.as_json(), "seconds": 0})

    made = claims.reproduce("toy", engine="inline", progress=False)
    expected, folder = judged(made), made.out
    files = [(path, path.read_bytes()) for path in files_of(folder)]
    for _ in range(scaled(5_000)):
        path, content = draws.choice(files)
        path.write_bytes(flip(content, draws.randrange(8 * len(content))))
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                if draws.random() < 0.5:
                    found = claims.resume(folder, engine="inline", progress=False)
                else:
                    found = claims.report(folder)
            except (ValueError, OSError) as error:
                assert path.name in str(error) + errors.getvalue()
                tally["refused in one line"] += 1
            else:
                assert judged(found) == expected
                tally["the same verdict"] += 1
        assert errors.getvalue().count("\n") <= 1
        tally["flips"] += 1
        shutil.rmtree(folder / "damaged", ignore_errors=True)
        for other, whole in files:
            other.write_bytes(whole)


@pytest.mark.parametrize("part", range(4))
def test_a_process_that_ends_within_a_write(
    tmp_path: Path, scaled: Scaled, tally: Counter[str], part: int
) -> None:
    """Cut after any system call, or within a write of any file."""
    draws = random.Random(part)
    expected = run(tmp_path / "whole")
    for attempt in range(scaled(2_000)):
        folder = tmp_path / str(attempt)
        for _ in range(draws.randrange(1, 4)):
            with ends_at(draws.randrange(60), draws), contextlib.suppress(Killed):
                run(folder)
                tally["finished before"] += 1
            tally["ends within a run"] += 1
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            same_records(run(folder), expected)
        tally["damaged files named"] += errors.getvalue().count("\n")
        assert not list(folder.rglob("*.tmp"))
        shutil.rmtree(folder)


@contextlib.contextmanager
def ends_at(call: int, draws: random.Random):  # type: ignore[no-untyped-def]
    """The process ends at the n-th call that changes something on the disk, or halfway through."""
    left = call

    def ending(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def called(*arguments: object, **keywords: object) -> object:
            nonlocal left
            left -= 1
            if left == 0 and name == "replace" and draws.random() < 0.5:
                real(*arguments, **keywords)
            if left <= 0:
                raise Killed
            return real(*arguments, **keywords)

        return called

    with contextlib.ExitStack() as patches:
        for name in ("replace", "fsync", "rename", "unlink", "mkdir"):
            patches.enter_context(patch.object(os, name, ending(name, getattr(os, name))))
        # Nobody removes what was being written when the power went.
        patches.enter_context(patch.object(Path, "unlink", lambda *a, **k: None))
        yield


@pytest.mark.parametrize("part", range(2))
def test_kills(tmp_path: Path, scaled: Scaled, tally: Counter[str], part: int) -> None:
    """Processes killed at random instants by signals that cannot be caught, and resumed."""
    draws = random.Random(part)
    study = toy_study.killable()
    expected = run(tmp_path / "whole", study)
    script = str(Path(toy_study.__file__))
    wanted = scaled(500)
    while tally["kills"] < wanted:
        folder = tmp_path / "killed"
        for _ in range(min(draws.randrange(1, 4), wanted - tally["kills"])):
            process = subprocess.Popen([sys.executable, script, str(folder)])
            started = time.monotonic()
            while not (folder / "config.json").exists() and time.monotonic() < started + 60:
                time.sleep(0.002)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draws.uniform(0, 1.2))
            process.send_signal(signal.SIGKILL)
            process.wait()
            tally["kills"] += 1
        tally["trials that were stored"] += len(list(folder.glob("trials/*.parquet")))
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            results = run(folder, study)
        same_records(results, expected)
        tally["resumed with the same records"] += 1
        tally["damaged files named"] += errors.getvalue().count("\n")
        shutil.rmtree(folder)
