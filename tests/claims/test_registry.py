"""Where claims are found: built in, by entry point, by the path of a file or a folder."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from undertow.claims import _registry, get, names, report, reproduce, resume, write_template
from undertow.cli import main


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_template("own-claim")


def test_a_file_is_a_claim_under_a_name_that_cannot_clash(own: Path) -> None:
    claim = get(str(own.resolve()))
    assert (claim.name, claim.source) == ("own-claim", str(own.resolve()))
    assert get(f"./{own}") == claim
    assert "own_claim" not in sys.modules


def test_a_folder_is_a_claim_with_its_parts_beside(own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parted"
    folder.mkdir()
    source = own.read_text()
    (folder / "__init__.py").write_text(source)
    for part in ("experiments", "predictions", "figures"):
        (folder / f"{part}.py").write_text(source)
    claim = get(str(folder))
    assert claim.part("predictions").__name__.endswith("parted.predictions")
    run = reproduce(claim, preset="smoke", out="run", workers=1, progress=False)
    assert len(run.verdict.checks) == 5


def test_a_changed_file_is_read_anew_only_in_another_process(own: Path) -> None:
    first = get(str(own.resolve()))
    assert get(str(own.resolve())) == first


def test_the_store_notes_where_the_claim_came_from(own: Path) -> None:
    run = reproduce(f"./{own}", preset="smoke", out="run", engine="inline", progress=False)
    assert resume("run", engine="inline", progress=False).verdict == run.verdict
    moved = own.rename("moved.py")
    with pytest.raises(FileNotFoundError, match="whose file is no longer at"):
        report("run")
    moved.rename(own)
    assert report("run").verdict == run.verdict


def test_installed_packages_bring_claims(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = get(str(own.resolve())).home
    point = EntryPoint("theirs", f"{module}:CLAIM", "undertow.claims")
    monkeypatch.setattr(_registry, "_entry_points", lambda: {"theirs": point})
    assert names()[-1] == "theirs"
    claim = get("theirs")
    assert claim.source == f"entry point {module}:CLAIM"
    with pytest.raises(ValueError, match="did you mean theirs"):
        get("theris")


def test_what_is_no_claim_says_so(tmp_path: Path) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1")
    with pytest.raises(ValueError, match="defines no claim: give it CLAIM ="):
        get(str(empty))
    with pytest.raises(FileNotFoundError, match="there is no claim at"):
        get(str(tmp_path / "nowhere.py"))
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('mine')")
    with pytest.raises(RuntimeError, match="mine"):
        get(str(broken))
    assert not any(name.endswith("broken") for name in sys.modules)


def test_files_of_one_name_in_two_folders_are_two_claims(own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b side"
    folder.mkdir()
    other = folder / own.name
    other.write_text(own.read_text().replace("to a tenth", "in the other file"))
    first, second = get(f"./{own}"), get(str(other))
    rules = [claim.predictions(claim.presets["small"]) for claim in (first, second)]
    assert rules[0]["fits the data"].words == "in every seed: to a tenth"
    assert rules[1]["fits the data"].words == "in every seed: in the other file"
    run = reproduce(first, preset="smoke", out="run", engine="inline", progress=False)
    assert len(run.verdict.checks) == 5
    with pytest.raises(OSError, match="holds a run of another claim"):
        reproduce(second, preset="smoke", out="run", engine="inline", progress=False)


def test_the_report_says_how_a_file_is_run_again(own: Path) -> None:
    run = reproduce(f"./{own}", preset="smoke", out="run", engine="inline", progress=False)
    assert f"undertow reproduce ./{own} --preset smoke" in (run.out / "report.html").read_text()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('STARTS = ("zero", "random")', "import helper_of_mine", r"line 39: ModuleNotFoundError"),
        ('STARTS = ("zero", "random")', "1 / 0", r"line 39: ZeroDivisionError"),
        ('STARTS = ("zero", "random")', "def (", r"line 39: SyntaxError"),
        ("FIGURES = (distances,)", "", "own-claim has no FIGURES"),
        ("def table(", "def tabel(", "own-claim has no table"),
        ("    zero, random =", "    return []\n    zero, random =", r"predictions\(\) must give"),
        ("    zero, random =", '    return {"a": 1}\n    zero, random =', r"for 'a', got int"),
        ('return {"descents": Experiment(trials, descend)}', "return None", "got a NoneType"),
        ('return {"descents": Experiment(trials, descend)}', "return {}", "has no trials"),
        ('        "smoke": LeastSquares(steps=100, seeds=2),\n', "", "got none called 'smoke'"),
        ('"descents", "residual"', '"ascents", "residual"', "no experiment is called 'ascents'"),
        ('"descents", "residual"', '"descents", "rseidual"', "ColumnNotFoundError"),
    ],
)
def test_an_error_in_a_file_of_ones_own_is_one_line_with_its_place(
    own: Path, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own.read_text().count(old) >= 1
    own.write_text(own.read_text().replace(old, new))
    words = ["reproduce", f"./{own}", "--preset", "smoke", "--engine", "inline"]
    assert main(words) in (1, 2)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("undertow: ")
    assert re.search(message, line)


@pytest.mark.fast
def test_what_an_installed_package_cannot_load_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("theirs", "no_such_package_of_theirs:CLAIM", "undertow.claims")
    monkeypatch.setattr(_registry, "_entry_points", lambda: {"theirs": point})
    with pytest.raises(RuntimeError, match=r"the claim theirs \(no_such.*ModuleNotFoundError"):
        get("theirs")


def test_what_was_read_from_an_earlier_run_is_in_sight(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reproduce", f"./{own}", "--preset", "smoke", "--engine", "inline"]
    said = []
    for _ in range(2):
        assert main(words) == 0
        said.append(capsys.readouterr().out)
    assert "4 of 4 trials" not in said[0]
    assert "4 of 4 trials" in said[1]
