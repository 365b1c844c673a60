"""The README's Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_code_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, str(README), "exec"), {})
    printed = capsys.readouterr().out
    assert "singular values" in printed
    assert "64 members on 360 samples" in printed


def test_the_tree_is_the_tree() -> None:
    """Every room and sub-room of the library is in the README's tree, and nothing else."""
    root = README.parent
    text = README.read_text(encoding="utf-8")
    tree = text[text.index("    src/undertow/") : text.index("[CONTRIBUTING.md]")]
    named: set[str] = set()
    room = ""
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        folders = re.findall(r"([a-z_]+)/(?= |$)", line)
        if indent == 6 and folders:
            room = folders[0]
            named.add(room)
        elif indent == 8:
            named |= {f"{room}/{folder}" for folder in folders}
        elif indent == 10:
            named |= {f"{room}/{path}" for path in re.findall(r"([a-z]+/[a-z_]+)/(?= |$)", line)}
        elif indent == 4 and folders and not line.strip().startswith("src"):
            assert (root / folders[0]).is_dir(), f"there is no {folders[0]}/"
    source = root / "src" / "undertow"
    there = {path.parent for path in source.rglob("__init__.py")} - {source}
    found = {path.relative_to(source).as_posix() for path in there}
    assert {name for name in found if not name.startswith("claims/")} == named
