"""How words become options: laws of the parser that all commands share."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.cli._fields import Shown
from undertow.cli._help import HelpShown
from undertow.cli._words import UsageError, close_to, parse


@dataclass(frozen=True)
class Options:
    """What a ferry takes."""

    place: Annotated[Path, Shown("PLACE", positional=True)]
    """Where it goes."""
    people: int
    """How many."""
    tide: float | None = None
    """In metres."""
    cars: tuple[int, ...] = (1, 2)
    """A row each."""
    hours: tuple[int, int] | None = None
    """Out and back."""
    sea: Literal["calm", "rough"] = "calm"
    """Its state."""
    name: str = "Undine"
    """Of the ferry."""
    bar: bool = True
    """Open."""
    night: bool = False
    """Sail then."""


def parsed(words: str) -> Options:
    return parse(Options, shlex.split(words), command="sail", summary="Sail.")


@pytest.mark.parametrize(
    "words",
    [
        "Capri --people 3 --night",
        "--people 3 Capri --night",
        "--people 3 --night Capri",
        "--night --people=3 Capri",
        "--night Capri --people 2 --people 3",
    ],
)
def test_the_order_of_words_does_not_matter_and_the_last_flag_wins(words: str) -> None:
    assert parsed(words) == Options(Path("Capri"), 3, night=True)


def test_each_type_is_read() -> None:
    words = "Capri --people 3 --tide -1e-3 --cars --hours 7 9 --sea rough --name 'Sea Cat' --no-bar"
    found = Options(Path("Capri"), 3, -1e-3, (), (7, 9), "rough", "Sea Cat", bar=False)
    assert parsed(words) == found
    assert parsed("Capri --people 3 --tide None") == Options(Path("Capri"), 3)
    assert parsed("--people 3 --cars 4 5 6 Capri").cars == (4, 5, 6)
    assert parsed("Capri --people 3 --name=-x=y").name == "-x=y"


@given(
    people=st.integers(),
    tide=st.floats(allow_nan=False),
    cars=st.lists(st.integers()).map(tuple),
)
def test_numbers_survive_being_written_and_read(
    people: int, tide: float, cars: tuple[int, ...]
) -> None:
    words = f"Capri --people {people} --tide {tide!r} --cars {' '.join(map(str, cars))}"
    assert parsed(words) == Options(Path("Capri"), people, tide, cars)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "sail needs PLACE, --people N; see undertow sail --help"),
        ("Capri", "sail needs --people N"),
        ("Capri --poeple 3", "sail: no option --poeple; did you mean --people?"),
        ("Capri --wingspan 3", "sail: no option --wingspan; there are --bar, --cars"),
        ("--place Capri", "sail: no option --place"),
        ("Capri Ischia --people 3", "sail: 'Ischia' is one word too many"),
        ("Capri --people 3 4", "sail: '4' is one word too many"),
        ("Capri --people", "--people takes a whole number, got nothing"),
        ("Capri --people 3.5", "--people takes a whole number, got 3.5"),
        ("Capri --people 3 --tide high", "--tide takes a number, got high"),
        ("Capri --people 3 --cars 1 x", "--cars takes a list, each a whole number, got 1 x"),
        ("Capri --people 3 --hours 7", "--hours takes a whole number and a whole number, got 7"),
        ("Capri --people 3 --sea wild", "--sea takes one of calm, rough, got wild"),
        ("Capri --people 3 --night=yes", "--night takes no value, got yes"),
        ("Capri --people 3 --no-sea", "no option --no-sea"),
        ("--people 3 --cars=1", "sail needs PLACE"),
        ("Capri -p 3", "no flag '-p'; flags start with --"),
    ],
)
def test_wrong_usage_names_the_flag_what_was_given_and_what_would_do(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(words)
    assert message in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_help_shows_every_field_once_and_no_default_that_says_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(HelpShown):
        parsed("--people x --help")
    text = capsys.readouterr().out
    assert text.startswith("usage: undertow sail PLACE [OPTIONS]\n\nSail.\n")
    for words in (
        "--tide X",
        "--cars N...",
        "--hours N N",
        "--sea NAME",
        "--name TEXT",
        "--no-bar",
    ):
        assert text.count(words) == 1
    for words in ("How many. (required)", "(default: 1 2)", "(default: calm)", "(default: Undine)"):
        assert words in text
    assert "None" not in text
    assert "False" not in text


def test_close_to_lists_all_where_none_is_close() -> None:
    assert close_to("inspct", ["inspect", "report"]) == "did you mean inspect?"
    assert close_to("zzz", ["inspect", "report"]) == "there are inspect, report"
