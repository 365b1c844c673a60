"""Reproducing a claim: what lands in the folder, going on after a stop, and clear failures."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
from pathlib import Path

import pytest

import toy
from undertow import lab
from undertow.claims import Claim, get, last_verdicts, report, reproduce, resume
from undertow.claims._page import rerun_command
from undertow.cli import main

pytestmark = pytest.mark.fast  # its claims are toys


@pytest.fixture(autouse=True)
def _claim(toy_claim: Claim, global_rng_untouched: None) -> None:
    pass


def run(claim: Claim | str = "toy", **arguments: object) -> object:
    return reproduce(claim, engine="inline", progress=False, **arguments)


@pytest.mark.slow
def test_a_run_leaves_verdict_report_figures_and_store(toy_claim: Claim) -> None:
    result = run(toy.CLAIM)
    assert result.verdict.outcome == "supported"
    assert result.out == Path("undertow-runs/toy-small-seed0")
    assert len(result.records["coins"]) == 12
    verdict = json.loads((result.out / "verdict.json").read_text())
    assert verdict == {**result.as_json(), "digest": verdict["digest"]}
    page = (result.out / "report.html").read_text()
    for words in (
        toy_claim.statement,
        "supported",
        "control: two-headed coins",
        "More throws, less spread.",
        "A finite number of throws",
        "undertow reproduce toy --preset small --seed 0",
        "12 trials: 12 run in",
    ):
        assert words in page
    assert (result.out / "figures" / "heads.svg").read_text().startswith("<svg")
    assert (result.out / "figures" / "heads.png").read_bytes().startswith(b"\x89PNG")
    assert repr(result).startswith("toy (small, seed 0) is supported: 2 of 2 checks passed.")


def test_the_json_is_the_specified_object() -> None:
    found = run(seed=3).as_json()
    assert list(found) == [
        *("claim", "preset", "seed", "verdict", "checks", "replication"),
        *("trials", "failed", "alone", "seconds", "out"),
    ]
    first, control = found["checks"]
    assert list(first) == ["name", "value", "interval", "rule", "passed", "control", "replicates"]
    assert list(found["replication"]) == ["probability", "interval", "weakest"]
    assert control["interval"] == [1.0, 1.0]
    assert control["control"] is True
    json.dumps(found, allow_nan=False)


def test_one_seed_one_result_and_another_seed_another() -> None:
    first, again, other = run(), run(out="elsewhere"), run(seed=1)
    assert first.records["coins"].equals(again.records["coins"])
    assert not first.records["coins"]["heads"].equals(other.records["coins"]["heads"])


def test_knobs_change_the_run_and_its_folder() -> None:
    biased = run(overrides={"bias": 0.9, "flips": (8, 64)})
    assert biased.verdict.outcome == "refuted"
    assert biased.out.name.startswith("toy-small-seed0-")
    assert run(overrides={"seeds": 6}).out.name == "toy-small-seed0"  # the preset's own value
    assert run(overrides={"bias": 0.8}).out != biased.out


def test_what_is_stored_is_not_run_again(toy_claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run()

    def must_not_run(coins: object) -> object:
        raise AssertionError("a stored trial ran again")

    monkeypatch.setattr(toy, "throw", must_not_run)
    again = run(dataclasses.replace(toy_claim, home="toy"))
    assert again.records["coins"].equals(first.records["coins"])
    assert again.seconds == pytest.approx(first.seconds, abs=1e-3)  # of the run that computed


def test_resume_runs_what_is_missing_with_the_same_knobs() -> None:
    whole = run(overrides={"flips": (8, 64)}, out="here")
    for path in sorted((whole.out / "trials").iterdir())[::2]:
        path.unlink()
    (whole.out / "verdict.json").unlink()
    with pytest.raises(ValueError, match=r"6 of the 12 trials .*undertow resume here"):
        report("here")
    resumed = resume("here", engine="inline", progress=False)
    assert resumed.records["coins"].equals(whole.records["coins"])
    assert resumed.verdict == whole.verdict


def test_report_runs_nothing_and_says_the_same() -> None:
    whole = run(out="here")
    (whole.out / "report.html").unlink()
    again = report("here")
    assert again.as_json() == whole.as_json()
    assert (whole.out / "report.html").is_file()
    for name in ("verdict.json", "run.json"):
        (whole.out / name).unlink()
    assert math.isnan(report("here").seconds)


def test_failed_trials_are_counted_and_leave_no_verdict() -> None:
    result = run(overrides={"crooked": True})
    assert len(result.records["coins"]) == 10
    assert result.verdict.outcome == "inconclusive"
    assert result.verdict.summary.startswith("2 of 12 trials failed and are left out")
    assert f"undertow resume {result.out}" in result.verdict.summary
    found = result.as_json()
    assert (found["trials"], found["failed"]) == (12, 2)
    page = (result.out / "report.html").read_text()
    assert "Failed trials" in page
    assert "it stands on its edge" in page
    assert "12 trials: 12 run" in page
    again = report(result.out)
    assert again.verdict == result.verdict
    assert again.document().facts["stored"] == "10 of 12 trials"
    assert again.document().facts["failed"] == "2 of 12 trials"


def test_a_resumed_run_counts_the_seconds_of_all_its_parts() -> None:
    first = run(out="here")
    for path in sorted((first.out / "trials").iterdir())[::2]:
        path.unlink()
    lab.Store("here").write_json("run.json", {"seconds": 1000.0, "alone": []})
    assert 1000 < resume("here", engine="inline", progress=False).seconds < 2000


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, "1", True])
def test_a_seed_is_a_whole_number_that_fits(seed: object) -> None:
    with pytest.raises((TypeError, ValueError), match="seed must be"):
        run(seed=seed)


def test_when_every_trial_fails_the_first_failure_is_quoted() -> None:
    with pytest.raises(RuntimeError, match=r"all 12 trials of toy failed.*stands on its edge"):
        run(overrides={"all_crooked": True})


def test_bad_arguments_say_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'tpy'; did you mean toy"):
        get("tpy")
    with pytest.raises(
        ValueError, match=r"preset must be one of smoke, small, paper for toy, got 'large'"
    ):
        run(preset="large")
    with pytest.raises(ValueError, match=r"toy: it has no knob 'flip'; it has flips"):
        run(overrides={"flip": 3})
    with pytest.raises(ValueError, match=r"toy: flips must be at least 1, got \(0, 3\)"):
        run(overrides={"flips": (0, 3)})
    with pytest.raises(OSError, match="not an Undertow store"):
        resume(tmp_path)
    other = lab.Store(tmp_path / "other")
    other.begin("something", {})
    with pytest.raises(ValueError, match=r"holds no run of a claim"):
        report(tmp_path / "other")


def test_the_last_verdict_is_the_newest(tmp_path: Path) -> None:
    assert last_verdicts() == {}
    run()
    newest = run(overrides={"bias": 0.9})
    junk = tmp_path / "undertow-runs" / "junk"
    junk.mkdir()
    (junk / "verdict.json").write_text("[1")
    assert last_verdicts() == {"toy": newest.as_json()}


def test_the_rerun_command_spells_every_kind_of_knob(toy_claim: Claim) -> None:
    knobs = {"flips": (1, 2), "mint": "of the king", "crooked": True, "lucky": False}
    assert rerun_command(toy_claim, preset="smoke", seed=7, knobs=knobs) == (
        "undertow reproduce toy --preset smoke --seed 7"
        " --flips 1 2 --mint 'of the king' --crooked --no-lucky"
    )


def test_figures_that_python_cannot_draw_are_said_to_be_missing(
    toy_claim: Claim, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -OO` drops the docstrings that they need."""
    found = {name: getattr(sys.flags, name) for name in dir(sys.flags) if name[0] != "_"}
    monkeypatch.setattr(sys, "flags", types.SimpleNamespace(**{**found, "optimize": 2}))
    assert main(["reproduce", "toy", "--engine", "inline"]) == 0
    assert "no figures were drawn" in capsys.readouterr().err
