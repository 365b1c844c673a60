"""The arrows between the rooms: which part of the package may import which."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import undertow

SOURCE = Path(undertow.__file__).parent

# A room, and the rooms of ours that it may import. `_data_files` is a part of `data`, and
# `_arguments` of `cli`.
# Private modules beside a room's own file are part of that room.
BESIDE = dict.fromkeys(
    (
        "_batches",
        "_curvature",
        "_fastest",
        "_gauss_newton_trace",
        "_lean",
        "_loss_terms",
        "_losses",
        "_module",
        "_products",
    ),
    "objective",
)
ALLOWED = {
    "predict": set(),
    "lab": set(),
    "objective": set(),
    "data": {"_data_files"},
    "_data_files": set(),
    "models": set(),
    "measure": {"objective", "predict"},
    "train": {"objective", "predict"},
    "apply": {"objective", "measure", "predict", "train", "lab"},
    "claims": {"objective", "measure", "predict", "train", "apply", "lab", "data", "models"},
    "integrations": {"objective", "measure", "predict", "train", "apply"},
    "_arguments": {"claims"},
    "cli": {"_arguments", "apply", "claims", "lab", "predict"},
}
# Rooms that may import only these packages beside the standard library and ours.
PACKAGES = {
    "predict": {"numpy", "jaxtyping"},  # jaxtyping: shapes in signatures, no code
    "lab": {"numpy", "scipy", "polars", "rich", "loky", "altair", "vl_convert"},
    "cli": {"rich"},
    "_arguments": {"tyro"},
}


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
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return BESIDE.get(own, own)


def rooms_of(modules: set[str]) -> set[str]:
    """The rooms of ours that imported modules belong to."""
    ours = {module.split(".")[1] for module in modules if module.startswith("undertow.")}
    return {BESIDE.get(module, module) for module in ours}


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", files(), ids=name)
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    own = room(path)
    ours = rooms_of(imports(path)) - {own, "__version__"}
    assert ours <= ALLOWED[own], f"{own} must not import {', '.join(sorted(ours - ALLOWED[own]))}"


@pytest.mark.parametrize("path", [p for p in files() if room(p) in PACKAGES], ids=name)
def test_a_light_room_imports_only_its_packages(path: Path) -> None:
    packages = {module.split(".")[0] for module in imports(path)} - {"undertow", "__future__"}
    foreign = packages - set(sys.stdlib_module_names) - PACKAGES[room(path)]
    assert not foreign, f"{room(path)} must not import {', '.join(sorted(foreign))}"


@pytest.mark.parametrize("path", files(), ids=name)
def test_private_modules_stay_in_their_room(path: Path) -> None:
    own = room(path)
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "undertow" and BESIDE.get(parts[1], parts[1]) != own:
            private = [part for part in parts[2:] if part.startswith("_")]
            private += [part for part in parts[1:2] if part in BESIDE]
            assert not private, f"{name(path)} reaches into {module}"


def test_nobody_imports_the_command_line() -> None:
    users = {name(path) for path in files() if "undertow.cli" in imports(path)}
    assert not users
