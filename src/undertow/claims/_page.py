"""What a claim's report says: verdict, checks, figures, numbers, and how it was run."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from undertow import lab
from undertow.claims._claim import Claim


@dataclass(frozen=True)
class Facts:
    """How a claim was run: of its `trials` some were `computed` just now, some read (`stored`).

    Those that failed are of the former, or they failed in a run before. `alone` ran without the
    others of their group.
    """

    preset: str
    seed: int
    changed: Mapping[str, Any]
    knobs: Mapping[str, Any]
    trials: int
    computed: int
    stored: int
    alone: int
    failures: tuple[lab.Failure, ...]
    seconds: float
    environment: Mapping[str, Any]
    replication: lab.Replication | None


def claim_document(
    claim: Claim,
    verdict: lab.Verdict,
    figures: Sequence[lab.Figure],
    table: pl.DataFrame,
    facts: Facts,
) -> lab.Document:
    """The document of a run: a terminal shows verdict and checks, `report.html` the whole."""
    command = rerun_command(claim, preset=facts.preset, seed=facts.seed, knobs=facts.changed)
    failed: tuple[lab.Item, ...] = ()
    if facts.failures:
        failed = (_FAILURES, lab.Table(_failed(facts.failures)))
    return lab.Document(
        title=claim.title,
        summary=verdict.summary,
        state=lab.State(verdict.outcome, _TONES[verdict.outcome]),
        facts={
            "claim": claim.name,
            "preset": facts.preset,
            "seed": str(facts.seed),
            **({} if math.isnan(facts.seconds) else {"seconds": f"{facts.seconds:.1f}"}),
            # In sight: of a claim whose code has changed since, they are what the old code gave.
            **_counted("stored", facts.stored, facts.trials),
            **_counted("failed", len(facts.failures), facts.trials),
            **_counted("alone", facts.alone, facts.trials),
            **({} if facts.replication is None else {"replicates": facts.replication.words()}),
        },
        sections=(
            lab.Section("The claim", (claim.statement, claim.paper), page_only=True),
            lab.Section("Checks", (_checks(verdict, facts.replication),)),
            *(
                lab.Section(
                    figure.title, (lab.Chart(figure.chart, figure.caption),), page_only=True
                )
                for figure in figures
            ),
            lab.Section("Results", (lab.Table(table),), page_only=True),
            lab.Section("Corrections of the literature", (claim.corrections,), page_only=True),
            lab.Section("Failed trials", failed, page_only=True),
            lab.Section("How it was run", (_how(facts), lab.Table(_knobs(facts))), page_only=True),
            lab.Section("Run it again", (f"`{command}`",), page_only=True),
        ),
    )


def _counted(name: str, count: int, trials: int) -> dict[str, str]:
    return {name: f"{count} of {trials} trials"} if count else {}


_TONES: dict[str, lab.Tone] = {
    "supported": "good",
    "refuted": "bad",
    "inconclusive": "unsure",
}
_CHECKS = (
    "Each rule was fixed before the run. An interval is the 95% confidence interval of its value. A"
    " control is an experiment in which the effect must be absent: it passes when it is."
)
_REPLICATES = (
    " What replicates is the share of draws of whole seeds, with replacement, in which the check"
    " passes again."
)
_FAILURES = "They are left out of everything above; their tracebacks are in `failures/`."


def _checks(verdict: lab.Verdict, found: lab.Replication | None) -> lab.Table:
    table = checks_table(verdict).select("result", "check", "value", "95% interval", "rule")
    if found is not None:
        shares = pl.Series("replicates", [found.checks[check.name] for check in verdict.checks])
        table.insert_column(1, shares)
    return lab.Table(
        table,
        caption=_CHECKS if found is None else _CHECKS + _REPLICATES,
        formats={} if found is None else {"replicates": lab.percent},
        tones={"passed": "good", "refuted": "bad", "not passed": "unsure"},
        # Names and rules are sentences: under each other, they leave 80 columns readable.
        terminal=(
            "result" if found is None else ("result", "replicates"),
            ("check", "rule"),
            ("value", "95% interval"),
        ),
    )


def checks_table(verdict: lab.Verdict) -> pl.DataFrame:
    """One row a check: `check`, `value`, `95% interval`, `rule` and `result`.

    Where no verdict is promised, nothing is refuted: what did not pass is `–`.
    """
    return pl.DataFrame(
        {
            "check": [("control: " if c.control else "") + c.name for c in verdict.checks],
            "value": [check.value for check in verdict.checks],
            "95% interval": [list(check.interval) for check in verdict.checks],
            "rule": [check.rule for check in verdict.checks],
            "result": [
                check.result if verdict.promised or check.passed else "–"
                for check in verdict.checks
            ],
        },
        schema_overrides={"check": pl.String, "value": pl.Float64},
    )


def rerun_command(claim: Claim, *, preset: str, seed: int, knobs: Mapping[str, Any]) -> str:
    """The command line that runs a claim with these knobs."""
    words = ["undertow", "reproduce", _named(claim), "--preset", preset, "--seed", str(seed)]
    for name, value in knobs.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{flag}", *(shlex.quote(str(item)) for item in values)]
    return " ".join(words)


def _named(claim: Claim) -> str:
    """What the command line finds a claim by: its name, or the path of one's own."""
    if not os.path.isabs(claim.source):
        return claim.name
    near = os.path.relpath(claim.source)
    return shlex.quote(claim.source if near.startswith("..") else f"./{near}")


def _how(facts: Facts) -> str:
    seconds = "" if math.isnan(facts.seconds) else f" in {facts.seconds:.1f} s"
    parts = [f"{facts.trials} trials: {facts.computed} run{seconds}"]
    if facts.stored:
        parts.append(f"{facts.stored} read from the store")
    parts.append(f"{len(facts.failures) or 'none'} failed")
    if facts.alone:
        parts.append(
            f"{facts.alone} ran alone because another of their group took it down, so that their"
            " last digits may differ from those of a whole group"
        )
    versions = ", ".join(
        f"{name} {version}" for name, version in facts.environment.get("versions", {}).items()
    )
    machine = facts.environment
    software = (
        f"Python {machine['python']} on {machine['platform']} with {machine['cpu_count']} cores;"
        f" {versions}."
        if machine
        else "Which software ran is not known."
    )
    return (
        f"{', '.join(parts)}. {software} Every trial's seed is derived from the base seed"
        f" {facts.seed}."
    )


def _knobs(facts: Facts) -> pl.DataFrame:
    """Every knob's value, those that differ from the preset's marked."""
    return pl.DataFrame(
        {
            "knob": list(facts.knobs),
            "value": [_as_text(value) for value in facts.knobs.values()],
            "from": ["the command" if k in facts.changed else facts.preset for k in facts.knobs],
        }
    )


def _as_text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(str(item) for item in value) if isinstance(value, tuple) else str(value)


def _failed(failures: Sequence[lab.Failure]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "trial": [failure.trial[:8] for failure in failures],
            "why": [f"{failure.error}: {failure.message}" for failure in failures],
        }
    )
