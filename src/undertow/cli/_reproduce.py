"""`undertow reproduce`: claims put to the test (`claims.reproduce`), and how the end is told.

The knobs of a claim are flags too: the fields of its configuration, with the preset's values.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from undertow.cli._fields import Shown
from undertow.cli._help import show_help
from undertow.cli._output import (
    EXPECTED_ERRORS,
    complain,
    one_line,
    print_json,
    show,
    undisturbed,
)
from undertow.cli._words import (
    Flag,
    UsageError,
    arguments,
    by_flag,
    read_values,
    refuse_out_of_bounds,
    refuse_unknown,
)
from undertow.lab import Bound, at_least

if TYPE_CHECKING:
    from undertow.claims import Claim, Reproduction

SYNOPSIS = "CLAIM..."
SUMMARY = "put claims to the test (--all: each one)"
PARAMETERS = {"trial_timeout": "timeout"}  # claims and their knobs are `claim` and `overrides`

Outcome = Literal["supported", "refuted", "inconclusive"]
Expected = Annotated[Outcome | None, Shown("VERDICT")]
Workers = Annotated[int | None, at_least(1)]
Draws = Annotated[int | None, at_least(0)]
Seconds = Annotated[
    float | None,
    Shown("S"),
    Bound("a number of seconds above 0", lambda seconds: 0 < seconds < math.inf),
]
Seed = Annotated[int, Bound("from 0 to 2^63 - 1", lambda seed: 0 <= seed < 2**63)]


@dataclass(frozen=True)
class Options:
    """What `reproduce` takes for every claim."""

    preset: Literal["smoke", "small", "paper"] = "small"
    """smoke, small or paper (scale)."""
    seed: Seed = 0
    """Base seed."""
    engine: Literal["local", "inline"] = "local"
    """local (worker processes) or inline."""
    workers: Workers = None
    """Worker processes; one a core by default."""
    trial_timeout: Seconds = None
    """Seconds that a trial may take."""
    out: Annotated[Path | None, Shown("DIR")] = None
    """Folder of the run."""
    replace: bool = False
    """Write over another run of the claim in DIR."""
    expect: Expected = None
    """Exit with 3 on any other verdict."""
    json: bool = False
    """Print one JSON object."""


def run(words: Sequence[str]) -> int:
    """Run the claims named, one after the other, and say how each ended."""
    options, chosen = _parse(words)
    from undertow import claims

    def one(claim: Claim, knobs: dict[str, Any]) -> Reproduction:
        given = arguments(options, PARAMETERS)
        if options.out is not None and len(chosen) > 1:
            given["out"] = options.out / claim.name
        return claims.reproduce(claim, overrides=knobs, **given)

    runs = {claim.name: partial(one, claim, knobs) for claim, knobs in chosen}
    return finish(runs, expect=options.expect, as_json=options.json)


def finish(
    runs: Mapping[str, Callable[[], Reproduction]], *, expect: Outcome | None, as_json: bool
) -> int:
    """Run each and say how it ended; when one could not be done, the others still are."""
    results: list[dict[str, Any]] = []
    status = 0
    for name, one in runs.items():
        try:
            with undisturbed(as_json):
                reproduction = one()
        except EXPECTED_ERRORS as error:
            complain(error)
            results.append({"claim": name, "error": one_line(error)})
            status = 1
            continue
        results.append(reproduction.as_json())
        if not as_json:
            show(reproduction.document(), as_json=False)
            print(f"\nreport   {reproduction.report or 'none'}\n")
        if reproduction.report is None:
            complain(f"{reproduction.out} cannot be written: no report, figures or verdict there")
        if sys.flags.optimize > 1:
            complain("no figures were drawn: they need docstrings, which `python -OO` drops")
        if failed := len(reproduction.failures):
            complain(f"{reproduction.claim}: {failed} of {reproduction.trials} trials failed")
            status = 1
        outcome = reproduction.verdict.outcome
        if expect not in (None, outcome):
            complain(f"{reproduction.claim} is {outcome}, not {expect} as expected")
            status = status or 3
    if as_json:
        print_json(results[0] if len(results) == 1 else {"results": results})
    return status


def refuse_unkept(options: Any, command: str) -> None:
    """A time limit needs processes that can be ended.

    Raises:
        UsageError: there are none.
    """
    if options.trial_timeout is not None and options.engine == "inline":
        raise UsageError(f"{command}: --trial-timeout needs worker processes: --engine local")


# --- words: claims, then flags ----------------------------------------------------------------


def _parse(words: Sequence[str]) -> tuple[Options, list[tuple[Claim, dict[str, Any]]]]:
    """The options, and each claim with the knobs that the words set.

    A knob must belong to one of the claims; the others (as with `--all`) do without it.

    Raises:
        UsageError: no claim, an unknown one, a flag that is no option and no claim's knob, or a
            value that it does not take.
    """
    names, flags = by_flag(words)
    chosen = _chosen(names, flags)
    if any(flag.name == "help" for flag in flags):
        _show_help(chosen)
    flags = [flag for flag in flags if flag.name != "all"]
    command = ", ".join(claim.name for claim in chosen)
    kinds = [type(part) for claim in chosen for part in _parts(claim.presets["small"])]
    _refuse_ambiguous(chosen)
    refuse_unknown(flags, [Options, *kinds], command, noun="knob")

    options = Options(**read_values(Options, flags, "reproduce"))
    refuse_out_of_bounds(options, "reproduce")
    refuse_unkept(options, "reproduce")
    return options, [(claim, _knobs(claim, flags, options.preset)) for claim in chosen]


def _chosen(names: Sequence[str], flags: Sequence[Flag]) -> list[Claim]:
    from undertow import claims

    if any(flag.name == "all" for flag in flags):
        if names:
            raise UsageError("reproduce: give claims or --all, not both")
        names = claims.names()
    elif not names and all(flag.name != "help" for flag in flags):
        raise UsageError(
            f"reproduce: name the claims first, of {', '.join(claims.names())}; or give --all"
        )
    try:
        return [claims.get(name) for name in names]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _refuse_ambiguous(chosen: Sequence[Claim]) -> None:
    """Every claim has a name of its own, and no knob that of an option."""
    names = [claim.name for claim in chosen]
    twice = {claim.name: claim.source for claim in chosen if names.count(claim.name) > 1}
    for name, source in twice.items():
        raise UsageError(f"reproduce: two claims are called {name}, one of them that at {source}")
    options = {"all", "help", *(field.name for field in dataclasses.fields(Options))}
    for claim in chosen:
        for name in sorted(options & claim.presets["small"].flat().keys()):
            raise UsageError(
                f"{claim.name}: its knob {name!r} has the name of an option; rename it"
            )


def _show_help(chosen: Sequence[Claim]) -> NoReturn:
    """Show the options, with the knobs of the claim if there is one; raises `HelpShown`."""
    if len(chosen) == 1:
        (claim,) = chosen
        show_help(f"reproduce {claim.name}", claim.title, Options, *_parts(claim.presets["small"]))
    from undertow import claims

    summary = (
        f"Claims: {', '.join(claims.names())}; --all for each. A claim's --help shows its knobs."
    )
    show_help("reproduce CLAIM...", summary, Options)


def _knobs(claim: Claim, flags: Iterable[Flag], preset: str) -> dict[str, Any]:
    """The knobs that differ from the preset's, by name."""
    base = claim.presets[preset]
    given: dict[str, Any] = {}
    for part in _parts(base):
        given |= read_values(type(part), flags, claim.name)
    try:
        base.with_values(given)
    except ValueError as error:
        raise UsageError(f"{claim.name}: {error}") from error
    flat = base.flat()
    return {name: value for name, value in given.items() if value != flat[name]}


def _parts(knobs: Any) -> list[Any]:
    """The knobs, and the dataclasses nested in them, whose fields are knobs too."""
    values = (getattr(knobs, field.name) for field in dataclasses.fields(knobs))
    return [knobs, *(value for value in values if dataclasses.is_dataclass(value))]
