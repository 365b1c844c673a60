"""Which claims there are: built-in ones, those of installed packages, and files of one's own.

A claim is a module with a `CLAIM`. It is found by its name, by an entry point in the group
`undertow.claims`, or by the path of its file or folder.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from undertow.claims._claim import Claim, errors_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ALL = (
    "low-rank",
    "janus",
    "deep-relu-limit",
    "sgd-noise",
    "rank-one-features",
    "momentum",
    "square-loss",
    "adaptive-sde",
    "matrix-sensing",
    "greedy-low-rank",
    "normalization-flattens",
    "intrinsic-lr",
    "two-layer-margin",
    "margin",
    "local-sgd-relu",
    "local-sgd-flatness",
    "saliency",
)
"""The names in the order in which they are shown; the package `low_rank` is `low-rank`."""
_GROUP = "undertow.claims"
_OWN = "undertow_own_claim_"  # before the module name of a claim found by its path


def names() -> tuple[str, ...]:
    """The claims that are found by name: the built-in ones, then those of installed packages."""
    return (*ALL, *(name for name in sorted(_entry_points()) if name not in ALL))


def get(name: str) -> Claim:
    """The claim of this name or path; its module is imported on first use.

    Args:
        name: a built-in claim's name, an entry point's in the group `undertow.claims`, or the path
            of a Python file or of a folder with an `__init__.py`, which must define a `CLAIM`.
            What ends in `.py`, or holds a slash, is a path.

    Raises:
        ValueError: no claim has this name (the message lists close matches), or what is there
            defines no `CLAIM`.
        FileNotFoundError: there is no file or folder at this path.
        RuntimeError: what is there cannot be imported; the message says in which line.
    """
    if name in ALL:
        return _claim_of(importlib.import_module(f"{__package__}.{name.replace('-', '_')}"), name)
    if name.endswith(".py") or os.sep in name or "/" in name:
        return _at_path(Path(name))
    found = _entry_points().get(name)
    if found is None:
        close = difflib.get_close_matches(name, names())
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names())}"
        raise ValueError(
            f"no claim is called {name!r}; {hint}; a claim of your own is given by its path, such "
            "as ./mine.py"
        )
    with errors_of(f"the claim {name} ({found.value})"):
        claim = found.load()
    if isinstance(claim, ModuleType):
        claim = _claim_of(claim, name)
    return dataclasses.replace(claim, source=f"entry point {found.value}")


def _entry_points() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=_GROUP)}


def _claim_of(module: ModuleType, where: str) -> Claim:
    claim = getattr(module, "CLAIM", None)
    if not isinstance(claim, Claim):
        raise ValueError(f"{where} defines no claim: give it CLAIM = claims.Claim(...)")
    return claim


def _at_path(path: Path) -> Claim:
    """The claim that a file or a folder defines, its module under a name that cannot clash."""
    folder = path.is_dir()
    file = path / "__init__.py" if folder else path
    if not file.is_file():
        raise FileNotFoundError(f"there is no claim at {path}: no such file, or no __init__.py")
    file = file.resolve()
    # Of the whole path: files of one name in two folders are two claims.
    digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:8]
    name = f"{_OWN}{digest}_" + re.sub(r"\W", "_", file.parent.name if folder else file.stem)
    known = sys.modules.get(name)
    if known is None:
        found = [str(file.parent)] if folder else None
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=found)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path} is no Python file; a claim's file ends in .py")
        known = importlib.util.module_from_spec(spec)
        sys.modules[name] = known
        try:
            with errors_of(file.parent if folder else file):
                spec.loader.exec_module(known)
        except BaseException:
            for half in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
                del sys.modules[half]
            raise
    claim = _claim_of(known, str(path))
    return dataclasses.replace(claim, source=str(file.parent if folder else file))


def by_value(claim: Claim) -> None:
    """Send the claim's modules to worker processes whole, where these could not import them."""
    if not claim.home.startswith(_OWN):
        return
    import cloudpickle

    own = (claim.home, f"{claim.home}.")
    for name, module in list(sys.modules.items()):
        if name == own[0] or name.startswith(own[1]):
            cloudpickle.register_pickle_by_value(module)
