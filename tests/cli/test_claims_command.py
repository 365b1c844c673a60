"""`undertow claims`: the papers, what each costs, the last verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from undertow.claims import Claim
from undertow.cli import main


@pytest.fixture(autouse=True)
def _claim(toy_claim: Claim) -> None:
    """Two claims of coins, in a temporary current folder."""


def test_claims_lists_title_paper_costs_and_the_last_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["reproduce", "toy", "--engine", "inline"]) == 0
    capsys.readouterr()
    assert main(["claims"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for words in ("Fair coins", "Ars Conjectandi", "paper: 10 s", "last   supported (small)"):
        assert words in text
    assert main(["claims", "--json"]) == 0
    toy, coin = json.loads(capsys.readouterr().out)["claims"]
    assert toy["name"] == "toy"
    assert toy["last"]["verdict"] == "supported"
    assert coin["last"] is None


def test_one_claim_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "toy"]) == 0
    text = capsys.readouterr().out
    for words in ("comes as near to one half", "smoke: 1 s", "built-in", "may miss one half"):
        assert words in text
    assert "last" not in text


def test_the_rules_are_said_before_anything_has_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["claims", "toy", "--rules"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for words in ("share of heads", "within 0.25 of 0.5: a fair coin", "control", "two-headed"):
        assert words in text
    assert main(["claims", "toy", "--rules", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [rule["kind"] for rule in found["rules"]] == ["prediction", "control"]
    assert not list(tmp_path.iterdir())


def test_rules_are_those_of_one_claim(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--rules"]) == 1
    assert "name it" in capsys.readouterr().err
    assert main(["claims", "tpy", "--rules"]) == 1
    assert "did you mean toy?" in capsys.readouterr().err
