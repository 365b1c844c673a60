"""Reports are one file that asks nobody for anything; tables fit; charts need no browser."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import altair
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from undertow.lab._tables import format_number

from undertow import lab

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


def page() -> lab.Page:
    sections = (
        lab.Section(
            "Checks", "One.\n\nTwo `a<b`.", table=FRAME, badge=lab.Badge("not yet", "unsure")
        ),
        lab.Section("First", chart=chart(), caption="</script> is only text"),
        lab.Section("Second", chart=chart() | chart()),
    )
    return lab.Page(
        "Title <1>", "Lead.", sections, lab.Badge("supported", "good"), {"Seed": "0"}, "End."
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
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = lab.write_report(page(), tmp_path_factory.mktemp("page") / "new" / "report.html")
    return path.read_text(encoding="utf-8")


def test_a_report_asks_for_no_other_file(written: str) -> None:
    reader = Reader(written)
    assert reader.sources == []
    assert "@import" not in written.split("</style>")[0]
    assert "url(" not in written.split("</style>")[0]


def test_the_bundle_is_there_once_and_the_charts_are_valid_json(written: str) -> None:
    reader = Reader(written)
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


def test_text_is_text(written: str) -> None:
    reader = Reader(written)
    for text in ("Title <1>", "rank falls with <E> & more", "a<b", "</script> is only text"):
        assert text in reader.text
    assert reader.tags.count("section") == 3
    assert "supported" in reader.text
    assert "not yet" in reader.text


def test_a_page_without_charts_is_small(tmp_path: Path) -> None:
    path = lab.write_report(lab.Page("Title", "Lead."), tmp_path / "report.html")
    assert path.stat().st_size < 10_000
    assert "script" not in Reader(path.read_text()).tags


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


@pytest.mark.parametrize("width", [40, 80, 200])
def test_text_tables_fit_and_keep_every_number(width: int) -> None:
    table = lab.text_table(FRAME, width)
    assert max(map(len, table.splitlines())) <= width
    for cell in ("0.9812", "-1.235e-5", "9 values", "yes", "1.5", "–"):
        assert cell in table
    assert "[to]" in re.sub(r"\s+", " ", table)
    assert ("∞" in table) == ("interval" in table)


def test_an_empty_table_has_its_heads() -> None:
    assert "value" in lab.text_table(FRAME.clear())
    assert lab.text_table(pl.DataFrame()) == ""


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
