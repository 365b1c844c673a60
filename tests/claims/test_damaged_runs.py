"""The folder of a run after an accident: the same verdict, or one line that names what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from undertow import lab
from undertow.claims import Claim, last_verdicts, report, reproduce, resume
from undertow.cli import main

pytestmark = pytest.mark.fast  # its claims are toys


@pytest.fixture(autouse=True)
def _claim(toy_claim: Claim) -> None:
    pass


def run(**arguments: object) -> object:
    return reproduce("toy", engine="inline", progress=False, **arguments)


def judged(folder: Path, command: str, capfd: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """What a command says of a run but for the seconds, None where it cannot; and all its lines."""
    words = [
        command,
        str(folder),
        "--json",
        *(["--engine", "inline"] if command == "resume" else []),
    ]
    status = main(words)
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    found = json.loads(said.out)
    assert status == ("error" in found)
    if "error" in found:
        return None, found["error"]
    return {**found, "seconds": None}, said.err


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00\xff[garbage")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder_with_a_file(path: Path) -> None:
    path.mkdir()
    (path / "within").write_text("x")


ACCIDENTS: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: None,
    "empty": Path.touch,
    "garbage": garbage,
    "a folder": folder_with_a_file,
    "a pipe": pipe,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a list": lambda path: path.write_text("[]"),
    "an empty object": lambda path: path.write_text("{}"),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
@pytest.mark.parametrize(
    "name",
    ["config.json", "environment.json", "run.json", "verdict.json", "report.html", "record",
     "trials", "failures", "figures", ".lock", "damaged"],
)  # fmt: skip
def test_a_run_after_an_accident(
    accident: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = run().out
    expected, _ = judged(folder, "report", capfd)
    path = folder / name if name != "record" else sorted((folder / "trials").iterdir())[3]
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    ACCIDENTS[accident](path)
    for command in ("report", "resume", "report"):
        found, said = judged(folder, command, capfd)
        assert found in (None, expected)
        if found is None:  # one line, which says what to do
            assert "start the same run again" in said or "undertow resume" in said
    if found is None:
        assert name == "config.json"
        run()
        assert "config.json" in capfd.readouterr().err
        assert judged(folder, "report", capfd) == (expected, "")


def test_the_folder_of_another_run_is_refused_unless_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(out="here", overrides={"bias": 0.9})
    run(out="here", overrides={"bias": 0.9})
    for other in (
        {"seed": 1, "overrides": {"bias": 0.9}},
        {"overrides": {"bias": 0.8}},
        {"preset": "smoke", "overrides": {"bias": 0.9}},
        {},
    ):
        before = (Path("here") / "config.json").read_bytes()
        with pytest.raises(lab.StoreError, match=r"here holds another run of toy \(preset small"):
            run(out="here", **other)
        assert (Path("here") / "config.json").read_bytes() == before
    assert main(["reproduce", "toy", "--out", "here", "--engine", "inline"]) == 1
    assert "bias 0.9); give another folder, or --replace" in capsys.readouterr().err
    assert main(["reproduce", "toy", "--out", "here", "--replace", "--engine", "inline"]) == 0
    assert report("here").verdict.outcome == "supported"
    with pytest.raises(lab.StoreError, match="holds the study 'toy', not 'coin'"):
        reproduce("coin", out="here", engine="inline", progress=False)


def test_a_strangers_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert", "format": 1}')
    with pytest.raises(lab.StoreError, match="not an Undertow store"):
        run(out="model")
    assert os.listdir("model") == ["config.json"]


def test_a_verdict_that_is_damaged_is_not_the_last(capfd: pytest.CaptureFixture[str]) -> None:
    path = run().out / "verdict.json"
    path.write_text(path.read_text().replace("0.", "1.", 1))
    assert last_verdicts() == {}
    assert f"make it again with: undertow report {path.parent}" in capfd.readouterr().err
    report(path.parent)
    assert last_verdicts()["toy"]["verdict"] == "supported"


def test_what_was_read_what_failed_and_how_long_is_counted_right() -> None:
    first = run(overrides={"crooked": True}, out="here")
    again = resume("here", engine="inline", progress=False)
    assert again.seconds > first.seconds  # the failed ones were tried again
    page = (again.out / "report.html").read_text()
    assert "12 trials: 2 run" in page
    assert "10 read from the store, 2 failed" in page
    page = (report("here").out / "report.html").read_text()
    assert "12 trials: 0 run" in page
    assert "10 read from the store, 2 failed" in page
