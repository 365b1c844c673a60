"""What the built site must hold: every page, every target of a link, every public name.

    python -m website.check site

The engine's own strict mode looks at the links of Markdown; this looks at what a reader gets.
"""

from __future__ import annotations

import ast
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
# The pages of the reference, and the modules whose public names they must show.
REFERENCE = {
    "objective": ("objective",),
    "measure": ("measure",),
    "predict": ("predict",),
    "train": ("train", "train.rules", "train.optim", "train.schedules", "train.flows"),
    "apply": ("apply",),
    "claims": ("claims",),
    "lab": ("lab",),
    "data-and-models": ("data", "models"),
}


class _Page(HTMLParser):
    """The anchors of a page, and what it links to and loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("id", "name"):
                self.anchors.add(value)
            elif value and name in ("href", "src"):
                self.targets.append(value)


def public_names(module: str) -> list[str]:
    """The names that a module makes public, but for modules; it is read, not imported.

    They are in its `__all__`, in the stub of a lazy one, or else what it defines.
    """
    folder = ROOT / "src" / "undertow" / module.replace(".", "/")
    faces = (folder / "__init__.pyi", folder / "__init__.py", folder.with_suffix(".py"))
    face = next(path for path in faces if path.exists())
    names = _names_in(ast.parse(face.read_text(encoding="utf-8")).body)
    modules = {path.stem for path in folder.iterdir()} if folder.is_dir() else set()
    return [name for name in names if name not in modules]


def _names_in(body: list[ast.stmt]) -> list[str]:
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    defined = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    if not defined:
        imports = [node for node in body if isinstance(node, ast.ImportFrom)]
        defined = [alias.asname or alias.name for node in imports for alias in node.names]
    return [name for name in defined if not name.startswith("_")]


def faults(site: Path) -> list[str]:
    """What is missing from a built site, a line each."""
    pages = {path.resolve(): _Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for source in sorted((ROOT / "docs").rglob("*.md")):
        page = source.relative_to(ROOT / "docs").with_suffix(".html")
        if (site / page).resolve() not in pages:
            found.append(f"{page} was not built")
    for path, page in pages.items():
        if path.name != "404.html":  # its links are from the root of a server
            found += _broken_links(path, page, pages, site)
    for name, modules in REFERENCE.items():
        built = pages.get((site / "reference" / f"{name}.html").resolve())
        anchors = built.anchors if built else set()
        names = [f"undertow.{module}.{own}" for module in modules for own in public_names(module)]
        missing = [own for own in names if own not in anchors]
        found += [f"reference/{name}.html does not show {own}" for own in missing]
    return found


def _broken_links(path: Path, page: _Page, pages: dict[Path, _Page], site: Path) -> list[str]:
    """What a page points to within the site that is not there."""
    where, found = path.relative_to(site.resolve()), []
    for target in page.targets:
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        anchor = unquote(parts.fragment)
        if not file.exists():
            found.append(f"{where} points to {target}, which does not exist")
        elif anchor and file in pages and anchor not in pages[file].anchors:
            found.append(f"{where} points to {target}, which has no such anchor")
    return found


if __name__ == "__main__":
    missing = faults(Path(sys.argv[1] if len(sys.argv) > 1 else "site"))
    if missing:
        sys.exit("\n".join(["the site is not complete:", *missing]))
    print("every page, link and public name is there")
