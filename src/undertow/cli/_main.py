"""The command line: arguments in, calls out. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from undertow.cli._options import (
    ClaimsOptions,
    ForecastOptions,
    InspectOptions,
    Outcome,
    ReportOptions,
    RescaleOptions,
    ResumeOptions,
    UsageError,
    close_to,
    parse,
    parse_reproduce,
)

if TYPE_CHECKING:
    from undertow.claims import Claim, Reproduction
    from undertow.lab import Document

_HELP = """\
usage: undertow COMMAND ...

Measure, predict, use and reproduce the implicit bias of gradient-based
training.

  undertow inspect CHECKPOINT      ranks, norms and compressibility per layer
  undertow rescale --lr X ...      hyperparameters for another batch size
  undertow forecast --lr X ...     what a run will forget, before it starts

  undertow reproduce CLAIM...      put claims to the test (--all: each one)
  undertow reproduce CLAIM --help  the knobs of a claim
  undertow claims                  the papers, what each costs, the last verdict
  undertow resume DIR              go on with a run that was stopped
  undertow report DIR              judge and report a run again, running nothing
  undertow --version               which version this is

Every command has --help, and --json: one JSON object on standard output, and
progress on standard error.

Exit status: 0 done, 1 could not be done, 2 wrong usage, 3 --expect not met.
"""
_EXPECTED_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (see `undertow --help`)."""
    if arguments is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that the terminal cannot show is no error
    command, *words = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    try:
        if command in ("-h", "--help"):
            print(_HELP, end="")
            return 0
        if command == "--version":
            from undertow import __version__

            print(f"undertow {__version__}")
            return 0
        if command not in _COMMANDS:
            raise UsageError(f"no command {command!r}; {close_to(command, _COMMANDS)}")
        status = _COMMANDS[command](words)
        sys.stdout.flush()
        return status
    except UsageError as error:
        _complain(error)
        return 2
    except KeyboardInterrupt:
        return 130  # `lab.run` has said how to go on
    except BrokenPipeError:  # whoever reads, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except _EXPECTED_ERRORS as error:
        _complain(error)
        return 1


def _reproduce(words: Sequence[str]) -> int:
    options, chosen = parse_reproduce(words)
    from undertow import claims

    def run(claim: Claim, knobs: dict[str, Any]) -> Reproduction:
        out = options.out
        return claims.reproduce(
            claim,
            preset=options.preset,
            seed=options.seed,
            engine=options.engine,
            out=out / claim.name if out and len(chosen) > 1 else out,
            overrides=knobs,
            workers=options.workers,
        )

    runs = {claim.name: partial(run, claim, knobs) for claim, knobs in chosen}
    return _finish(runs, expect=options.expect, as_json=options.json)


def _resume(words: Sequence[str]) -> int:
    options = parse(ResumeOptions, words, program="undertow resume")
    from undertow import claims

    run = partial(claims.resume, options.directory, engine=options.engine, workers=options.workers)
    return _finish({str(options.directory): run}, expect=options.expect, as_json=options.json)


def _report(words: Sequence[str]) -> int:
    options = parse(ReportOptions, words, program="undertow report")
    from undertow import claims

    run = partial(claims.report, options.directory)
    return _finish({str(options.directory): run}, expect=options.expect, as_json=options.json)


def _claims(words: Sequence[str]) -> int:
    options = parse(ClaimsOptions, words, program="undertow claims")
    from undertow import claims

    last = claims.last_verdicts()
    listed = [(claims.get(name), last.get(name)) for name in claims.ALL]
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
        print(json.dumps({"claims": table}))
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


def _inspect(words: Sequence[str]) -> int:
    options = parse(InspectOptions, words, program="undertow inspect")
    from undertow import apply, lab

    given = _without(options, "path", "every", "csv", "html", "json")
    found = apply.inspect(options.path, progress=True, **given)
    if options.csv is not None:
        lab.write_atomically(options.csv, found.table.write_csv().encode())
    if options.html is not None:
        found.write_html(options.html)
    _show(found.document(every=options.every), options.json)
    return 0


def _rescale(words: Sequence[str]) -> int:
    options = parse(RescaleOptions, words, program="undertow rescale")
    from undertow import apply

    names = (
        *("lr", "momentum", "betas", "alpha", "eps", "weight_decay"),
        *("steps", "warmup_steps", "milestones"),
    )
    given = {name: getattr(options, name) for name in names}
    found = apply.rescale(
        {name: value for name, value in given.items() if value is not None},
        from_batch=options.batch_size,
        to_batch=options.to,
        from_workers=options.workers,
        to_workers=options.workers if options.to_workers is None else options.to_workers,
        optimizer=options.optimizer,
        noise_scale=options.noise_scale,
        sharpness=options.sharpness,
        objective=None if options.verify is None else apply.load_objective(options.verify),
    )
    _show(found.document(), options.json)
    return 0


def _forecast(words: Sequence[str]) -> int:
    options = parse(ForecastOptions, words, program="undertow forecast")
    from undertow import apply

    if options.checkpoint is not None and options.shapes:
        raise UsageError("give --checkpoint or --shapes, not both")
    found = apply.forecast(
        options.checkpoint or apply.parse_shapes(options.shapes) or None,
        **_without(options, "checkpoint", "shapes", "html", "json"),
    )
    if options.html is not None:
        found.write_html(options.html)
    _show(found.document(), options.json)
    return 0


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "inspect": _inspect,
    "rescale": _rescale,
    "forecast": _forecast,
    "reproduce": _reproduce,
    "claims": _claims,
    "resume": _resume,
    "report": _report,
}


def _without(options: Any, *names: str) -> dict[str, Any]:
    """The options by name, less those."""
    return {name: value for name, value in vars(options).items() if name not in names}


def _finish(
    runs: Mapping[str, Callable[[], Reproduction]], *, expect: Outcome | None, as_json: bool
) -> int:
    """Run each and say how it ended; when one could not be done, the others still are."""
    results: list[dict[str, Any]] = []
    status = 0
    for name, run in runs.items():
        try:
            reproduction = run()
        except _EXPECTED_ERRORS as error:
            _complain(error)
            results.append({"claim": name, "error": _one_line(error)})
            status = 1
            continue
        results.append(reproduction.as_json())
        if not as_json:
            _show(reproduction.document(), as_json=False)
            print(f"\nreport   {reproduction.out / 'report.html'}\n")
        outcome = reproduction.verdict.outcome
        if expect not in (None, outcome):
            _complain(f"{reproduction.claim} is {outcome}, not {expect} as expected")
            status = status or 3
    if as_json:
        print(json.dumps(results[0] if len(results) == 1 else {"results": results}))
    return status


def _show(document: Document, as_json: bool) -> None:
    from undertow import lab

    if as_json:
        print(lab.as_json(document))
    else:
        lab.print_document(document)


def _complain(error: Exception | str) -> None:
    print(f"undertow: {_one_line(error)}", file=sys.stderr)


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
