"""`undertow report`: judge and report a run again, running nothing (`claims.report`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from undertow.cli._fields import Shown
from undertow.cli._reproduce import Draws, Expected, Workers, finish
from undertow.cli._words import arguments, parse

SYNOPSIS = "DIR"
SUMMARY = "judge and report a run again, running nothing"
PARAMETERS = {"directory": "out"}


@dataclass(frozen=True)
class Options:
    """What `report` takes."""

    directory: Annotated[Path, Shown("DIR", positional=True)]
    """Folder of the run."""
    replicate: Draws = None
    """Draws of whole seeds that are judged; 200 by default, 0 for none."""
    workers: Workers = None
    """Processes that judge them; one a core by default."""
    expect: Expected = None
    """Exit with 3 on any other verdict."""
    json: bool = False
    """Print one JSON object."""


def run(words: Sequence[str]) -> int:
    """Judge the records of a run, and write its report."""
    options = parse(
        Options,
        words,
        command="report",
        summary="Judge and report a run of a claim again, running nothing.",
    )
    from undertow import claims

    one = partial(claims.report, **arguments(options, PARAMETERS))
    return finish({str(options.directory): one}, expect=options.expect, as_json=options.json)
