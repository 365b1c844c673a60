"""Tables for people: numbers with sensible digits, as text for a terminal or as HTML for a page."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

_LONGEST_LIST = 4


def format_number(value: float, digits: int = 4) -> str:
    """A number with at most so many significant digits: 0.1235, 12340, 1.2e-05."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def text_table(frame: pl.DataFrame, width: int = 80) -> str:
    """The frame as a plain text table no wider than `width` columns.

    Numbers stand right-aligned and are never cut. Columns that do not fit go into further blocks
    below, each starting with the first column again; long text is folded.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    cells = [[_cell(value) for value in frame[name]] for name in frame.columns]
    natural = [
        max(map(len, [name, *column])) for name, column in zip(frame.columns, cells, strict=True)
    ]
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    for number, block in enumerate(_blocks(natural, width)):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for index in block:
            numeric = _is_numeric(frame.dtypes[index])
            table.add_column(
                frame.columns[index],
                justify="right" if numeric else "left",
                no_wrap=numeric,
                overflow="fold",
            )
        for row in range(frame.height):
            table.add_row(*(_escape_markup(cells[index][row]) for index in block))
        if number:
            console.print()
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def html_table(frame: pl.DataFrame) -> str:
    """The frame as an HTML table; cells carry the class `number`, `text` or `list`."""
    kinds = [_html_class(dtype) for dtype in frame.dtypes]
    head = "".join(
        f'<th scope="col"{kind}>{html.escape(name.replace("_", " "))}</th>'
        for name, kind in zip(frame.columns, kinds, strict=True)
    )
    rows = (
        "".join(
            f"<td{kind}>{html.escape(_cell(value))}</td>"
            for value, kind in zip(row, kinds, strict=True)
        )
        for row in frame.iter_rows()
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _html_class(dtype: Any) -> str:
    if _is_numeric(dtype):
        return ' class="number"'
    if dtype == pl.String:
        return ' class="text"'
    return ' class="list"' if isinstance(dtype, pl.List) else ""


def _is_numeric(dtype: Any) -> bool:
    return bool(dtype.is_numeric())


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, pl.Series):
        value = value.to_list()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if len(value) > _LONGEST_LIST:
            return f"{len(value)} values"
        return f"[{', '.join(_cell(item) for item in value)}]"
    return str(value)


def _escape_markup(text: str) -> str:
    return text.replace("[", "\\[")


def _blocks(natural: Sequence[int], width: int) -> Iterator[list[int]]:
    """Columns in runs that fit `width`; every run starts with the first column."""
    gap = 2
    if not natural:
        return
    lead = min(natural[0], width // 2)
    block, used = [0], lead
    for index in range(1, len(natural)):
        if used + gap + natural[index] > width and len(block) > 1:
            yield block
            block, used = [0], lead
        block.append(index)
        used += gap + natural[index]
    yield block
