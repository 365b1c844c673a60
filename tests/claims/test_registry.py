"""Where claims are found: built in, by entry point, by the path of a file or a folder."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from undertow.claims import _registry, get, names, report, reproduce, resume, write_template


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
