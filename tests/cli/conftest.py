"""What every test of the command line shares: a terminal of 80 columns, and how one is called."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from undertow.cli import main


@pytest.fixture(autouse=True)
def _columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function from words that are wrong usage to the one line that says so."""

    def line(*words: str) -> str:
        assert main(words) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (only,) = captured.err.splitlines()
        assert only.startswith("undertow: ")
        assert only.isascii()
        return only

    return line
