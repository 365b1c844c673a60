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
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import forks
import polars as pl
import pytest
import toy_study
from damage import flip, same_records
from polars.testing import assert_frame_equal
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
    (whole,) = expected.records.values()
    files = [(path, path.read_bytes()) for path in files_of(folder)]
    for _ in range(scaled(22_500)):
        path, content = draws.choice(files)
        path.write_bytes(flip(content, draws.randrange(8 * len(content))))
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            if path.parent.name == "trials" and draws.random() < 0.95:
                found = lab.stored(STUDY, lab.Store(folder))
                assert found.missing == 1
                rest = whole.filter(pl.col("trial") != path.stem)
                assert_frame_equal(found.records["walks"], rest, check_exact=True)
                how = "records named, the others read"
            else:
                found = run(folder)
                same_records(found, expected)
                assert len(found.failures) == 1
                how = "files named, the run mended"
        said = errors.getvalue()
        assert said.count("\n") <= 1, said
        assert path.name in said or path.parent.name == "failures"
        tally["flips"] += 1
        tally[how if said else "failures tried again, unread"] += 1
        restore(folder, files)


def restore(folder: Path, files: list[tuple[Path, bytes]]) -> None:
    """The store as it was, with the fewest writes."""
    shutil.rmtree(folder / "damaged", ignore_errors=True)
    for path, content in files:
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


@pytest.mark.parametrize("part", range(4))
def test_flips_in_a_run_of_a_claim(
    toy_claim: Claim, scaled: Scaled, tally: Counter[str], part: int
) -> None:
    """Whatever bit of whatever file: the report says the same, or why it cannot be made."""
    draws = random.Random(part)

    def judged(found: claims.Reproduction) -> str:
        return json.dumps({**found.as_json(), "seconds": 0})

    made = claims.reproduce("toy", engine="inline", progress=False)
    expected, folder = judged(made), made.out
    files = [(path, path.read_bytes()) for path in files_of(folder)]
    for _ in range(scaled(2_500)):
        path, content = draws.choice(files)
        path.write_bytes(flip(content, draws.randrange(8 * len(content))))
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                if draws.random() < 0.5:
                    found = claims.resume(folder, engine="inline", progress=False)
                else:
                    found = claims.report(folder)
                assert judged(found) == expected
                refused = ""
            except (ValueError, OSError) as error:
                refused = str(error)
        said = refused + errors.getvalue()
        assert path.name in said or not refused
        assert said.count("\n") <= 1
        tally["refused in one line" if refused else "the same verdict"] += 1
        tally["flips"] += 1
        restore(folder, files)


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


# A file that is open when Ctrl-C comes is closed when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", range(4))
def test_interrupts(tmp_path: Path, scaled: Scaled, tally: Counter[str], part: int) -> None:
    """Ctrl-C at a random instant, also within a write."""
    draws = random.Random(part)
    expected = run(tmp_path / "whole")

    def interrupt(*arguments: object) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for attempt in range(scaled(1_000)):
            folder = tmp_path / str(attempt)
            with contextlib.redirect_stderr(io.StringIO()):
                try:
                    signal.setitimer(signal.ITIMER_REAL, draws.uniform(1e-5, 0.03))
                    run(folder)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    tally["finished before"] += 1
                except KeyboardInterrupt:
                    tally["interrupts"] += 1
            with contextlib.redirect_stderr(io.StringIO()) as errors:
                same_records(run(folder), expected)
            assert errors.getvalue() == ""
            assert not list(folder.rglob("*.tmp"))
            shutil.rmtree(folder)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("part", range(2))
def test_kills(tmp_path: Path, scaled: Scaled, tally: Counter[str], part: int) -> None:
    """Processes killed at random instants by a signal that cannot be caught, and resumed."""
    draws = random.Random(part)
    expected = run(tmp_path / "whole", forks.STUDY)
    with subprocess.Popen(
        [sys.executable, str(Path(forks.__file__))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        wanted = scaled(500)
        while tally["kills"] < wanted:
            folder = tmp_path / "killed"
            for _ in range(min(draws.randrange(1, 5), wanted - tally["kills"])):
                print(draws.uniform(0, 0.4), folder, file=server.stdin, flush=True)
                assert server.stdout.readline() == "killed\n"
                tally["kills"] += 1
            tally["trials stored by killed processes"] += len(list(folder.glob("trials/*.parquet")))
            with contextlib.redirect_stderr(io.StringIO()) as errors:
                same_records(run(folder, forks.STUDY), expected)
            tally["resumed with the same records"] += 1
            tally["damaged files named"] += errors.getvalue().count("\n")
            assert not list(folder.rglob("*.tmp"))
            shutil.rmtree(folder)
        server.stdin.close()
        assert server.wait() == 0
