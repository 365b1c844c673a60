"""What a result says, before it is known who reads it: a person at a terminal or a page, a program.

A result builds one `Document`; `as_text`, `as_page` and `as_json` print it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import polars as pl

Tone = Literal["good", "bad", "unsure"]
"""What gives a state or a cell its colour."""


@dataclass(frozen=True)
class State:
    """Where a result stands, in a word or two; `tone` gives its colour."""

    text: str
    tone: Tone


@dataclass(frozen=True, eq=False)
class Table:
    """Rows and columns.

    Attributes:
        columns: a polars frame, or a name and its cells for each column.
        note: what must be known to read it, on terminal and page.
        caption: what else the page says of it.
        formats: by column, a function from a cell to its text; others print as their type does.
        tones: by the text of a cell, the colour of every such cell.
        terminal: the columns that a terminal shows, all by default. Those in a tuple stand under
            each other in one column, such as a name and its rule.

    Raises:
        ValueError: `formats` or `terminal` name a column that is not there.
    """

    columns: pl.DataFrame | Mapping[str, Iterable[Any]]
    note: str = ""
    caption: str = ""
    formats: Mapping[str, Callable[[Any], str]] = field(default_factory=dict)
    tones: Mapping[str, Tone] = field(default_factory=dict)
    terminal: Sequence[str | tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        there = self.names()
        shown = [name for stack in self.stacks() for name in stack]
        for argument, names in (("formats", self.formats), ("terminal", shown)):
            if unknown := sorted(set(names) - set(there)):
                raise ValueError(
                    f"{argument} must name columns of the table, {', '.join(there)}, got"
                    f" {', '.join(unknown)}"
                )

    def names(self) -> list[str]:
        """The names of the columns."""
        return list(getattr(self.columns, "columns", self.columns))

    def values(self) -> dict[str, list[Any]]:
        """The cells of each column, as Python values."""
        columns = {name: self.columns[name] for name in self.names()}
        return {
            name: column.to_list() if hasattr(column, "to_list") else list(column)
            for name, column in columns.items()
        }

    def stacks(self) -> list[tuple[str, ...]]:
        """The columns of a terminal, each as the names that stand under each other in it."""
        shown = self.names() if self.terminal is None else self.terminal
        return [(stack,) if isinstance(stack, str) else tuple(stack) for stack in shown]


@dataclass(frozen=True, eq=False)
class Chart:
    """A drawing, on the page alone.

    Attributes:
        drawing: an altair chart, or a function without arguments that returns one when a page is
            printed. A chart without a width of its own fills the page's.
        caption: what to see in it.
    """

    drawing: Any
    caption: str = ""


Item = str | Mapping[str, str] | tuple[str, ...] | Table | Chart
"""What may stand under a heading: text, facts, a list, a table or a chart."""


@dataclass(frozen=True, eq=False)
class Section:
    """A heading and what stands under it, in order; one with nothing under it is left out.

    Attributes:
        heading: its title.
        items: each is text (paragraphs, parted by empty lines, `code` in backquotes), facts (a
            mapping from labels to text), a list (a tuple of texts), a `Table` or a `Chart`.
        page_only: whether a terminal leaves it out.
    """

    heading: str
    items: tuple[Item, ...]
    page_only: bool = False


@dataclass(frozen=True, eq=False)
class Document:
    """What a result says.

    Attributes:
        title: what it is about, in a line.
        summary: what it says, in a sentence or two; further paragraphs after empty lines.
        state: the verdict, where there is one.
        facts: short named values, such as the preset and the seed.
        sections: its parts, in order.
        data: the same for programs, as JSON can hold it.
    """

    title: str
    summary: str = ""
    state: State | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
