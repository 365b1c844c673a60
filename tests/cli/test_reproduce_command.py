"""`undertow reproduce`, `resume` and `report`: runs, and how their end is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from undertow import claims
from undertow.claims import Claim
from undertow.cli import main

INLINE = ["--engine", "inline"]


@pytest.fixture(autouse=True)
def _claim(toy_claim: Claim) -> None:
    """Two claims of coins, in a temporary current folder."""


def test_a_claims_help_shows_its_knobs_with_their_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["reproduce", "toy", "--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 45
    for words in ("--flips", "(default: 64 256)", "--bias X", "chance of heads", "--preset"):
        assert words in text
    assert main(["reproduce", "--help"]) == 0
    assert "toy" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], *([name] for name in claims.ALL)], ids=" ".join)
def test_the_help_of_a_built_in_claim_fits_a_screen(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the claims of coins
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["reproduce", *words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80


def test_reproduce_ends_with_verdict_checks_report_and_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["reproduce", "toy", *INLINE]) == 0
    captured = capsys.readouterr()
    assert "supported. " in captured.out
    assert "control: two-headed coins" in captured.out
    assert "within 0.25 of 0.5: a fair coin" in captured.out
    assert "undertow-runs/toy-small-seed0/report.html" in captured.out
    assert "seconds" in captured.out
    assert max(map(len, captured.out.splitlines())) <= 80
    assert "12 trials" in captured.err


def test_json_is_one_object_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ("reproduce", "toy", "--json", *INLINE),
        ("report", "undertow-runs/toy-small-seed0", "--json"),
        ("resume", "undertow-runs/toy-small-seed0", "--json", *INLINE),
    ):
        assert main(words) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["claim"] == "toy"
        assert found["verdict"] == "supported"


def test_several_claims_are_several_results(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "coin", "toy", "--json", "--seeds", "2", "--out", "runs", *INLINE]
    assert main(words) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["out"] for result in results] == ["runs/coin", "runs/toy"]
    assert main(["reproduce", "--all", "--preset", "smoke", "--json", *INLINE]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["claim"] for result in results] == ["toy", "coin"]


def test_one_claim_that_could_not_be_done_does_not_take_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("runs").mkdir()
    Path("runs/coin").write_text("a file where the folder should be")
    words = ["reproduce", "coin", "toy", "--json", "--out", "runs", *INLINE]
    assert main([*words, "--expect", "refuted"]) == 1
    failed, done = json.loads(capsys.readouterr().out)["results"]
    assert (failed["claim"], done["claim"]) == ("coin", "toy")
    assert "is a file" in failed["error"]


def test_knobs_and_options_reach_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--bias", "0.9", "--flips", "8", "64", "--no-lucky", "--seed=5", "--out", "here"]
    assert main(["reproduce", "toy", "--json", *words, *INLINE]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["seed"], found["out"]) == ("refuted", 5, "here")
    config = json.loads(Path("here/config.json").read_text())["config"]
    assert config["knobs"] == {"bias": 0.9, "flips": [8, 64], "lucky": False}


def test_expect_decides_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "toy", "--expect", "supported", *INLINE]) == 0
    assert main(["report", "undertow-runs/toy-small-seed0", "--expect", "refuted"]) == 3
    assert "toy is supported, not refuted as expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the claims first, of toy"),
        (["--preset", "smoke", "toy"], "name the claims first, of toy"),
        (["tpy"], "did you mean toy?"),
        (["toy", "--flip", "3"], "no knob --flip; did you mean --flips?"),
        (["toy", "--wingspan=3"], "no knob --wingspan; there are --all-crooked, --bias"),
        (["toy", "--all"], "give claims or --all, not both"),
        (["toy", "-x"], "no flag '-x'"),
        (["toy", "--seed", "x"], "reproduce: --seed takes a whole number, got x"),
        (["toy", "--preset", "big"], "--preset takes one of smoke, small, paper, got big"),
        (["toy", "--bias"], "toy: --bias takes a number, got nothing"),
        (["toy", "--no-seed"], "no knob --no-seed; did you mean --seed"),
        (["toy", "--json", "yes"], "--json takes no value, got yes"),
        (["toy", "--bias", "nan"], "toy: --bias takes a number, got nan"),
        (["toy", "--seed", "-1"], "--seed must be from 0 to 2^63 - 1, got -1"),
        (["toy", "--seed", str(2**63)], "--seed must be from 0 to 2^63 - 1"),
        (["toy", "--seed", "0.5"], "--seed takes a whole number, got 0.5"),
        (["toy", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["toy", "--trial-timeout", "0"], "--trial-timeout must be a number of seconds above 0"),
        (["toy", "--trial-timeout", "inf"], "--trial-timeout must be a number of seconds above 0"),
        (["toy", "--trial-timeout", "9", *INLINE], "--trial-timeout needs worker processes"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    words: list[str], message: str, refused: Callable[..., str]
) -> None:
    assert message in refused("reproduce", *words)


def test_a_value_that_a_claim_refuses_is_wrong_usage(
    refused: Callable[..., str],
) -> None:
    line = refused("reproduce", "toy", "--flips", "3", "0")
    assert line == "undertow: toy: flips must be at least 1, got (3, 0)"


def test_what_could_not_be_done_is_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["report", "nowhere"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("undertow: nowhere is not an Undertow store")

    assert main(["reproduce", "toy", "--all-crooked", "--json", *INLINE]) == 1
    captured = capsys.readouterr()
    assert "stands on its edge" in json.loads(captured.out)["error"]
    assert "Traceback" not in captured.err
    assert captured.err.splitlines()[-1].startswith("undertow: all 12 trials of toy failed")


def test_failed_trials_are_status_1_also_where_the_verdict_is_as_expected(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["reproduce", "toy", "--crooked", "--expect", "inconclusive", *INLINE]
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("Fair coins")
    assert "inconclusive. 2 of 12 trials failed" in captured.out
    assert captured.err.splitlines()[-1] == "undertow: toy: 2 of 12 trials failed"
    assert main(["report", "undertow-runs/toy-small-seed0-"]) == 1  # no such folder
    (folder,) = Path("undertow-runs").iterdir()
    assert main(["report", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["trials"], found["failed"]) == ("inconclusive", 12, 2)


def test_nothing_that_a_trial_prints_is_in_the_json(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import toy

    def loud(coins: object) -> object:
        print("from Python")
        os.system("echo from a child")
        os.write(1, b"from a library\n")
        return [[{"heads": 0.5, "two_headed": 1.0}] for _ in coins]  # type: ignore[attr-defined]

    monkeypatch.setattr(sys.modules["undertow.claims.toy"], "throw", loud)
    monkeypatch.setattr(toy, "throw", loud)
    assert main(["reproduce", "toy", "--json", *INLINE]) == 0
    out, error = capfd.readouterr()
    assert json.loads(out)["claim"] == "toy"
    assert out.count("\n") == 1
    for words in ("from Python", "from a child", "from a library"):
        assert words in error


INTERRUPTED = """
import sys, time
import toy
from undertow.claims import _registry
from undertow.cli import main

def slow(coins):
    print("running", flush=True)
    time.sleep(60)

toy.throw = slow
_registry.ALL = ("toy",)
sys.modules["undertow.claims.toy"] = toy
sys.exit(main(["reproduce", "toy", "--engine", "inline"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_says_how_to_go_on_and_has_its_status(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
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
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in errors
    assert "to go on: undertow resume undertow-runs/toy-small-seed0" in errors
