"""The replication of a claim's verdict: where it is shown, and where there is none to show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from undertow import claims, lab
from undertow.claims import Claim, report, reproduce
from undertow.cli import main

pytestmark = pytest.mark.fast  # its claims are toys

INLINE = ["--engine", "inline"]
SPREAD = {"bias": 0.62, "flips": (16,), "seeds": 8}  # at the edge of within 0.25 of 0.5


@pytest.fixture(autouse=True)
def _claim(toy_claim: Claim, global_rng_untouched: None) -> None:
    pass


def run(**arguments: Any) -> claims.Reproduction:
    return reproduce("toy", engine="inline", progress=False, **arguments)


def test_it_is_in_the_result_the_json_and_the_stored_verdict() -> None:
    result = run(overrides=SPREAD, replicate=50)
    found = result.replication
    assert found is not None
    assert found.draws == 50
    assert 0 < found.checks["share of heads"] < 1
    said = json.loads((result.out / "verdict.json").read_text())
    assert said["replication"] == {
        "probability": found.probability,
        "interval": list(found.interval),
        "weakest": "share of heads",
    }
    assert [check["replicates"] for check in said["checks"]] == list(found.checks.values())
    assert set(found.checks) == {check["name"] for check in said["checks"]}


def test_a_report_recomputes_it_from_what_is_stored() -> None:
    result = run(overrides=SPREAD, replicate=50)
    assert report(result.out, replicate=50).as_json() == result.as_json()
    assert report(result.out, replicate=0).as_json()["replication"] is None
    assert report(result.out, replicate=20).replication.draws == 20
    with pytest.raises(ValueError, match="replicate must be at least 0, got -1"):
        report(result.out, replicate=-1)


def test_the_terminal_and_the_page_show_it(capsys: pytest.CaptureFixture[str]) -> None:
    result = run()
    words = ["report", str(result.out), "--replicate", "20"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "replicates  in 100% of 20 redraws of the seeds [83.2%, 100%]; every check" in said
    assert "result," in said
    assert max(map(len, said.splitlines())) <= 80
    page = (result.out / "report.html").read_text()
    assert "20 redraws of the seeds" in page
    assert '<th scope="col" class="number">replicates</th>' in page
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["replication"]["probability"] == 1.0
    assert main(["claims"]) == 0
    assert "replicates in 100%" in capsys.readouterr().out


def test_a_verdict_from_before_there_was_one_is_still_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = run()
    store = lab.Store(result.out)
    store.write_json("verdict.json", {k: v for k, v in result.as_json().items() if k[:4] != "repl"})
    assert main(["claims"]) == 0
    said = capsys.readouterr().out
    assert "supported (small), in undertow-runs" in said
    assert "replicates" not in said


def test_smoke_promises_no_verdict_and_refutes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "toy", "--preset", "smoke", "--bias", "0.99", *INLINE]
    assert main([*words, "--seeds", "8", "--flips", "256", "--out", "here"]) == 0
    said = capsys.readouterr().out
    assert "inconclusive. smoke promises no verdict. 99% of the throws" in said
    assert "refuted" not in said
    assert "not passed" not in said
    assert "replicates" not in said
    assert "refuted" not in Path("here/report.html").read_text()
    found = json.loads(Path("here/verdict.json").read_text())
    assert (found["verdict"], found["replication"]) == ("inconclusive", None)
    assert main(["reproduce", "toy", "--bias", "0.99", "--flips", "256", *INLINE]) == 0
    assert "refuted" in capsys.readouterr().out


def test_failed_trials_leave_nothing_to_replicate() -> None:
    result = run(overrides={"crooked": True})
    assert result.replication is None
    assert result.verdict.outcome == "inconclusive"


def test_an_interrupt_after_the_last_trial_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    for at in ("replication", "as_page"):
        with monkeypatch.context() as patch:
            patch.setattr(lab, at, interrupted)
            assert main(["reproduce", "toy", "--out", at, *INLINE]) == 130
        said = capsys.readouterr().err
        assert f"all trials are stored in {at}" in said
        assert f"to go on: undertow resume {at}" in said
        assert main(["resume", at, *INLINE]) == 0
        assert "12 of 12 trials" in capsys.readouterr().out
