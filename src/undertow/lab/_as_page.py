"""A document as a page: one HTML file that needs no network, for light, dark, print and a phone."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

from undertow.lab._cells import Column, columns_of, paragraphs, printable
from undertow.lab._charts import chart_config, chart_spec, vega_lite_version
from undertow.lab._document import Chart, Document, Item, Section, Table
from undertow.lab._files import write_atomically

_MANY = 7  # columns above which a row is a card of its own on a narrow screen
_SHORT = 28  # characters that stay in one line of a table


def write_page(document: Document, path: str | os.PathLike[str]) -> Path:
    """Write the document as one HTML file, all of it or nothing; returns its path.

    Raises:
        StoreError: the file could not be written.
    """
    target = Path(path)
    write_atomically(target, as_page(document).encode())
    return target


def as_page(document: Document) -> str:
    """The document as one HTML file that asks nobody for anything.

    Charts are interactive (values under the pointer, export to SVG and PNG), and what draws them is
    in the file, once. It is about 0.9 MB with a chart, a few kB without.
    """
    names = (f"chart-{number}" for number in count(1))
    sections = "\n".join(_section(part, names) for part in document.sections if any(part.items))
    charted = any(isinstance(item, Chart) for part in document.sections for item in part.items)
    state = ""
    if document.state is not None:
        tone, word = document.state.tone, _text(document.state.text)
        state = f'<div class="badge {tone}">{word}</div>\n'
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(document.title)}</title>
<style>
{_resource("_page.css")}</style>
</head>
<body>
<main>
<header>
{state}<h1>{_text(document.title)}</h1>
{_paragraphs(document.summary, "lead")}
{_facts(document.facts)}
</header>
{sections}
</main>
{_scripts() if charted else ""}</body>
</html>
"""


def _section(section: Section, names: Iterator[str]) -> str:
    heading = f"<h2>{_text(section.heading)}</h2>" if section.heading else ""
    parts = [heading, *(_item(item, names) for item in section.items)]
    return "<section>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def _item(item: Item, names: Iterator[str]) -> str:
    if isinstance(item, str):
        return _paragraphs(item)
    if isinstance(item, Table):
        return _table(item)
    if isinstance(item, Chart):
        return _chart(item, next(names))
    if isinstance(item, Mapping):
        return _facts(item)
    if len(item) == 1:
        return _paragraphs(item[0])
    entries = "".join(f"<li>{_inline(printable(entry))}</li>" for entry in item)
    return f"<ul>{entries}</ul>" if entries else ""


def _facts(facts: Mapping[str, str]) -> str:
    entries = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items()
    )
    return f"<dl>{entries}</dl>" if entries else ""


def _table(table: Table) -> str:
    columns = list(columns_of(table).values())
    head = "".join(
        f'<th scope="col"{_kind(column)}>{_text(column.head)}</th>' for column in columns
    )
    rows = zip(*(column.cells for column in columns), strict=True)
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td{_kind(column)} data-head="{_text(column.head)}">{_toned(cell, table)}</td>'
            for column, cell in zip(columns, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    # What a terminal puts under each other is under each other on a narrow screen, too.
    stacked = any(isinstance(names, tuple) for names in table.terminal or ())
    kind = ' class="stacked"' if stacked else ' class="many"' if len(columns) > _MANY else ""
    return _figure(
        f'<div class="wide" tabindex="0"><table{kind}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>",
        f"{table.note}\n\n{table.caption}",
    )


def _kind(column: Column) -> str:
    if column.numeric:
        return ' class="number"'
    short = max(map(len, column.cells), default=0) <= _SHORT
    return ' class="short"' if short else ""


def _toned(cell: str, table: Table) -> str:
    tone = table.tones.get(cell)
    return f'<span class="tone {tone}">{_text(cell)}</span>' if tone else _text(cell)


def _chart(chart: Chart, name: str) -> str:
    drawing = chart.drawing() if callable(chart.drawing) else chart.drawing
    spec = _json_script(_filling(chart_spec(drawing)))
    return _figure(f'<div class="chart" id="{name}"><div></div>{spec}</div>', chart.caption)


def _figure(content: str, caption: str) -> str:
    said = _paragraphs(caption)
    return f"<figure>{content}{f'<figcaption>{said}</figcaption>' if said else ''}</figure>"


def _filling(spec: dict[str, Any]) -> dict[str, Any]:
    """A single or layered chart without a width fills its place; composed ones cannot."""
    composed = {"hconcat", "vconcat", "concat", "facet", "repeat"} & spec.keys()
    faceted = {"row", "column", "facet"} & spec.get("encoding", {}).keys()
    if composed or faceted:
        return spec
    size = {
        "width": "container",
        "height": 300,
        "autosize": {"type": "fit-x", "contains": "padding"},
    }
    return spec if "width" in spec else {**size, **spec}


def _scripts() -> str:
    import vl_convert

    bundle = vl_convert.javascript_bundle(
        "window.vegaEmbed = vegaEmbed;", vl_version=vega_lite_version()
    )
    # Inside a script element only these character sequences would end or distort it.
    bundle = bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    config = _json_script(chart_config("currentColor"), 'id="chart-config"')
    return (
        f'{config}\n<script type="module">\n{bundle}\n</script>\n'
        f'<script type="module">\n{_resource("_page.js")}</script>\n'
    )


def _json_script(value: Any, attributes: str = "") -> str:
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" {attributes}>{text}</script>'


def _paragraphs(text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return "\n".join(f"<p{attribute}>{_inline(part)}</p>" for part in paragraphs(text))


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))


def _text(text: str) -> str:
    return html.escape(printable(text))


def _resource(name: str) -> str:
    return resources.files("undertow.lab").joinpath(name).read_text(encoding="utf-8")
