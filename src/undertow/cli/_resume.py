"""`undertow resume`: go on with a run that was stopped (`claims.resume`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from undertow.cli._fields import Shown
from undertow.cli._reproduce import Expected, Seconds, Workers, finish, refuse_unkept
from undertow.cli._words import arguments, parse

SYNOPSIS = "DIR"
SUMMARY = "go on with a run that was stopped"
PARAMETERS = {"directory": "out", "trial_timeout": "timeout"}


@dataclass(frozen=True)
class Options:
    """What `resume` takes."""

    directory: Annotated[Path, Shown("DIR", positional=True)]
    """Folder of the run."""
    engine: Literal["local", "inline"] = "local"
    """local (worker processes) or inline."""
    workers: Workers = None
    """Worker processes; one a core by default."""
    trial_timeout: Seconds = None
    """Seconds that a trial may take."""
    expect: Expected = None
    """Exit with 3 on any other verdict."""
    json: bool = False
    """Print one JSON object."""


def run(words: Sequence[str]) -> int:
    """Run the trials that are missing, and judge all."""
    options = parse(
        Options, words, command="resume", summary="Go on with a run of a claim that was stopped."
    )
    refuse_unkept(options, "resume")
    from undertow import claims

    one = partial(claims.resume, **arguments(options, PARAMETERS))
    return finish({str(options.directory): one}, expect=options.expect, as_json=options.json)
