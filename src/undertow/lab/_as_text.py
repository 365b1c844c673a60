"""A document as text for a terminal: prose and tables that keep to a number of columns.

Lines are made of styled pieces, so that widths are counted before any colour is put on.
"""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from undertow._quietly import quietly
from undertow.lab._cells import columns_of, paragraphs, printable
from undertow.lab._document import Chart, Document, Item, Table

_STYLES = {"good": "green", "bad": "red", "unsure": "yellow", "head": "bold", "dim": "dim"}
_NARROWEST, _WIDEST = 20, 120
_LEAST = 12  # columns that text in a table keeps
_ROOMY = 5  # columns of a table that stand two apart whatever it takes

_Line = list[tuple[str, str]]  # pieces of text, each with its style


def as_text(document: Document, width: int = 80) -> str:
    """The document as plain text in lines of at most `width` columns.

    Charts, and sections for the page alone, are left out. Numbers are never cut: columns of a table
    that do not fit stand in further blocks below, each with the first column again.

    Raises:
        ValueError: a width below 20.
    """
    if width < _NARROWEST:
        raise ValueError(f"width must be at least {_NARROWEST} columns, got {width}")
    lines = ("".join(text for text, _ in line).rstrip() for line in _lines(document, width))
    return "\n".join(lines)


def print_document(document: Document) -> None:
    """Print the document to standard output: as wide as the terminal and in colour where it is one.

    Elsewhere, in a file or a pipe, it is the plain text of 80 columns.
    """
    if not sys.stdout.isatty():
        print(as_text(document))
        return
    with quietly():
        from rich.console import Console
        from rich.text import Text

    width = max(_NARROWEST, min(shutil.get_terminal_size().columns, _WIDEST))
    console = Console(highlight=False, soft_wrap=True)
    for line in _lines(document, width):
        console.print(Text.assemble(*((text, _STYLES.get(style, "")) for text, style in line)))


def _lines(document: Document, width: int) -> Iterator[_Line]:
    yield from _prose(document.title, width, "head")
    yield from _headline(document, width)
    if document.facts:
        yield []
        yield from _facts(document.facts, width)
    for section in document.sections:
        items = [item for item in section.items if item and not isinstance(item, Chart)]
        if section.page_only or not items:
            continue
        yield []
        yield from _prose(section.heading, width, "head")
        for number, item in enumerate(items):
            if number:
                yield []
            yield from _item(item, width)


def _headline(document: Document, width: int) -> Iterator[_Line]:
    state = document.state
    if state is None:
        yield from _prose(document.summary, width)
        return
    word = printable(state.text)
    said = f"{word}. {document.summary}" if document.summary else word
    for number, line in enumerate(_prose(said, width)):
        ((text, _),) = line or [("", "")]
        if number or not text.startswith(word):
            yield line
        else:
            yield [(word, state.tone), (text[len(word) :], "")]


def _item(item: Item, width: int) -> Iterator[_Line]:
    if isinstance(item, str):
        yield from _prose(item, width)
    elif isinstance(item, Table):
        yield from _table(item, width)
        yield from _prose(item.note, width, "dim")
    elif isinstance(item, Mapping):
        yield from _facts(item, width)
    elif isinstance(item, tuple):
        for entry in item:
            lead = "- " if len(item) > 1 else ""
            yield from _hanging(lead, printable(entry), len(lead), width)


def _prose(text: str, width: int, style: str = "") -> Iterator[_Line]:
    for number, paragraph in enumerate(paragraphs(text)):
        if number:
            yield []
        for line in _wrapped(paragraph, width):
            yield [(line, style)]


def _facts(facts: Mapping[str, str], width: int) -> Iterator[_Line]:
    names = [printable(name) for name in facts]
    indent = min(max(map(_columns, names)) + 2, width // 2)
    for name, value in zip(names, facts.values(), strict=True):
        *above, last = _wrapped(name, indent - 2)
        yield from ([(line, "dim")] for line in above)
        yield from _hanging(_padded(last, indent), printable(value), indent, width, "dim")


def _hanging(lead: str, text: str, indent: int, width: int, style: str = "") -> Iterator[_Line]:
    for number, line in enumerate(_wrapped(text, width - indent)):
        yield [(" " * indent if number else lead, style), (line, "")]


# --- tables ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stack:
    """A column of a terminal: in each row, the cells that stand under each other."""

    head: str
    numeric: bool
    rows: tuple[tuple[str, ...], ...]

    @property
    def natural(self) -> int:
        return max(_columns(self.head), self._cells())

    @property
    def least(self) -> int:
        if not self.numeric:
            return min(self.natural, _LEAST)
        return max([self._cells(), *map(_columns, self.head.split())])

    def _cells(self) -> int:
        return max((_columns(cell) for row in self.rows for cell in row), default=0)


def _table(table: Table, width: int) -> Iterator[_Line]:
    columns = columns_of(table)
    stacks = [
        _Stack(
            head=", ".join(columns[name].head for name in names),
            numeric=columns[names[0]].numeric,
            rows=tuple(zip(*(columns[name].cells for name in names), strict=True)),
        )
        for names in table.stacks()
    ]
    if not stacks:
        return
    natural = sum(stack.natural for stack in stacks)
    roomy = len(stacks) <= _ROOMY or natural + 2 * (len(stacks) - 1) <= width
    gap = 2 if roomy else 1
    for number, block in enumerate(_blocks(stacks, width, gap)):
        if number:
            yield []
        widths = _widths(block, width, gap)
        heads = [
            [(line, "head") for line in _wrapped(stack.head, taken)]
            for stack, taken in zip(block, widths, strict=True)
        ]
        yield from _row(heads, block, widths, gap)
        yield [("─" * (sum(widths) + gap * (len(widths) - 1)), "dim")]
        for row in range(len(block[0].rows)):
            cells = [
                list(_cell(stack.rows[row], taken, table))
                for stack, taken in zip(block, widths, strict=True)
            ]
            yield from _row(cells, block, widths, gap)


def _cell(stacked: Sequence[str], width: int, table: Table) -> Iterator[tuple[str, str]]:
    for depth, text in enumerate(stacked):
        if text or len(stacked) == 1:
            style = table.tones.get(text, "dim" if depth else "")
            yield from ((line, style) for line in _wrapped(text, width))


def _row(
    cells: Sequence[_Line], stacks: Sequence[_Stack], widths: Sequence[int], gap: int
) -> Iterator[_Line]:
    for depth in range(max(map(len, cells))):
        line: _Line = []
        for cell, stack, width in zip(cells, stacks, widths, strict=True):
            text, style = cell[depth] if depth < len(cell) else ("", "")
            line += [(" " * gap, "")] if line else []
            line.append((_padded(text, width, right=stack.numeric), style))
        yield line


def _blocks(stacks: Sequence[_Stack], width: int, gap: int) -> Iterator[list[_Stack]]:
    """Columns in runs that fit; every run starts with the first column."""
    first, *others = stacks
    block = [first]
    for stack in others:
        taken = sum(one.least + gap for one in block) + stack.least
        if taken > width and len(block) > 1:
            yield block
            block = [first]
        block.append(stack)
    yield block


def _widths(stacks: Sequence[_Stack], width: int, gap: int) -> list[int]:
    """What each column takes: what it must, then an equal share of the rest while it wants more."""
    room = width - gap * (len(stacks) - 1)
    taken = [stack.least for stack in stacks]
    spare = room - sum(taken)
    if spare < 0:  # two columns at most, too wide together: they are broken
        first = min(taken[0], room // 2) if len(taken) > 1 else room
        return [first, *(room - first for _ in taken[1:])]
    wanted = [stack.natural - stack.least for stack in stacks]
    hungry = sorted(range(len(stacks)), key=lambda index: wanted[index])
    for place, index in enumerate(hungry):
        more = min(wanted[index], spare // (len(hungry) - place))
        taken[index] += more
        spare -= more
    return taken


# --- lines ----------------------------------------------------------------------------------


def _wrapped(text: str, width: int) -> list[str]:
    """Words in lines of at most `width` columns; at least one line. Longer words are broken."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and _columns(line) + 1 + _columns(word) <= width:
            line += f" {word}"
            continue
        if line:
            lines.append(line)
        *whole, line = _broken(word, width)
        lines += whole
    return [*lines, line]


def _broken(word: str, width: int) -> Iterable[str]:
    """The word in pieces, broken after a dot or the like where one stands in their second half."""
    while _columns(word) > width:
        end = 1
        while _columns(word[: end + 1]) <= width:
            end += 1
        last = max(word.rfind(mark, end // 2, end) for mark in "./\\_-,:;")
        end = last + 1 if last > 0 else end
        yield word[:end]
        word = word[end:]
    yield word


def _padded(text: str, width: int, *, right: bool = False) -> str:
    blank = " " * (width - _columns(text))
    return blank + text if right else text + blank


def _columns(text: str) -> int:
    """The columns that a terminal takes: two for a wide character, none for a mark on another."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.category(character) in ("Mn", "Me", "Cf")
        else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
