"""The arrows between the rooms: which part of the package may import which."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import pytest

import undertow

SOURCE = Path(undertow.__file__).parent

# A room, and the rooms of ours that it may import.
ALLOWED: dict[str, set[str]] = {
    "predict": set(),
    "lab": set(),
    "objective": set(),
    "data": {"_pickled"},
    "_pickled": set(),  # what reads files of strangers: the standard library alone
    "models": set(),
    # A profile is a result: it gives a document, a plain record that names what lab prints.
    "measure": {"objective", "predict", "lab"},
    "train": {"objective", "predict"},
    "apply": {"objective", "measure", "predict", "train", "lab", "_pickled"},
    "claims": {"objective", "measure", "predict", "train", "apply", "lab", "data", "models"},
    "integrations": {"objective", "measure", "predict", "train", "apply"},
    "cli": {"apply", "claims", "lab", "predict"},
    "__main__": {"cli"},
}
# No room, and open to all of them.
OPEN = {"_quietly"}
# The same between the rooms within a room; what lies beside them is open to all of them, and
# imports none of them but for what stands here.
WITHIN: dict[str, dict[str, set[str]]] = {
    "measure": {
        "weights": set(),
        "curvature": set(),
        "noise": {"weights"},
        "function": {"weights"},
        "saliency": set(),
        "_profile": {"weights", "curvature", "noise", "function"},
    },
    "train": {
        "rules": set(),
        "optim": {"rules"},
        "local_sgd": set(),
        "ensemble": {"rules", "local_sgd"},
        "flows": set(),
        "matrix": set(),
        "noise": {"rules"},
        "normalized": {"flows"},
    },
    "apply": {"inspection": set(), "rescaling": set(), "forecasting": {"inspection", "rescaling"}},
}
# Rooms that may import only these packages beside the standard library and ours.
PACKAGES = {
    "predict": {"numpy", "jaxtyping"},  # jaxtyping: shapes in signatures, no code
    "lab": {
        *("numpy", "scipy", "polars", "rich", "altair", "vl_convert", "lazy_loader"),
        *("loky", "cloudpickle"),  # worker processes
        *("torch", "threadpoolctl"),  # to set and restore the state of a process, nothing else
    },
    "cli": {"rich", "tyro"},
    "_pickled": set(),
}


@functools.cache
def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in the file, as absolute dotted names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively; write undertow. in full"
            module = node.module or ""
            from_root = module == "undertow"
            found |= {f"undertow.{a.name}" for a in node.names} if from_root else {module}
    return found


def files() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def rooms_of(modules: set[str]) -> set[str]:
    """The rooms of ours that imported modules belong to."""
    return {module.split(".")[1] for module in modules if module.startswith("undertow.")}


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", files(), ids=name)
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    own = room(path)
    ours = rooms_of(imports(path)) - {own, "__version__"} - OPEN
    if own in OPEN:
        assert not ours
        return
    assert ours <= ALLOWED[own], f"{own} must not import {', '.join(sorted(ours - ALLOWED[own]))}"


@pytest.mark.parametrize("path", [p for p in files() if room(p) in PACKAGES], ids=name)
def test_a_light_room_imports_only_its_packages(path: Path) -> None:
    packages = {module.split(".")[0] for module in imports(path)} - {"undertow", "__future__"}
    foreign = packages - set(sys.stdlib_module_names) - PACKAGES[room(path)]
    assert not foreign, f"{room(path)} must not import {', '.join(sorted(foreign))}"


def within(path: Path) -> tuple[str, str]:
    """A file's room, and the part of it that it belongs to; its face is no part."""
    parts = path.relative_to(SOURCE).parts
    return (parts[0], parts[1].removesuffix(".py")) if len(parts) > 1 else (parts[0], "__init__")


@pytest.mark.parametrize("path", [p for p in files() if within(p)[0] in WITHIN], ids=name)
def test_arrows_within_a_room_point_one_way(path: Path) -> None:
    own, part = within(path)
    if part == "__init__":
        return
    parts = {m.split(".")[2] for m in imports(path) if m.startswith(f"undertow.{own}.")}
    used = (parts & WITHIN[own].keys()) - {part}
    allowed = WITHIN[own].get(part, set())
    assert used <= allowed, f"{own}.{part} must not import {', '.join(sorted(used - allowed))}"


@pytest.mark.parametrize("path", files(), ids=name)
def test_private_modules_stay_in_their_room(path: Path) -> None:
    """`undertow.a.b._c` is open to what lies below `undertow.a.b`, and to nobody else."""
    own = path.relative_to(SOURCE).parts[:-1]
    for module in imports(path):
        first, *parts = module.split(".")
        if first != "undertow":
            continue
        for depth, part in enumerate(parts):
            if part.startswith("_") and not part.endswith("__"):
                assert own[:depth] == tuple(parts[:depth]), f"{name(path)} reaches into {module}"


def test_no_circles() -> None:
    """No two of our modules import each other, directly or by way of others."""
    known = {
        ".".join(("undertow", *path.relative_to(SOURCE).with_suffix("").parts)): path
        for path in files()
    }
    graph = {
        module: imports(path) & known.keys()
        for module, path in known.items()
        if not module.endswith("__init__")
    }
    done: dict[str, bool] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert done.get(module, True), " -> ".join((*trail, module))
        if module not in done:
            done[module] = False
            for other in sorted(graph.get(module, ())):
                visit(other, (*trail, module))
            done[module] = True

    for module in graph:
        visit(module, ())


def test_nobody_imports_the_command_line() -> None:
    users = {
        name(path) for path in files() if room(path) != "cli" and "cli" in rooms_of(imports(path))
    }
    assert users <= {"__main__.py"}
