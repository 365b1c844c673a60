"""What there is to reproduce, and what a claim predicts, before anything has run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undertow import lab
from undertow.claims._claim import Claim, errors_of
from undertow.claims._registry import get, names

RUNS = Path("undertow-runs")
VERDICT, REPORT = "verdict.json", "report.html"


def overview(
    name: str | None = None, *, preset: str = "small", rules: bool = False
) -> lab.Document:
    """All claims, or one, or what one predicts.

    Args:
        name: a claim's name or path; None for a list of all.
        preset: whose knobs the predictions are written for.
        rules: the pre-registration: every prediction with its rule and its reason, and which are
            controls. Nothing is run for it.

    Raises:
        ValueError: there is no such claim or preset, or rules are asked for without a name.
    """
    last = last_verdicts()
    if name is None:
        if rules:
            raise ValueError("rules are those of one claim: name it, such as low-rank")
        return _list([get(known) for known in names()], last)
    claim = get(name)
    return _rules(claim, preset) if rules else _about(claim, last.get(claim.name))


def predictions_table(claim: Claim, preset: str) -> dict[str, list[str]]:
    """What a claim predicts with a preset's knobs: prediction, rule, and what kind it is."""
    with errors_of(claim.source):
        found = claim.predictions(claim.preset(preset))
    return {
        "kind": ["control" if rule.control else "prediction" for rule in found.values()],
        "prediction": list(found),
        "rule": [rule.words for rule in found.values()],
    }


def last_verdicts(folder: Any = RUNS) -> dict[str, dict[str, Any]]:
    """The newest `verdict.json` of each claim among the runs in `folder`, by the claim's name."""
    newest: dict[str, dict[str, Any]] = {}
    paths = [path for path in Path(folder).glob(f"*/{VERDICT}") if path.is_file()]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        try:
            store = lab.Store(path.parent, create=False)
        except OSError:
            continue  # not one of ours
        again = f"make it again with: undertow report {path.parent}"
        if verdict := store.read_json(VERDICT, then=again):
            newest[verdict["claim"]] = verdict
    return newest


def _list(claims: list[Claim], last: Mapping[str, Any]) -> lab.Document:
    return lab.Document(
        "Claims",
        sections=tuple(
            lab.Section(claim.name, (claim.title, _facts(claim, last))) for claim in claims
        ),
        data={"claims": [_data(claim, last.get(claim.name)) for claim in claims]},
    )


def _about(claim: Claim, last: Any) -> lab.Document:
    return lab.Document(
        claim.title,
        claim.statement,
        facts={"claim": claim.name, "found": claim.source}
        | _facts(claim, {claim.name: last} if last else {}),
        sections=(lab.Section("Corrections of the literature", ("\n\n".join(claim.corrections),)),),
        data=_data(claim, last),
    )


def _rules(claim: Claim, preset: str) -> lab.Document:
    table = predictions_table(claim, preset)
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return lab.Document(
        f"What {claim.name} predicts",
        f"{claim.statement}\n\n{_RULES}",
        facts={"claim": claim.name, "preset": preset},
        sections=(
            lab.Section(
                "Predictions", (lab.Table(table, terminal=("kind", ("prediction", "rule"))),)
            ),
        ),
        data={"claim": claim.name, "preset": preset, "rules": rows},
    )


_RULES = (
    "These are the rules by which a run is judged, written before it. A prediction holds where the"
    " whole 95% interval over seeds, unless it says otherwise, keeps to its rule, and is refuted"
    " where the whole interval is outside, or beyond what its rule says would refute it. In a"
    " control the cause is taken away: its rule says how the effect must be gone."
)


def _facts(claim: Claim, last: Mapping[str, Any]) -> dict[str, str]:
    costs = "; ".join(f"{preset}: {cost}" for preset, cost in claim.costs.items())
    facts = {"paper": claim.paper, "costs": costs}
    if claim.name in last:
        verdict = last[claim.name]
        last_one = f"{verdict['verdict']} ({verdict['preset']}), in {verdict['out']}"
        if replication := verdict.get("replication"):  # of a run before there was one, none
            last_one += f"; replicates in {lab.percent(replication['probability'])}"
        facts["last"] = last_one
    return facts


def _data(claim: Claim, last: Any) -> dict[str, Any]:
    return {
        "name": claim.name,
        "title": claim.title,
        "paper": claim.paper,
        "costs": dict(claim.costs),
        "last": last,
    }
