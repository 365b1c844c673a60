"""The charts that claims are drawn with: a frame, two columns, and what tells the series apart.

    draw = Charts(lr="learning rate", loss="train loss")
    draw.lines(means, "lr", "loss", by="method", log="xy")

A frame with columns `low` and `high` gets an interval at each point. Charts are altair's, so that
`+` lays one over another; altair is imported when the first is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from undertow.lab._per_seed import PerSeed
from undertow.lab._readings import Records, kept

_WIDE, _PANEL = (560, 290), (265, 250)
_ABREAST = 4  # panels that fit in a row
_DASH = [5, 4]


@dataclass(frozen=True)
class Figure:
    """One chart (an altair chart) with a title and a caption that says what to see in it."""

    name: str
    title: str
    caption: str
    chart: Any


@dataclass(frozen=True)
class Drawing:
    """A function that draws a figure, with its title; its docstring is the caption.

    Knobs' values stand in the caption in braces, as in a format string.

    Attributes:
        title: what the figure shows, in a sentence.
        draw: gives the chart, or None where nothing can be drawn.
        needs: experiments without which it is not called: each must have a trial that did not
            diverge.
    """

    title: str
    draw: Callable[[Records, Any], Any]
    needs: tuple[str, ...] = ()

    @property
    def caption(self) -> str:
        """The caption, its knobs not filled in."""
        return " ".join((self.draw.__doc__ or "").split())

    def __call__(self, records: Records, knobs: Any) -> Figure | None:
        """The figure; None where the records hold nothing to draw."""
        if any(kept(records[name]).is_empty() for name in self.needs):
            return None
        chart = self.draw(records, knobs)
        if chart is None:
            return None
        name = self.draw.__name__.replace("_", "-")
        try:
            caption = self.caption.format_map(vars(knobs))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"the caption of {name}: braces must hold the names of knobs, got {error}"
            ) from error
        return Figure(name, self.title, caption, chart)


def figure(title: str, *needs: str) -> Callable[[Callable[[Records, Any], Any]], Drawing]:
    """Makes a drawing of a function (records, knobs) -> chart, or None where nothing can be drawn.

    The function's name is the figure's, its docstring the caption. It is not called where one of
    the experiments that it needs has no trial left that did not diverge.
    """
    return lambda draw: Drawing(title, draw, needs)


def labels(template: str, *columns: str) -> pl.Expr:
    """The values of columns in words, such as `labels("lambda = {:g}", "decay")`, as a format."""
    return pl.struct(columns).map_elements(
        lambda row: template.format(*(row[column] for column in columns)), return_dtype=pl.String
    )


def intervals(readings: Mapping[Any, PerSeed], *columns: str, value: str = "value") -> pl.DataFrame:
    """The effects of readings, as rows of the key's `columns`, the value, `low` and `high`.

    Args:
        readings: a key of as many parts as there are columns (one part: itself) to one number a
            seed. Those whose effect is unknown are left out, and an interval without end, of few
            seeds, is drawn as none.
        columns: what the parts of a key are called.
        value: what the effect's column is called.
    """
    rows = []
    for key, reading in readings.items():
        effect = reading.effect()
        if effect.value == effect.value:  # not NaN
            parts = key if isinstance(key, tuple) else (key,)
            ends = (end if math.isfinite(end) else effect.value for end in effect.interval)
            rows.append((*parts, effect.value, *ends))
    return pl.DataFrame(rows, schema=[*columns, value, "low", "high"], orient="row")


def beside(*charts: Any, shared: str = "") -> Any:
    """Panels side by side, each with its own scales and legends but for the channels `shared`.

    Charts that are None are left out: one that is left stands alone, and of none there is None.
    """
    import altair as alt

    drawn = [chart for chart in charts if chart is not None]
    if len(drawn) < 2:
        return drawn[0] if drawn else None
    panels = [chart.properties(width=_PANEL[0], height=_PANEL[1]) for chart in drawn]
    own = [name for name in ("color", "shape", "strokeDash") if name not in shared.split()]
    return alt.hconcat(*panels).resolve_scale(**dict.fromkeys(own, "independent"))


class Charts:
    """Charts of frames whose columns are called so.

    Args:
        words: the title of an axis, by its column's name.

    The methods take a frame, and

    - `x`, a column of numbers, or of names in the order of their first appearance;
    - `by`: a column that colours tell apart, in the order of its first appearance;
    - `log`: the axes that are logarithmic, "", "x", "y" or "xy";
    - `columns`, `rows`: columns of which each value gets a panel of its own, in that order too;
      more than four side by side go on in a further row where there are no `rows`;
    - `domain`: of the vertical axis; what lies outside is cut off.

    They give None of a frame without rows.
    """

    def __init__(self, **words: str) -> None:
        self._words = words

    def lines(
        self,
        frame: pl.DataFrame,
        x: str,
        y: str,
        by: str = "",
        *,
        dash: bool | str = False,
        detail: str = "",
        log: str = "",
        columns: str = "",
        rows: str = "",
        domain: Sequence[float] | None = None,
    ) -> Any:
        """Lines through the points in the order of x, with points where there are few.

        `dash` is true for dashed lines, or a column that dashes tell apart; `detail` a column of
        which each value has a line of its own that looks like the others.
        """
        import altair as alt

        encoded = self._axes(frame, x, y, log, domain) | self._series(by, "color")
        if isinstance(dash, str):
            encoded["strokeDash"] = alt.StrokeDash(f"{dash}:N", sort=None, legend=_legend())
        if detail:
            encoded["detail"] = alt.Detail(f"{detail}:N")
        style: dict[str, Any] = {"strokeDash": _DASH} if dash is True else {}
        style["point"] = dash is not True and not detail and len(frame) <= 200
        if detail:
            style |= {"strokeWidth": 1, "opacity": 0.6}
        drawn = alt.Chart().mark_line(clip=domain is not None, **style).encode(**encoded)
        return self._panels(frame, [drawn], encoded, columns, rows)

    def points(
        self,
        frame: pl.DataFrame,
        x: str,
        y: str,
        by: str = "",
        *,
        shape: str = "",
        log: str = "",
        columns: str = "",
        rows: str = "",
        domain: Sequence[float] | None = None,
    ) -> Any:
        """Points; `shape` is a column that shapes tell apart."""
        import altair as alt

        encoded = self._axes(frame, x, y, log, domain) | self._series(by, "color")
        encoded |= self._series(shape, "shape")
        few = {"size": 50} if len(frame) <= 200 else {"size": 25, "opacity": 0.6}
        drawn = (
            alt.Chart().mark_point(filled=True, clip=domain is not None, **few).encode(**encoded)
        )
        return self._panels(frame, [drawn], encoded, columns, rows)

    def bars(
        self,
        frame: pl.DataFrame,
        x: str,
        y: str,
        by: str = "",
        *,
        columns: str = "",
        rows: str = "",
        domain: Sequence[float] | None = None,
    ) -> Any:
        """Bars from zero over a column of names, those of `by` side by side."""
        import altair as alt

        encoded = self._axes(frame, x, y, "", domain) | self._series(by, "color")
        encoded["x"] = self._named_axis(x)
        if by:
            encoded["xOffset"] = alt.XOffset(f"{by}:N", sort=None)
        drawn = alt.Chart().mark_bar(clip=domain is not None).encode(**encoded)
        return self._panels(frame, [drawn], encoded, columns, rows)

    def measured_against_predicted(
        self,
        frame: pl.DataFrame,
        x: str,
        measured: str,
        predicted: str,
        by: str = "",
        *,
        log: str = "",
        columns: str = "",
        rows: str = "",
        domain: Sequence[float] | None = None,
    ) -> Any:
        """What was measured as points, and what was predicted as a dashed line of its colour."""
        import altair as alt

        encoded = self._axes(frame, x, measured, log, domain) | self._series(by, "color")
        line = encoded | {"y": self._axis("y", predicted, log, domain, self._title(measured))}
        drawn = [
            alt.Chart().mark_line(clip=domain is not None, strokeDash=_DASH).encode(**line),
            alt.Chart().mark_point(filled=True, clip=domain is not None, size=45).encode(**encoded),
        ]
        return self._panels(frame, drawn, encoded, columns, rows)

    def diagonal(self, frame: pl.DataFrame, predicted: str, measured: str, by: str = "") -> Any:
        """Points of what was measured over what was predicted, and a dashed line where they agree.

        The line goes from zero to the largest of either.
        """
        if frame.is_empty():
            return None
        ends = [0.0, max(float(frame[name].max()) for name in (predicted, measured))]  # type: ignore[arg-type]
        line = pl.DataFrame({predicted: ends, measured: ends})
        agreed = self.lines(line, predicted, measured, dash=True)
        return agreed + self.points(frame, predicted, measured, by)

    def spectra(
        self, spectra: Mapping[str, Sequence[float]], *, x: str = "index", y: str = "value"
    ) -> Any:
        """Singular values or eigenvalues in descending order, logarithmic, a line for each name."""
        rows = [
            (name, index, float(value))
            for name, values in spectra.items()
            for index, value in enumerate(sorted(values, reverse=True), start=1)
            if value > 0
        ]
        frame = pl.DataFrame(rows, schema=["spectrum", x, y], orient="row")
        return self.lines(frame, x, y, "spectrum", log="y")

    def level(self, value: float, axis: str = "y", *, across: str = "", log: str = "") -> Any:
        """A dashed line at a value of the axis; `across` is the column that the axis shows."""
        import altair as alt

        frame = pl.DataFrame({across or axis: [float(value)]})
        name = across or axis
        kind = alt.Y if axis == "y" else alt.X
        scale = alt.Scale(type="log", nice=False) if axis in log else alt.Undefined
        encoded = {axis: kind(f"{name}:Q", title=self._title(name), scale=scale)}
        return alt.Chart(frame).mark_rule(strokeDash=_DASH, opacity=0.6).encode(**encoded)

    def _title(self, column: str) -> str:
        return self._words.get(column, column.replace("_", " "))

    def _axis(
        self, axis: str, column: str, log: str, domain: Sequence[float] | None, title: str
    ) -> Any:
        import altair as alt

        options: dict[str, Any] = {"zero": False}
        if axis in log:
            options = {"type": "log", "nice": False, "padding": 8}
        if domain is not None and axis == "y":
            options |= {"domain": list(domain)}
        kind = alt.X if axis == "x" else alt.Y
        # Over many decades the powers of ten alone.
        ticks = alt.Axis(tickCount=5) if axis in log else alt.Undefined
        return kind(f"{column}:Q", scale=alt.Scale(**options), axis=ticks, title=title)

    def _named_axis(self, column: str) -> Any:
        import altair as alt

        axis = alt.Axis(labelAngle=0)
        return alt.X(f"{column}:N", sort=None, title=self._title(column), axis=axis)

    def _axes(
        self, frame: pl.DataFrame, x: str, y: str, log: str, domain: Sequence[float] | None
    ) -> dict[str, Any]:
        across = self._axis("x", x, log, None, self._title(x))
        if frame.schema[x] == pl.String:
            across = self._named_axis(x)
        return {"x": across, "y": self._axis("y", y, log, domain, self._title(y))}

    def _series(self, column: str, channel: str) -> dict[str, Any]:
        import altair as alt

        if not column:
            return {}
        kind = alt.Color if channel == "color" else alt.Shape
        return {channel: kind(f"{column}:N", sort=None, legend=_legend())}

    def _panels(
        self,
        frame: pl.DataFrame,
        drawn: Iterable[Any],
        encoded: Mapping[str, Any],
        columns: str,
        rows: str,
    ) -> Any:
        import altair as alt

        if frame.is_empty():
            return None
        layers = list(drawn)
        if {"low", "high"} <= set(frame.columns):
            kept = {k: v for k, v in encoded.items() if k in ("x", "color", "xOffset")}
            rule = alt.Chart().mark_rule(clip=True).encode(**kept, y="low:Q", y2="high:Q")
            layers.append(rule)
        chart = alt.layer(*layers, data=frame)
        if not columns and not rows:
            return chart.properties(width=_WIDE[0], height=_WIDE[1])
        # Panels have no order of appearance of their own: without a list theirs is the alphabet's.
        panels = {
            name: kind(f"{column}:N", sort=_appearance(frame, column), title=None)
            for name, kind, column in (("column", alt.Column, columns), ("row", alt.Row, rows))
            if column
        }
        count = frame[columns].n_unique() if columns else 1
        if count > _ABREAST and not rows:
            wrapped = alt.Facet(f"{columns}:N", sort=_appearance(frame, columns), title=None)
            chart = chart.properties(width=_WIDE[0] // 3 - 30, height=_PANEL[1] - 50)
            return chart.facet(wrapped, columns=3)
        width = max(140, _WIDE[0] // max(count, 1) - 30) if count > 1 else _PANEL[0]
        return chart.properties(width=width, height=_PANEL[1] - 50).facet(**panels)


def _appearance(frame: pl.DataFrame, column: str) -> list[Any]:
    return frame[column].unique(maintain_order=True).to_list()


def _legend() -> Any:
    import altair as alt

    return alt.Legend(orient="top", title=None, labelLimit=0, columns=4)
