"""No part of the library unpickles what a file holds: pickles are read as data."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import undertow

SOURCE = Path(undertow.__file__).parent
# Importing a module by value is cloudpickle's; what a run and its own worker processes say to each
# other over their pipe comes from no file.
ALLOWED = {
    "lab/_engine.py": {"pickle", "cloudpickle"},
    "lab/_worker.py": {"pickle"},
    "claims/_registry.py": {"cloudpickle"},
}
MODULES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}


def names(tree: ast.AST) -> set[str]:
    """Modules that unpickle and calls that may, wherever they stand."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] in MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            called = ast.unparse(node.func)
            if called.endswith("torch.load") and keywords.get("weights_only") is not True:
                found.add(called)
            if keywords.get("allow_pickle"):
                found.add(called)
            if node.func.attr in ("read_pickle", "Unpickler", "jit.load"):
                found.add(called)
    return found


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_no_module_unpickles(path: Path) -> None:
    place = path.relative_to(SOURCE).as_posix()
    assert names(ast.parse(path.read_text(encoding="utf-8"))) <= ALLOWED.get(place, set())


def test_the_search_finds_what_it_looks_for() -> None:
    for code in (
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "pd.read_pickle(f)",
    ):
        assert names(ast.parse(code)), code
    assert not names(ast.parse("torch.load(f, weights_only=True); np.load(f)"))
