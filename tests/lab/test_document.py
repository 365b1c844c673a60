"""A document says the same at a terminal, on a page and to a program; nothing in it misleads."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import altair
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from undertow import lab
from undertow.lab._cells import format_number

FRAME = pl.DataFrame(
    {
        "check": [
            "rank falls with <E> & more",
            "control: no weight decay at all, in many more words",
        ],
        "value": [0.981234, -1.23456e-5],
        "interval": [[0.9, 1.0], [-math.inf, 1.0]],
        "rule": ["at least 0.9 in the whole interval", "must fail [to] reach 10"],
        "passed": [True, False],
        "spectrum": [[1.0] * 9, [2.0] * 9],
        "seconds": [1.5, None],
    }
)


def chart(points: int = 3) -> altair.Chart:
    data = pl.DataFrame({"x": [float(i) for i in range(points)], "y": [math.nan] * points})
    return altair.Chart(data).mark_line().encode(x="x", y="y")


def document() -> lab.Document:
    return lab.Document(
        title="Title <1>",
        summary="Lead.\n\nMore of it.",
        state=lab.State("supported", "good"),
        facts={"seed": "0", "a long name of a fact": "its value, in more words " * 5},
        sections=(
            lab.Section(
                "Checks",
                (
                    "One.\n\nTwo `a<b`.",
                    lab.Table(FRAME, note="To be read.", caption="Aside.", tones={"yes": "good"}),
                ),
            ),
            lab.Section("First", (lab.Chart(chart(), "</script> is only text"),)),
            lab.Section("Second", (lab.Chart(lambda: chart() | chart()),)),
            lab.Section("Empty", ((), "", {})),
            lab.Section("For the page", ("Long.",), page_only=True),
            lab.Section("Notes", (("first note", "second note"),)),
        ),
        data={"value": math.nan, "many": (1.0, -math.inf), "of": {"words": "<é>"}},
    )


class Reader(HTMLParser):
    """Collects tags, attributes and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attributes)
        self.sources += [str(given[name]) for name in ("src", "href") if name in given]
        if tag == "script":
            self.scripts.append((given.get("type"), ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        else:
            self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = lab.write_page(document(), tmp_path_factory.mktemp("page") / "new" / "report.html")
    return path.read_text(encoding="utf-8")


def squeezed(text: str) -> str:
    """Without what folding adds: words of one cell may stand in several lines."""
    return re.sub(r"\s+", " ", text)


# --- at a terminal --------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_text_keeps_to_its_width_and_says_every_fact_and_number(width: int) -> None:
    text = lab.as_text(document(), width)
    assert max(map(len, text.splitlines())) <= width
    for cell in ("0.9812", "-1.235e-5", "9 values", "yes", "1.5", "–", "seed", "∞"):
        assert cell in text
    for words in ("Title <1>", "supported. Lead.", "To be read.", "first note", "More of it."):
        assert words in squeezed(text)
    for words in ("For the page", "Empty", "First", "only text", "Aside."):
        assert words not in text


def test_text_is_plain_and_has_no_loose_ends() -> None:
    text = lab.as_text(document())
    assert text.isprintable() or set(filter(lambda c: not c.isprintable(), text)) == {"\n"}
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "\n\n\n" not in text


def test_a_width_that_nothing_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="width must be at least 20 columns, got 3"):
        lab.as_text(document(), 3)


def test_columns_that_do_not_fit_stand_below_with_the_first_again() -> None:
    wide = {"name": ["a", "b"], **{f"c{i}": [i + 0.5, 2.0 * i] for i in range(30)}}
    text = lab.as_text(lab.Document("Wide", sections=(lab.Section("", (lab.Table(wide),)),)))
    assert max(map(len, text.splitlines())) <= 80
    heads = [line for line in text.splitlines() if line.startswith("name")]
    assert len(heads) > 1
    assert [int(n) for head in heads for n in re.findall(r"c(\d+)", head)] == [*range(30)]


def test_a_terminal_shows_the_columns_it_is_told_to_one_under_the_other() -> None:
    table = lab.Table(FRAME, terminal=("passed", ("check", "rule")))
    lines = lab.as_text(lab.Document("", sections=(lab.Section("", (table,)),))).splitlines()
    assert "seconds" not in "".join(lines)
    (first,) = [place for place, line in enumerate(lines) if "rank falls" in line]
    assert lines[first].index("rank falls") == lines[first + 1].index("at least 0.9")


def test_formats_are_for_terminal_and_page() -> None:
    table = lab.Table({"share": [0.25, None]}, formats={"share": lambda x: f"{x or 0:.0%}"})
    for printer in (lab.as_text, lab.as_page):
        text = printer(lab.Document("", sections=(lab.Section("", (table,)),)))
        assert "25%" in text
        assert "0%" in text


def test_unknown_columns_are_named() -> None:
    with pytest.raises(ValueError, match=r"terminal must name columns of the table, a, b, got c"):
        lab.Table({"a": [], "b": []}, terminal=("a", ("b", "c")))
    with pytest.raises(ValueError, match="formats must name columns"):
        lab.Table({"a": []}, formats={"b": str})


def test_an_empty_table_has_its_heads() -> None:
    for table in (lab.Table(FRAME.clear()), lab.Table({"value": []})):
        text = lab.as_text(lab.Document("", sections=(lab.Section("", (table,)),)))
        assert "value" in text
    nothing = lab.Document("Title", sections=(lab.Section("", (lab.Table(pl.DataFrame()),)),))
    assert lab.as_text(nothing).strip() == "Title"


class Terminal(io.StringIO):
    """Standard output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", Terminal())
    lab.print_document(document())
    coloured = sys.stdout.getvalue()
    assert "\x1b[32msupported" in coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in plain.splitlines()] == lab.as_text(document(), 60).split("\n")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    lab.print_document(document())
    assert sys.stdout.getvalue() == lab.as_text(document()) + "\n"


# --- names from strangers -------------------------------------------------------------------

WORDS = st.text(
    alphabet="ab <>&[]`'\"\\/.\x00\x07\x1b\x9b\r\n\t\u202e\u2066\u2028\ud800é漢字e\u0301"
)
MISLEADING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800]")


def about(word: str) -> lab.Document:
    """A document with the word everywhere."""
    table = lab.Table({word: [1.5], "name": [word]}, note=word, tones={word: "good"})
    section = lab.Section(word, (word, (word, word), {word: word}, table))
    state = lab.State(word, "bad")
    return lab.Document(word, word, state, {word: word}, (section,), {"word": word})


@given(WORDS, st.integers(20, 90))
def test_no_name_moves_the_cursor_or_leaves_its_width(word: str, width: int) -> None:
    text = lab.as_text(about(word), width)
    assert not MISLEADING.search(text)
    assert max(map(cell_len, text.split("\n"))) <= width
    assert "1.5" in text


@given(WORDS)
def test_no_name_becomes_markup_or_turns_a_page(word: str) -> None:
    page = lab.as_page(about(word))
    assert not MISLEADING.search(page)
    assert set(Reader(page).tags) <= set(Reader(lab.as_page(about("word"))).tags) | {"code"}
    page.encode()


# --- on a page ------------------------------------------------------------------------------


def test_a_page_asks_for_no_other_file(page: str) -> None:
    reader = Reader(page)
    assert reader.sources == []
    assert "@import" not in page.split("</style>")[0]
    assert "url(" not in page.split("</style>")[0]


def test_the_bundle_is_there_once_and_the_charts_are_valid_json(page: str) -> None:
    reader = Reader(page)
    modules = [text for kind, text in reader.scripts if kind == "module"]
    assert sum(len(text) > 100_000 for text in modules) == 1
    config, *specs = sorted(
        (json.loads(text) for kind, text in reader.scripts if kind == "application/json"),
        key=lambda value: "$schema" in value,
    )
    assert config["axis"]["labelColor"] == "currentColor"
    assert len(specs) == 2
    assert specs[0]["width"] == "container"
    assert "width" not in specs[1]
    assert "NaN" not in json.dumps(specs)


def test_a_page_says_the_whole(page: str) -> None:
    reader = Reader(page)
    for text in (
        *("Title <1>", "supported", "More of it.", "rank falls with <E> & more", "a<b"),
        *("0.9812", "-1.235e-5", "[-∞, 1]", "9 values", "seed", "first note", "To be read."),
        *("Aside.", "</script> is only text", "For the page"),
    ):
        assert text in reader.text
    assert reader.tags.count("section") == 5
    assert "Empty" not in reader.text


def test_a_page_without_charts_is_small() -> None:
    page = lab.as_page(lab.Document("Title", "Lead."))
    assert len(page) < 10_000
    assert "script" not in Reader(page).tags


# --- for programs ---------------------------------------------------------------------------


def test_json_is_one_object_in_a_line_with_null_for_no_number() -> None:
    text = lab.as_json(document())
    assert "\n" not in text
    assert json.loads(text) == {"value": None, "many": [1.0, None], "of": {"words": "<é>"}}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda part: st.lists(part) | st.dictionaries(st.text(), part),
)


@pytest.mark.slow
@given(st.dictionaries(st.text(), JSON))
def test_json_is_the_data(data: dict[str, object]) -> None:
    assert json.loads(lab.as_json(lab.Document("", data=data))) == data


# --- charts and numbers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "start"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")]
)
def test_charts_are_saved_by_suffix_whatever_their_size(
    tmp_path: Path, suffix: str, start: bytes
) -> None:
    path = lab.save_chart(chart(6000 if suffix == "svg" else 3), tmp_path / f"chart.{suffix}")
    assert path.read_bytes().startswith(start)


def test_other_chart_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.svg, \.png or \.pdf"):
        lab.save_chart(chart(), tmp_path / "chart.bmp")


@given(st.floats(-1e300, 1e300))
def test_numbers_are_right_to_their_digits(value: float) -> None:
    assert float(format_number(value)) == pytest.approx(value, rel=5.1e-4)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.5, "0.5"),
        (1234.5678, "1235"),
        (1e-7, "1e-7"),
        (2.5e9, "2.5e9"),
        (-math.inf, "-∞"),
    ],
)
def test_numbers_read_well(value: float, text: str) -> None:
    assert format_number(value) == text
