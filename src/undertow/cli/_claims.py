"""`undertow claims`: the papers, what each costs, the last verdict, and what a claim predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from undertow.cli._fields import Shown
from undertow.cli._output import show
from undertow.cli._words import arguments, parse

SYNOPSIS = "[NAME --rules]"
SUMMARY = "the papers and costs; what a claim predicts"
PARAMETERS: dict[str, str] = {}


@dataclass(frozen=True)
class Options:
    """What `claims` takes."""

    name: Annotated[str | None, Shown("NAME", positional=True)] = None
    """A claim's name, or the path of your own."""
    rules: bool = False
    """Every prediction, its rule and its reason, and which are controls: nothing is run."""
    preset: Literal["smoke", "small", "paper"] = "small"
    """Whose knobs the predictions are written for."""
    json: bool = False
    """Print one JSON object."""


def run(words: Sequence[str]) -> int:
    """List the claims, describe one, or print what it predicts before anything has run."""
    options = parse(
        Options,
        words,
        command="claims",
        summary="The papers, what testing each costs, and the last verdicts in undertow-runs/; or"
        " with a NAME what that claim states, and with --rules what it predicts.",
    )
    from undertow import claims

    show(claims.overview(**arguments(options, PARAMETERS)), options.json)
    return 0
