"""Claims on several base seeds: what is written, what is gone on with, what pages show of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from website import claims as pages
from website import seeds

import toy
from undertow import claims
from undertow.claims import Claim

HOW: dict[str, Any] = {"engine": "inline", "progress": False}


@pytest.fixture(autouse=True)
def _claim(toy_claim: Claim) -> None:
    """Claims of coins, in a temporary current folder."""


def ran(names: tuple[str, ...] = ("toy", "coin"), **more: Any) -> list[str]:
    return list(seeds.run_all(names, (3, 4), docs=Path("docs"), **HOW, **more))


def test_every_claim_is_run_on_every_seed_and_kept() -> None:
    lines = ran()
    assert [line.split(":")[0] for line in lines] == [
        *("toy, seed 3", "toy, seed 4", "coin, seed 3", "coin, seed 4")
    ]
    kept = json.loads(Path("docs/claims/coin/seeds.json").read_text())
    assert kept["claim"] == "coin"
    assert [run["seed"] for run in kept["runs"]] == [3, 4]
    run = kept["runs"][0]
    assert run["verdict"] == "supported"
    assert run["replication"]["probability"] == 1.0
    assert [check["name"] for check in run["checks"]] == ["share of heads", "two-headed coins"]
    assert Path("undertow-runs/seeds/coin-small-seed4/report.html").is_file()


def test_what_is_done_is_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ran()
    Path("docs/claims/coin/seeds.json").unlink()  # killed before it was written

    def must_not_run(coins: object) -> object:
        raise AssertionError("a stored trial ran again")

    monkeypatch.setattr(toy, "throw", must_not_run)
    assert [line.split(": ")[1][:4] for line in ran()] == ["done", "done", "supp", "supp"]


def test_another_rule_is_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ran(("toy",))
    path = Path("docs/claims/toy/seeds.json")
    path.write_text(path.read_text().replace("within 0.25", "within 0.30", 1))
    assert [line.split(": ")[1][:4] for line in ran(("toy",))] == ["supp", "done"]
    assert "within 0.30" not in path.read_text()


def test_other_trials_are_run_again() -> None:
    ran(("toy",))
    more = {"overrides": {"seeds": 12}}
    assert [line.split(": ")[1][:4] for line in ran(("toy",), **more)] == ["Stor", "Stor"]
    ended = [line.split(": ")[1][:4] for line in ran(("toy",), runs=Path("others"), **more)]
    assert ended == ["supp", "supp"]


def test_a_run_that_fails_is_kept_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(claims, "reproduce", lambda *given, **named: 1 / 0)
        assert "ZeroDivisionError" in ran(("toy",))[0]
    said = pages.seeds_of(Path("docs/claims/toy"))
    assert "could not be run" in said
    assert "None of the runs" in said
    assert ran(("toy",))[0].startswith("toy, seed 3: supported")


def test_the_pages_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pages.seeds_of(Path("docs/claims/toy")) == ""
    assert "No claim has been run" in pages.seeds_page(Path("docs"))
    ran(("toy",))
    said = pages.seeds_of(Path("docs/claims/toy"))
    assert "2 of 2 gave **supported**" in said
    assert "| 3 | supported | 100% | 2 of 2 |  |" in said
    table = pages.table_of_seeds(Path("docs"))
    assert "| [`toy`](toy.md) | supported, 100%, 2 of 2 | supported, 100%, 2 of 2 |" in table
    assert "| [`coin`](coin.md) | – | – |" in table


def test_results_show_what_replicates_where_it_is_known(tmp_path: Path) -> None:
    result = claims.reproduce("toy", **HOW)
    file = tmp_path / "verdict.json"
    file.write_text(json.dumps(result.as_json()))
    said = pages.results_table(tmp_path)
    assert "Redrawn seeds give the same verdict in 100% of the draws [69.2%, 100%]" in said
    assert "| check | value [95%] | result | replicates |" in said
    old = {name: value for name, value in result.as_json().items() if name != "replication"}
    file.write_text(json.dumps(old))
    assert "replicates" not in pages.results_table(tmp_path)
    old["checks"][0]["value"] = None  # JSON has no NaN, and no infinity
    file.write_text(json.dumps(old))
    assert "| not finite [" in pages.results_table(tmp_path)


def test_the_command_refuses_what_is_no_claim_or_seed(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--claims", "tpy"], "did you mean toy?"),
        (["--seeds", "-1"], "seed must be from 0"),
    ):
        with pytest.raises(SystemExit) as ended:
            seeds.main(words)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
