"""A report: one HTML file that needs no network, for light, dark, print and a phone."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import polars as pl

from undertow.lab._charts import chart_config, chart_spec, vega_lite_version
from undertow.lab._files import write_atomically
from undertow.lab._tables import html_table

Tone = Literal["good", "bad", "unsure", "neutral"]


@dataclass(frozen=True)
class Badge:
    """A verdict in a word or two; `tone` gives its colour."""

    text: str
    tone: Tone = "neutral"


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, then text, chart and table, each where given.

    Attributes:
        heading: its title.
        text: paragraphs, parted by empty lines; `code` in backquotes.
        table: shown below the text, with the frame's column names.
        chart: an altair chart. One without a width of its own fills the page's.
        caption: what to see in the chart.
        badge: beside the heading.
    """

    heading: str
    text: str = ""
    table: pl.DataFrame | None = None
    chart: Any = None
    caption: str = ""
    badge: Badge | None = None


@dataclass(frozen=True)
class Page:
    """A report's content.

    Attributes:
        title: the page's title.
        lead: what the page says, in a paragraph.
        sections: its parts, in order.
        badge: the verdict, above the title.
        facts: short named values below the lead, such as the preset and the seed.
        footer: the last line.
    """

    title: str
    lead: str
    sections: tuple[Section, ...] = ()
    badge: Badge | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    footer: str = ""


def write_report(page: Page, path: str | os.PathLike[str]) -> Path:
    """Write the page as one HTML file; returns its path.

    Charts are interactive (values under the pointer, export to SVG and PNG), and what draws them is
    in the file, once. It is about 0.9 MB with a chart, a few kB without.

    Raises:
        StoreError: the file could not be written.
    """
    target = Path(path)
    write_atomically(target, _document(page).encode())
    return target


def _document(page: Page) -> str:
    sections = "\n".join(
        _section(section, f"chart-{number}") for number, section in enumerate(page.sections, 1)
    )
    badge = ""
    if page.badge is not None:
        badge = f'<div class="badge large {page.badge.tone}">{_text(page.badge.text)}</div>'
    facts = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>"
        for name, value in page.facts.items()
    )
    scripts = ""
    if any(section.chart is not None for section in page.sections):
        scripts = _scripts()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(page.title)}</title>
<style>
{_resource("_page.css")}</style>
</head>
<body>
<main>
<header>
{badge}
<h1>{_text(page.title)}</h1>
{_paragraphs(page.lead, "lead")}
{f"<dl>{facts}</dl>" if facts else ""}
</header>
{sections}
{f"<footer>{_text(page.footer)}</footer>" if page.footer else ""}
</main>
{scripts}</body>
</html>
"""


def _section(section: Section, identity: str) -> str:
    badge = ""
    if section.badge is not None:
        badge = f'<span class="badge {section.badge.tone}">{_text(section.badge.text)}</span>'
    parts = [
        f'<div class="heading"><h2>{_text(section.heading)}</h2>{badge}</div>',
        _paragraphs(section.text),
    ]
    if section.chart is not None:
        caption = f"<figcaption>{_inline(section.caption)}</figcaption>" if section.caption else ""
        parts.append(
            f'<figure><div class="chart" id="{identity}"><div></div>'
            f"{_json_script(_filling(chart_spec(section.chart)))}</div>{caption}</figure>"
        )
    if section.table is not None:
        parts.append(html_table(section.table))
    return "<section>\n" + "\n".join(part for part in parts if part) + "\n</section>"


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
    paragraphs = [part for part in re.split(r"\n\s*\n", text.strip()) if part]
    return "\n".join(f"<p{attribute}>{_inline(paragraph)}</p>" for paragraph in paragraphs)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))


def _text(text: str) -> str:
    return html.escape(text)


def _resource(name: str) -> str:
    return resources.files("undertow.lab").joinpath(name).read_text(encoding="utf-8")
