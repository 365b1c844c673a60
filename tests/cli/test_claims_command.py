"""`undertow claims`: the papers, what each costs, the last verdict."""

from __future__ import annotations

import json

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
    for words in ("Fair coins", "Ars Conjectandi", "paper: 10 s", "last: supported (small)"):
        assert words in text
    assert main(["claims", "--json"]) == 0
    toy, coin = json.loads(capsys.readouterr().out)["claims"]
    assert toy["name"] == "toy"
    assert toy["last"]["verdict"] == "supported"
    assert coin["last"] is None
