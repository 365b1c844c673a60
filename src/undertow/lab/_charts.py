"""One chart definition: interactive in a page, or SVG, PNG and PDF without a browser."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from undertow.lab._as_json import without_nan
from undertow.lab._files import write_atomically

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# Told apart in light and in dark, on paper, and by most colour-blind readers.
_PALETTE = ("#3b82c4", "#e08a1e", "#2f9e77", "#c2566e", "#8a6fc9", "#8c8c3a", "#4fb3bf", "#9a6a4f")


def chart_config(ink: str) -> dict[str, Any]:
    """The Vega-Lite configuration of every chart: quiet axes in the colour `ink`, no background.

    A chart's own settings go before it. In a page `ink` is `currentColor`, so that axes and labels
    follow the page from light to dark and onto paper.
    """
    text = {"labelColor": ink, "titleColor": ink, "labelFont": _FONT, "titleFont": _FONT}
    return {
        "background": "transparent",
        "font": _FONT,
        "view": {"stroke": None},
        "mark": {"tooltip": True},
        "line": {"strokeWidth": 2},
        "rule": {"color": ink},
        "text": {"color": ink},
        "axis": {
            **text,
            "domainColor": ink,
            "domainOpacity": 0.4,
            "tickColor": ink,
            "tickOpacity": 0.4,
            "gridColor": ink,
            "gridOpacity": 0.1,
            "labelOpacity": 0.8,
            "labelFontSize": 11,
            "labelOverlap": True,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "titlePadding": 8,
        },
        "legend": {**text, "titleFontWeight": 500, "labelFontSize": 11},
        "header": {**text, "titleFontWeight": 500},
        "title": {"color": ink, "subtitleColor": ink, "anchor": "start", "fontWeight": 600},
        "range": {"category": list(_PALETTE), "heatmap": {"scheme": "viridis"}},
    }


def chart_spec(chart: Any) -> dict[str, Any]:
    """The Vega-Lite specification of an altair chart of any size; NaN and infinities are null."""
    import altair

    with altair.data_transformers.enable("default", max_rows=None):
        spec = chart.to_dict()
    config = spec.get("config", {})
    if config.get("view") == {"continuousWidth": 300, "continuousHeight": 300}:
        del config["view"]  # altair's default, which would go before ours
    cleaned = without_nan(spec)
    assert isinstance(cleaned, dict)
    return cleaned


def vega_lite_version() -> str:
    """The Vega-Lite version that altair writes, as vl-convert calls it: "6.1"."""
    import altair

    major, minor, *_ = altair.SCHEMA_VERSION.removeprefix("v").split(".")
    return f"{major}.{minor}"


def save_chart(chart: Any, path: str | os.PathLike[str]) -> Path:
    """Write an altair chart to an .svg, .png or .pdf file, dark on white; returns the path.

    Raises:
        ValueError: another file type.
        StoreError: the file could not be written.
    """
    target = Path(path)
    write_atomically(target, draw_chart(chart, target.suffix.lower()))
    return target


def draw_chart(chart: Any, suffix: str) -> bytes:
    """The content of a file of an altair chart, dark on white: ".svg", ".png" or ".pdf".

    Raises:
        ValueError: another file type.
    """
    import vl_convert

    arguments: dict[str, Any] = {
        "vl_spec": json.dumps(chart_spec(chart)),
        "vl_version": vega_lite_version(),
        "config": {**chart_config("#1f2328"), "background": "white"},
    }
    match suffix:
        case ".svg":
            svg: str = vl_convert.vegalite_to_svg(**arguments)
            return svg.encode()
        case ".png":
            png: bytes = vl_convert.vegalite_to_png(**arguments, scale=2)
            return png
        case ".pdf":
            pdf: bytes = vl_convert.vegalite_to_pdf(**arguments)
            return pdf
    raise ValueError(f"path: cannot write a chart as {suffix!r}; use .svg, .png or .pdf")
