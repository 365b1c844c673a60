"""The page of each claim: its prose, what it predicts, and what a stored run gave.

    python -m website.claims

`page.md` in a claim's folder holds the prose. `<!-- rules -->` becomes the table of predictions,
from the predictions themselves; `<!-- results -->` the checks of the stored verdict, and the runs
on other base seeds (`website.seeds`); `<!-- figure NAME -->` a figure of that run with its caption.
A page of its own has the seeds of all claims. Nothing of these is copied by hand. The pages are
written to `docs/claims/`, for the site to be built from; they are not committed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from undertow import claims
from undertow.lab import Drawing, percent

DOCS = Path(__file__).parents[1] / "docs"
_PLACE = re.compile(r"^<!-- (rules|results|figure)(?: ([\w-]+))? -->$", re.MULTILINE)


def prose(name: str) -> str:
    """The `page.md` of a built-in claim."""
    package = f"undertow.claims.{name.replace('-', '_')}"
    return resources.files(package).joinpath("page.md").read_text(encoding="utf-8")


def figures_named(name: str) -> list[str]:
    """The figures that a claim's page shows."""
    return [figure for kind, figure in _PLACE.findall(prose(name)) if kind == "figure"]


def page(name: str, stored: Path) -> str:
    """The page of a claim, from its prose and the run whose verdict and figures are in `stored`.

    Raises:
        ValueError: the prose names a figure that the claim does not draw.
    """
    claim = claims.get(name)
    filled: dict[str, Callable[[str], str]] = {
        "rules": lambda _: rules_table(claim),
        "results": lambda _: f"{results_table(stored)}{seeds_of(stored)}",
        "figure": lambda figure: figure_block(claim, figure),
    }
    return _PLACE.sub(lambda found: filled[found[1]](found[2] or ""), prose(name))


def rules_table(claim: claims.Claim) -> str:
    """What the claim predicts at `small`, as a Markdown table."""
    table = claims.predictions_table(claim, "small")
    rows = zip(table["prediction"], table["rule"], table["kind"], strict=True)
    named = [((f"control: {p}" if kind == "control" else p), rule) for p, rule, kind in rows]
    return _table(("prediction", "rule"), named)


def results_table(stored: Path) -> str:
    """What the stored run gave, as a sentence and a Markdown table."""
    file = stored / "verdict.json"
    if not file.exists():
        return "No run is stored beside this page."
    verdict = json.loads(file.read_text(encoding="utf-8"))
    checks, replication = verdict["checks"], verdict.get("replication")
    head: tuple[str, ...] = ("check", "value [95%]", "result")
    rows: list[tuple[str, ...]] = [
        (
            _named(check),
            f"{_number(check['value'])} [{', '.join(map(_number, check['interval']))}]",
            "passed" if check["passed"] else "not passed",
        )
        for check in checks
    ]
    if replication:  # a run before there was one has none
        head = (*head, "replicates")
        rows = [
            (*row, percent(check["replicates"])) for row, check in zip(rows, checks, strict=True)
        ]
    passed = sum(check["passed"] for check in checks)
    command = (
        f"undertow reproduce {verdict['claim']} --preset {verdict['preset']} --seed"
        f" {verdict['seed']}"
    )
    said = f"`{command}` gave **{verdict['verdict']}**: {passed} of {len(rows)} checks passed."
    if replication:
        said += f" {_replicates(replication, checks)}"
    return f"{said}\n\n{_table(head, rows)}"


def seeds_of(stored: Path) -> str:
    """What came of the claim on other base seeds, a row each; nothing where none was run."""
    runs = _seed_runs(stored)
    if not runs:
        return ""
    rows = []
    for run in runs:
        passed = [check["passed"] for check in run.get("checks", ())]
        left = [_named(check) for check in run.get("checks", ()) if not check["passed"]]
        counted = f"{sum(passed)} of {len(passed)}" if passed else ""
        rows.append((run["seed"], *_ended(run), counted, "; ".join(left)))
    head = ("base seed", "verdict", "replicates", "checks passed", "not passed")
    return f"\n\n### On other seeds\n\n{_same(runs)}\n\n{_table(head, rows)}"


def table_of_seeds(docs: Path = DOCS) -> str:
    """Claims against base seeds: the verdict of each, how often it replicates, checks passed."""
    found = {name: _seed_runs(docs / "claims" / name) for name in claims.names()}
    seeds = sorted({run["seed"] for runs in found.values() for run in runs})
    if not seeds:
        return "No claim has been run on other seeds yet."
    rows = []
    for name, runs in found.items():
        cells = {run["seed"]: _cell(run) for run in runs}
        rows.append((f"[`{name}`]({name}.md)", *(cells.get(seed, "–") for seed in seeds)))
    return _table(("claim", *(f"seed {seed}" for seed in seeds)), rows)


def seeds_page(docs: Path = DOCS) -> str:
    """The page of all claims on other base seeds."""
    return f"{_SEEDS}\n{table_of_seeds(docs)}\n"


_SEEDS = """\
# The claims on other seeds

*A verdict is worth what a second seed says.*

Every claim at `small` on base seeds that were kept for verdicts, and were no pilot's: the verdict,
how often redrawn seeds give the same one ([Replication](../statistics.md#replication)), and how
many of its checks passed. Each claim's page names those that did not, and says where a rule was
changed after one of these had run. `python -m website.seeds` runs what is missing.
"""


def _seed_runs(stored: Path) -> list[dict[str, Any]]:
    file = stored / "seeds.json"
    if not file.exists():
        return []
    runs: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["runs"]
    return runs


def _same(runs: list[dict[str, Any]]) -> str:
    """How many of the runs ended alike."""
    outcomes = [run["verdict"] for run in runs if "error" not in run]
    if not outcomes:
        return "None of the runs on base seeds kept for verdicts could be done."
    most = max(dict.fromkeys(outcomes), key=outcomes.count)
    alike = f"{outcomes.count(most)} of {len(runs)} gave **{most}**"
    return f"Of base seeds that were kept for verdicts, {alike}."


def _ended(run: dict[str, Any]) -> tuple[str, str]:
    """The verdict of a run, and how often it replicates."""
    if "error" in run:
        return "could not be run", ""
    replication = run.get("replication")
    return run["verdict"], percent(replication["probability"]) if replication else ""


def _cell(run: dict[str, Any]) -> str:
    passed = [check["passed"] for check in run.get("checks", ())]
    counted = f"{sum(passed)} of {len(passed)}" if passed else ""
    return ", ".join(part for part in (*_ended(run), counted) if part)


def _named(check: dict[str, Any]) -> str:
    return ("control: " if check["control"] else "") + str(check["name"])


def _replicates(replication: dict[str, Any], checks: list[dict[str, Any]]) -> str:
    low, high = map(percent, replication["interval"])
    said = (
        f"Redrawn seeds give the same verdict in {percent(replication['probability'])} of the draws"
        f" [{low}, {high}]"
    )
    weakest = next(check for check in checks if check["name"] == replication["weakest"])
    if weakest["replicates"] == 1:
        return f"{said}, and every check passes in all of them."
    share = percent(weakest["replicates"])
    return f"{said}; the check that passes least often is *{_named(weakest)}*, in {share}."


def figure_block(claim: claims.Claim, name: str) -> str:
    """A figure of the stored run with its title and caption."""
    drawings: dict[str, Drawing] = {
        drawing.draw.__name__.replace("_", "-"): drawing
        for drawing in claim.part("figures").FIGURES
    }
    if name not in drawings:
        raise ValueError(f"{claim.name} draws no figure {name!r}; it draws {', '.join(drawings)}")
    drawing = drawings[name]
    caption = drawing.caption.format_map(vars(claim.presets["small"]))
    return (
        '<figure markdown="span">\n'
        f"  ![{drawing.title}]({claim.name}/{name}.svg)\n"
        f"  <figcaption>{drawing.title}. {caption}</figcaption>\n"
        "</figure>"
    )


def write(docs: Path = DOCS) -> list[Path]:
    """Write the pages of all built-in claims; returns where."""
    written = []
    for name in claims.ALL:
        target = docs / "claims" / f"{name}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page(name, DOCS / "claims" / name), encoding="utf-8")
        written.append(target)
    target = docs / "claims" / "seeds.md"
    target.write_text(seeds_page(), encoding="utf-8")
    return [*written, target]


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    escaped = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


if __name__ == "__main__":
    for path in write():
        print(path.relative_to(DOCS.parent))
