"""The command line: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from undertow.claims import Claim
from undertow.cli import main

INLINE = ["--engine", "inline"]


@pytest.fixture(autouse=True)
def _claim(toy_claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def status(*words: str) -> int:
    """The exit status, whether returned or raised (tyro ends the process itself)."""
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


def lines(text: str) -> list[str]:
    return text.splitlines()


def test_the_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--help") == 0
    text = capsys.readouterr().out
    assert len(lines(text)) <= 24
    assert max(map(len, lines(text))) <= 80
    for command in ("inspect", "rescale", "forecast", "reproduce", "claims", "resume", "report"):
        assert command in text


def test_a_claims_help_shows_its_knobs_with_their_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status("reproduce", "toy", "--help") == 0
    text = capsys.readouterr().out
    assert len(lines(text)) <= 45
    for words in ("--flips", "(default: 64 256)", "--bias FLOAT", "chance of heads", "--preset"):
        assert words in text
    assert status("reproduce", "--help") == 0
    assert "toy" in capsys.readouterr().out
    for command in ("claims", "resume", "report", "inspect", "rescale", "forecast"):
        assert status(command, "--help") == 0
        assert "--json" in capsys.readouterr().out


def test_reproduce_ends_with_verdict_checks_report_and_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status("reproduce", "toy", *INLINE) == 0
    captured = capsys.readouterr()
    assert "supported. " in captured.out
    assert re.search(r"claim +toy\n", captured.out)
    assert "control: two-headed coins differ" in captured.out
    assert "at most 0.1" in captured.out
    assert "undertow-runs/toy-small-seed0/report.html" in captured.out
    assert "seconds" in captured.out
    assert max(map(len, lines(captured.out))) <= 80
    assert "12 trials" in captured.err


def test_json_is_one_object_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ("reproduce", "toy", "--json", *INLINE),
        ("report", "undertow-runs/toy-small-seed0", "--json"),
        ("resume", "undertow-runs/toy-small-seed0", "--json", *INLINE),
    ):
        assert status(*words) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["claim"] == "toy"
        assert found["verdict"] == "supported"
    assert status("claims", "--json") == 0
    claim, _ = json.loads(capsys.readouterr().out)["claims"]
    assert claim["name"] == "toy"
    assert claim["last"]["verdict"] == "supported"


def test_several_claims_are_several_results(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "coin", "toy", "--json", "--coins", "2", "--out", "runs", *INLINE]
    assert status(*words) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["out"] for result in results] == ["runs/coin", "runs/toy"]
    assert status("reproduce", "--all", "--preset", "smoke", "--json", *INLINE) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["claim"] for result in results] == ["toy", "coin"]


def test_one_claim_that_could_not_be_done_does_not_take_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("runs").mkdir()
    Path("runs/coin").write_text("a file where the folder should be")
    words = ["reproduce", "coin", "toy", "--json", "--out", "runs", *INLINE]
    assert status(*words, "--expect", "refuted") == 1
    failed, done = json.loads(capsys.readouterr().out)["results"]
    assert (failed["claim"], done["claim"]) == ("coin", "toy")
    assert "is a file" in failed["error"]


def test_knobs_and_options_reach_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--bias", "0.9", "--flips", "8", "64", "--no-lucky", "--seed=5", "--out", "here"]
    assert status("reproduce", "toy", "--json", *words, *INLINE) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["seed"], found["out"]) == ("refuted", 5, "here")
    config = json.loads(Path("here/config.json").read_text())["config"]
    assert config["knobs"] == {"bias": 0.9, "flips": [8, 64], "lucky": False}


def test_expect_decides_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("reproduce", "toy", "--expect", "supported", *INLINE) == 0
    assert status("report", "undertow-runs/toy-small-seed0", "--expect", "refuted") == 3
    assert "toy is supported, not refuted as expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reprduce"], "did you mean reproduce?"),
        (["reproduce"], "name the claims first, of toy"),
        (["reproduce", "--preset", "smoke", "toy"], "name the claims first, of toy"),
        (["reproduce", "tpy"], "did you mean toy?"),
        (["reproduce", "toy", "--flip", "3"], "no knob --flip; did you mean --flips?"),
        (["reproduce", "toy", "--wingspan=3"], "no knob --wingspan; there are --bias"),
        (["reproduce", "toy", "--all"], "give claims or --all, not both"),
        (["reproduce", "toy", "-x"], "no flag '-x'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = lines(captured.err)
    assert line.startswith("undertow: ")
    assert message in line


@pytest.mark.parametrize(
    "words",
    [["toy", "--seed", "x"], ["toy", "--preset", "big"], ["toy", "--bias"], ["toy", "--no-seed"]],
)
def test_a_wrong_value_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status("reproduce", *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words[1] in captured.err


def test_what_could_not_be_done_is_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status("report", "nowhere") == 1
    (line,) = lines(capsys.readouterr().err)
    assert line.startswith("undertow: nowhere is not an Undertow store")

    assert status("reproduce", "toy", "--crooked", "--coins", "1", "--json", *INLINE) == 1
    captured = capsys.readouterr()
    assert "stands on its edge" in json.loads(captured.out)["error"]
    assert "Traceback" not in captured.err
    assert lines(captured.err)[-1].startswith("undertow: all 2 trials of toy failed")


def test_claims_lists_title_paper_costs_and_the_last_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status("reproduce", "toy", *INLINE) == 0
    capsys.readouterr()
    assert status("claims") == 0
    text = capsys.readouterr().out
    assert max(map(len, lines(text))) <= 80
    for words in ("Fair coins", "Ars Conjectandi", "paper: 10 s", "last: supported (small)"):
        assert words in text


INTERRUPTED = """
import sys, time
import toy
from dataclasses import replace
from undertow import claims
from undertow.claims import _registry
from undertow.cli import main

def slow(coins):
    print("running", flush=True)
    time.sleep(60)

claim = replace(toy.CLAIM, run=slow)
_registry.ALL = claims.ALL = ("toy",)
toy.CLAIM = claim
sys.modules["undertow.claims.toy"] = toy
sys.exit(main(["reproduce", "toy", "--engine", "inline"]))
"""


def test_an_interrupt_says_how_to_go_on_and_is_status_130(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "to go on" in errors
    assert "undertow-runs/toy-small-seed0" in errors


def test_inspect_prints_a_table_or_one_json_object(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import torch

    file = tmp_path / "model.pt"
    torch.save({f"layers.{i}.weight": torch.randn(8, 4) for i in range(3)}, file)
    assert (
        status("inspect", str(file), "--lr", "0.1", "--weight-decay", "0.01", "--steps", "9") == 0
    )
    text = capsys.readouterr().out
    assert "layers.0" in text
    assert "e^-E" in text
    assert max(map(len, lines(text)[1:])) <= 80
    page, table = tmp_path / "page.html", tmp_path / "table.csv"
    written = ["--html", str(page), "--csv", str(table)]
    assert status("inspect", str(file), "--json", *written) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["matrices"]) == 3
    assert captured.err == ""
    assert table.read_text().startswith("name,rows,cols,parameters")
    assert page.stat().st_size > 10_000


def test_inspect_says_in_a_line_what_it_cannot_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    for path in (tmp_path / "nothing.pt", tmp_path / "cut.safetensors", tmp_path):
        assert status("inspect", str(path), "--html", str(tmp_path / "page.html")) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(lines(captured.err)) == 1
        assert captured.err.startswith("undertow: ")
    assert not (tmp_path / "page.html").exists()


RESCALE = ("rescale", "--lr", "3e-4", "--batch-size", "256", "--to", "1024", "--optimizer", "adamw")
FORECAST = ("forecast", "--lr", "0.1", "--weight-decay", "5e-4", "--steps", "2000")


def test_rescale_prints_each_change_or_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(*RESCALE, "--weight-decay", "0.1", "--warmup-steps", "500") == 0
    text = capsys.readouterr().out
    assert "lr' = sqrt(k) lr" in text
    assert "500 -> 125" in text
    assert max(map(len, lines(text))) <= 80
    assert status(*RESCALE, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["hyper"]["lr"] == pytest.approx(6e-4)
    assert status(*RESCALE, "--to-workers", "64") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the largest k is just under 10" in captured.err


def test_rescale_verifies_on_an_objective_in_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import torch, undertow as ut\n"
        "def objective():\n"
        "    inputs = torch.randn(64, 3)\n"
        "    data = (inputs, inputs.sum(1, keepdim=True) + torch.randn(64, 1))\n"
        "    model = torch.nn.Linear(3, 1)\n"
        "    return ut.Objective(model, torch.nn.functional.mse_loss, data)\n"
        "other = 3\n"
        "number = lambda: 3\n"
    )
    words = ("rescale", "--lr", "0.01", "--batch-size", "4", "--to", "8")
    assert status(*words, "--json", "--verify", f"{script}:objective") == 0
    verification = json.loads(capsys.readouterr().out)["verification"]
    assert verification["noise_scale"] > 0
    assert verification["answer"] in ("holds", "does not hold", "cannot be told")
    for place, said in (
        (f"{script}:other", "no function other"),
        (f"{script}:number", "must return an Objective"),
        ("job.py", "does not parse"),
    ):
        assert status(*words, "--verify", place) == 1
        assert said in capsys.readouterr().err


def test_forecast_prints_facts_and_ranks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    shapes = ("--shapes", "64x64", "head=10x64")
    assert status(*FORECAST, "--batch-size", "64", *shapes, "--html", str(page)) == 0
    text = capsys.readouterr().out
    assert "decay exponent E" in text
    assert "head" in text
    assert max(map(len, lines(text))) <= 80
    assert "Surviving initial directions" in page.read_text()
    assert status(*FORECAST, "--batch-size", "64", "--json") == 0
    assert json.loads(capsys.readouterr().out)["decay_exponent"] == pytest.approx(0.1)
    assert status(*FORECAST, "--batch-size", "64", "--schedule", "cosin") == 1
    assert "does not parse" in capsys.readouterr().err
    assert status(*FORECAST, "--batch-size", "64", "--checkpoint", "x", *shapes) == 2


def test_a_reader_that_leaves_and_a_terminal_that_cannot_show_a_name(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "many.pt"
    torch.save({f"módulo.{i}.weight": torch.eye(2) for i in range(600)}, file)
    command = [sys.executable, "-m", "undertow", "inspect", str(file), "--every"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert b"weight matrices" in process.stdout.readline() + process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) in (0, 141)
    assert process.stderr.read() == b""
    process.stderr.close()
