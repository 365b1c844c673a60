"""Figures of stored runs, made small and put beside the pages that show them.

    python -m website.figures undertow-runs/low-rank-small-seed0

A page shows the figure NAME of a claim as `claims/CLAIM/NAME.svg`. This writes every such file that
some page names, and the verdict; they are committed, so that the site is built without a run.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from undertow.claims import ALL
from website import claims

DOCS = Path(__file__).parents[1] / "docs"

# What a screen reader would meet in a page; in an image its `alt` is read instead.
_UNREAD = re.compile(r' (?:aria-[a-z]+|role|class)="[^"]*"')
# Charts are laid out by the letters of Arial, or of Liberation Sans, which are as wide.
_FONT = re.compile(r' font-family="[^"]*"')
_LAID_OUT_IN = ' font-family="Arial, Liberation Sans, sans-serif"'
_GEOMETRY = re.compile(r' (?:d|transform)="[^"]*"')
_LONG_NUMBER = re.compile(r"-?\d*\.\d{2,}(?![\de])")


def shrink(svg: str) -> str:
    """The same picture in fewer bytes: coordinates to a tenth of a pixel, nothing unseen."""

    def rounded(geometry: re.Match[str]) -> str:
        return _LONG_NUMBER.sub(lambda number: f"{float(number[0]):.1f}", geometry[0])

    return _FONT.sub(_LAID_OUT_IN, _GEOMETRY.sub(rounded, _UNREAD.sub("", svg)))


def named_in_pages(claim: str) -> set[str]:
    """The figures of a claim that some page shows."""
    image = re.compile(rf"(?<![\w-]){re.escape(claim)}/([\w-]+)\.svg")
    own = claims.figures_named(claim) if claim in ALL else []
    pages = [page.read_text("utf-8") for page in DOCS.rglob("*.md")]
    return {*own, *(name for page in pages for name in image.findall(page))}


def place(run: Path) -> list[Path]:
    """Write the figures of a stored run that pages show, and say where they are.

    Raises:
        ValueError: the run has no verdict yet, pages show none of its claim's figures, or one of
            them that it does not have.
    """
    if not (run / "verdict.json").exists():
        raise ValueError(f"{run} holds no finished run: verdict.json is missing")
    claim = json.loads((run / "verdict.json").read_text("utf-8"))["claim"]
    names = named_in_pages(claim)
    if not names:
        raise ValueError(f"no page shows a figure of {claim}; name one as claims/{claim}/NAME.svg")
    written = []
    for name in sorted(names):
        source = run / "figures" / f"{name}.svg"
        if not source.exists():
            raise ValueError(f"a page shows {claim}/{name}.svg, which {run} does not have")
        target = DOCS / "claims" / claim / source.name
        target.parent.mkdir(exist_ok=True)
        target.write_text(shrink(source.read_text("utf-8")), encoding="utf-8")
        written.append(target)
    return [*written, _place_verdict(run, DOCS / "claims" / claim / "verdict.json")]


def _place_verdict(run: Path, target: Path) -> Path:
    """The verdict without the folder that it came from, and without the digest of that file."""
    verdict = json.loads((run / "verdict.json").read_text("utf-8"))
    for name in ("out", "digest"):
        verdict.pop(name, None)
    target.write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    return target


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m website.figures RUN...")
    try:
        for run in sys.argv[1:]:
            for path in place(Path(run)):
                print(f"{path} ({path.stat().st_size:,} bytes)")
    except ValueError as error:
        sys.exit(str(error))
