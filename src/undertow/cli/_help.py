"""How the help of a command is shown, laid out by tyro."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, NoReturn, get_type_hints

from undertow.cli._fields import is_required, metavar, positional


class HelpShown(Exception):
    """Help was asked for and has been printed: there is nothing left to do."""


def program() -> str:
    """What this was called as, for its usage."""
    by_module = os.path.basename(sys.argv[0]) == "__main__.py"
    return "python -m undertow" if by_module else "undertow"


def show_help(usage: str, summary: str, *parts: Any) -> NoReturn:
    """Print what a command does and its options.

    Args:
        usage: the command and its positional words.
        summary: a sentence.
        parts: dataclasses whose fields are the options, or instances that hold their defaults.

    Raises:
        HelpShown: always.
    """
    import tyro

    nameless = tyro.conf.arg(name="")
    fields = [(f"part_{i}", Annotated[_dressed(part), nameless]) for i, part in enumerate(parts)]
    printed = io.StringIO()
    with (
        _as_wide_as(width := terminal_width()),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        tyro.cli(
            dataclasses.make_dataclass("whole", fields),
            args=["--help"],
            description="-",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    # tyro neither wraps what stands above the options, nor keeps the usage within 80 columns.
    _, _, options = printed.getvalue().partition("\n\n-\n\n")
    used = textwrap.fill(f"usage: {program()} {usage} [OPTIONS]", width, subsequent_indent="  ")
    print(f"{used}\n\n{textwrap.fill(summary, width)}\n")
    print("\n".join(line.rstrip() for line in options.rstrip().splitlines()))
    raise HelpShown


def terminal_width() -> int:
    """The columns that help takes, 40 at the least."""
    return max(40, min(shutil.get_terminal_size().columns, 80))


@contextlib.contextmanager
def _as_wide_as(width: int) -> Iterator[None]:
    """Tell tyro the width of the terminal, where it would come to no end on a very narrow one."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _sentence(words: str | None) -> str | None:
    """Words about a flag, as a sentence: a comment beside a field begins small and ends openly."""
    if not words or words.endswith("."):
        return words
    return f"{words[0].upper()}{words[1:]}."


def _dressed(part: Any) -> Any:
    """The same dataclass with short placeholders, and without defaults that say nothing."""
    import tyro

    from undertow.lab import comments

    kind = part if isinstance(part, type) else type(part)
    hints, said = get_type_hints(kind), comments(kind)
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(kind):
        name, filled, hint = field.name, dataclasses.field(), None
        if not is_required(field):
            filled = dataclasses.field(default_factory=partial(getattr, part, name))
            default = getattr(part, name)
            hint = "" if default is None or default is False else None
        if dataclasses.is_dataclass(hints[name]):
            fields.append((name, Annotated[hints[name], tyro.conf.Suppress], filled))
            continue
        value = None if hints[name] is bool else metavar(kind, name)
        look = [
            tyro.conf.arg(metavar=value, help=_sentence(said.get(name)), help_behavior_hint=hint)
        ]
        if name in positional(kind):
            look.append(tyro.conf.Positional)
        fields.append((name, Annotated[hints[name], *look], filled))
    # A subclass: tyro finds the words about a field where it was written.
    return dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), frozen=True)
