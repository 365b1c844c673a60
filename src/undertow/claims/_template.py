"""A claim of one's own to begin from: one file that runs as it is."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

from undertow.claims._registry import ALL


def write_template(name: str, *, out: str | os.PathLike[str] | None = None) -> Path:
    """Write a claim of one experiment and five predictions to a file; returns its path.

    Args:
        name: what the command line calls it: small letters, digits and hyphens.
        out: the file; by default the name with underscores and `.py`, in the current folder.

    Raises:
        ValueError: a name of other characters, or that of a built-in claim; or `out` does not end
            in `.py`.
        FileExistsError: the file is there already; nothing is written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ValueError(
            f"name must be of small letters, digits and hyphens, such as my-claim, got {name!r}"
        )
    if name in ALL:
        raise ValueError(f"name must not be that of a built-in claim, got {name!r}")
    target = Path(f"{name.replace('-', '_')}.py" if out is None else out)
    if target.suffix != ".py":
        raise ValueError(f"out must end in .py, got {str(target)!r}")
    words = {"name": name, "title": name.replace("-", " ").capitalize(), "file": target.name}
    text = resources.files(__package__).joinpath("template.py.txt").read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(f"{{{{{word}}}}}", value)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise FileExistsError(f"{target} is there already; give another --out or name") from error
    return target
