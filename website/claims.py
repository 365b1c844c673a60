"""The page of each claim: its prose, what it predicts, and what a stored run gave.

    python -m website.claims

`page.md` in a claim's folder holds the prose. `<!-- rules -->` becomes the table of predictions,
from the predictions themselves; `<!-- results -->` the checks of the stored verdict; `<!-- figure
NAME -->` a figure of that run with its caption. Nothing of these is copied by hand. The pages are
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
from undertow.lab import Drawing

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
        "results": lambda _: results_table(stored),
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
    rows = [
        (
            ("control: " if check["control"] else "") + check["name"],
            f"{_number(check['value'])} [{', '.join(map(_number, check['interval']))}]",
            "passed" if check["passed"] else "not passed",
        )
        for check in verdict["checks"]
    ]
    passed = sum(check["passed"] for check in verdict["checks"])
    command = (
        f"undertow reproduce {verdict['claim']} --preset {verdict['preset']} --seed"
        f" {verdict['seed']}"
    )
    said = f"`{command}` gave **{verdict['verdict']}**: {passed} of {len(rows)} checks passed."
    return f"{said}\n\n{_table(('check', 'value [95%]', 'result'), rows)}"


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
    return written


def _number(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.3g}"


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    escaped = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


if __name__ == "__main__":
    for path in write():
        print(path.relative_to(DOCS.parent))
