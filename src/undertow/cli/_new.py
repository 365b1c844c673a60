"""`undertow new claim`: a file of one's own to begin from (`claims.write_template`)."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from undertow.cli._fields import Shown
from undertow.cli._output import print_json
from undertow.cli._words import UsageError, arguments, parse

SYNOPSIS = "claim NAME"
SUMMARY = "write a claim of your own to begin from"
PARAMETERS: dict[str, str] = {}


@dataclass(frozen=True)
class Options:
    """What `new` takes."""

    name: Annotated[str, Shown("NAME", positional=True)]
    """What it is called, in small letters and hyphens."""
    out: Annotated[Path | None, Shown("FILE")] = None
    """Where to write it; NAME.py, with underscores, by default."""
    json: bool = False
    """Print one JSON object."""


def run(words: Sequence[str]) -> int:
    """Write the file and say how to run it."""
    if words[:1] != ["claim"] and "--help" not in words and "-h" not in words:
        raise UsageError("new: say what, and its name, such as: undertow new claim my-claim")
    rest = words[1:] if words[:1] == ["claim"] else words
    options = parse(Options, rest, command="new claim", summary="Write a claim to begin from.")
    from undertow import claims

    path = claims.write_template(**arguments(options, PARAMETERS))
    if options.json:
        print_json({"claim": options.name, "path": str(path)})
        return 0
    shown = shlex.quote(str(path if path.is_absolute() else f"./{path}"))
    print(f"wrote {path}; it runs as it is:\n")
    print(f"  undertow claims {shown} --rules     what it predicts")
    print(f"  undertow reproduce {shown}          run it, judge it, report it")
    return 0
