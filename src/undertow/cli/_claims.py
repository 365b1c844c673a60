"""`undertow claims`: the papers, what testing each costs, and the last verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from undertow.cli._output import print_json
from undertow.cli._words import parse

SYNOPSIS = ""
SUMMARY = "the papers, what each costs, the last verdict"


@dataclass(frozen=True)
class Options:
    """What `claims` takes."""

    json: bool = False
    """Print one JSON object."""


def run(words: Sequence[str]) -> int:
    """List the claims; verdicts are those of runs in the current folder."""
    options = parse(
        Options,
        words,
        command="claims",
        summary="The papers, what testing each costs, and the last verdicts in undertow-runs/.",
    )
    from undertow import claims

    last = claims.last_verdicts()
    listed = [(claims.get(name), last.get(name)) for name in claims.names()]
    if options.json:
        table = [
            {
                "name": claim.name,
                "title": claim.title,
                "paper": claim.paper,
                "costs": dict(claim.costs),
                "last": verdict,
            }
            for claim, verdict in listed
        ]
        print_json({"claims": table})
        return 0
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    for claim, verdict in listed:
        console.print(Text(claim.name, "bold"))
        lines = [claim.title, claim.paper]
        lines.append("; ".join(f"{preset}: {cost}" for preset, cost in claim.costs.items()))
        if verdict is not None:
            lines.append(f"last: {verdict['verdict']} ({verdict['preset']}), in {verdict['out']}")
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, 4)))
    return 0
