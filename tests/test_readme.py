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
