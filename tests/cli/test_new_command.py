"""`undertow new claim`: a file that runs as it is, and is treated as any claim is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from undertow.cli import main


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def called(*words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with worker processes, as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "undertow", *words], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_template_runs_resumes_and_reports() -> None:
    assert main(["new", "claim", "min-norm"]) == 0
    source = Path("min_norm.py").read_text()
    assert len(source.splitlines()) < 150
    assert "{{" not in source
    run = called("reproduce", "./min_norm.py", "--seeds", "8", "--out", "run", "--json")
    assert run.returncode == 0, run.stderr
    whole = json.loads(run.stdout)
    assert (whole["claim"], whole["verdict"], len(whole["checks"])) == ("min-norm", "supported", 5)
    for path in sorted(Path("run/trials").iterdir())[::3]:
        path.unlink()
    resumed = json.loads(called("resume", "run", "--json").stdout)
    reported = json.loads(called("report", "run", "--json").stdout)
    assert resumed["checks"] == reported["checks"] == whole["checks"]
    assert "of least norm" in Path("run/report.html").read_text()


def test_its_rules_and_knobs_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "claim", "min-norm", "--out", "elsewhere.py", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"claim": "min-norm", "path": "elsewhere.py"}
    assert main(["claims", "./elsewhere.py", "--rules"]) == 0
    assert "descent from zero finds it" in capsys.readouterr().out
    assert main(["reproduce", "./elsewhere.py", "--help"]) == 0
    assert "Of gradient descent" in capsys.readouterr().out
    assert main(["reproduce", "./elsewhere.py", "--samples", "90"]) == 2
    assert "samples must be fewer than dimensions, got 90" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["new"], "undertow new claim my-claim"),
        (["new", "measure", "x"], "undertow new claim my-claim"),
        (["new", "claim"], "needs NAME"),
        (["new", "claim", "My Claim"], "small letters"),
        (["new", "claim", "twice"], "is there already"),
        (["new", "claim", "low-rank"], "not be that of a built-in claim"),
        (["new", "claim", "mine", "--out", "mine"], "out must end in .py"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("twice.py").write_text("mine")
    assert main(words) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert Path("twice.py").read_text() == "mine"


def test_claims_of_one_name_and_knobs_named_as_options_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("one.py", "other.py"):
        assert main(["new", "claim", "min-norm", "--out", name]) == 0
    assert main(["reproduce", "./one.py", "./other.py"]) == 2
    assert "two claims are called min-norm" in capsys.readouterr().err
    source = Path("one.py").read_text()
    Path("clash.py").write_text(
        source.replace("lr: Annotated", "workers: int = 1\n    lr: Annotated")
    )
    assert main(["reproduce", "./clash.py"]) == 2
    assert "its knob 'workers' has the name of an option" in capsys.readouterr().err
