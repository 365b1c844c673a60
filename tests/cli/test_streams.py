"""Odd surroundings: streams closed, full or narrow, foreign names. One line, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HELP = ("--help",)
INSPECT = ("inspect", "weights.pt")
CLAIMS = ("claims", "low-rank", "--json")


@dataclass(frozen=True)
class Case:
    """A command under a shell redirection and an environment, and how it must end."""

    words: tuple[str, ...]
    redirect: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    status: int = 0
    says: str = ""  # on standard error; nothing else is
    shows: str = ""  # on standard output


CASES = {
    "closed input": Case(INSPECT, "<&-", shows="2 weight matrices"),
    "closed output": Case(INSPECT, ">&-", status=1, says="standard output is closed"),
    "closed output of help": Case(HELP, ">&-", status=1, says="standard output is closed"),
    "closed errors": Case(CLAIMS, "2>&-", shows='"low-rank"'),
    "a complaint with closed errors": Case(("reprduce",), "2>&-", status=2),
    "everything closed": Case(CLAIMS, "<&- >&- 2>&-", status=1),
    "a full disk": Case(INSPECT, "> /dev/full", status=1, says="No space left on device"),
    "a full disk for help": Case(HELP, "> /dev/full", status=1, says="No space left on device"),
    "full errors": Case(("reprduce",), "2> /dev/full", status=2),
    "no reader": Case(("claims",), "| true", status=141),
    "ASCII": Case(
        INSPECT,
        environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        shows="2 weight matrices",
    ),
    "a narrow terminal": Case(HELP, environment={"COLUMNS": "40"}, shows="Exit status: 0 done"),
    "a terminal of one column": Case(
        ("inspect", "--help"), environment={"COLUMNS": "1"}, shows="--errors"
    ),
    "a width that is none": Case(HELP, environment={"COLUMNS": "wide"}, shows="undertow inspect"),
    "a dumb terminal": Case(
        ("report", "--help"), environment={"TERM": "dumb", "NO_COLOR": "1"}, shows="--expect"
    ),
    "no home": Case(INSPECT, environment={"HOME": "/nowhere"}, shows="2 weight matrices"),
    "a name that is not UTF-8": Case(
        ("inspect", "$'a\\xff.pt'"), status=1, says="there is no file or folder"
    ),
    "a claim that is not UTF-8": Case(
        ("reproduce", "$'a\\xff'"), status=2, says="no claim is called"
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    made = tmp_path_factory.mktemp("streams")
    weights = {"módulo.weight": torch.eye(3), "other.weight": torch.ones(2, 3)}
    torch.save(weights, made / "weights.pt")
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_command_ends_as_it_should(folder: Path, name: str) -> None:
    case = CASES[name]
    line = f"set -o pipefail; {sys.executable} -m undertow {' '.join(case.words)} {case.redirect}"
    plain = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    ended = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**plain, "PYTHONPATH": os.pathsep.join(sys.path), **case.environment},
        capture_output=True,
        timeout=300,
    )
    errors = ended.stderr.decode()
    assert ended.returncode == case.status, errors
    assert case.shows in ended.stdout.decode()
    assert len(errors.splitlines()) == bool(case.says)
    assert case.says in errors
    assert case.status == 0 or not ended.stdout
    columns = case.environment.get("COLUMNS", "")
    if columns.isdecimal():
        assert max(map(len, ended.stdout.decode().splitlines())) <= 40


def test_python_m_is_told_by_its_usage() -> None:
    command = [sys.executable, "-m", "undertow", "--help"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.stdout.startswith("usage: python -m undertow COMMAND")
