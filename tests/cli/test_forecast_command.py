"""`undertow forecast`: facts and ranks, or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from undertow.cli import main

FORECAST = ("forecast", "--lr", "0.1", "--weight-decay", "5e-4", "--steps", "2000")


def test_forecast_prints_facts_and_ranks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    shapes = ("--shapes", "64x64", "head=10x64")
    assert main([*FORECAST, "--batch-size", "64", *shapes, "--html", str(page)]) == 0
    text = capsys.readouterr().out
    assert "decay exponent E" in text
    assert "head" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "Surviving initial directions" in page.read_text()
    assert main([*FORECAST, "--batch-size", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decay_exponent"] == pytest.approx(0.1)
    assert main([*FORECAST, "--batch-size", "64", "--schedule", "cosin"]) == 1
    assert "does not parse" in capsys.readouterr().err


def test_forecast_takes_a_checkpoint_or_shapes(refused: Callable[..., str]) -> None:
    both = ("--checkpoint", "x", "--shapes", "64x64")
    line = refused(*FORECAST, "--batch-size", "64", *both)
    assert line == "undertow: forecast: give --checkpoint or --shapes, not both"


def test_sizes_may_be_in_tokens_and_counts_in_units(capsys: pytest.CaptureFixture[str]) -> None:
    def found(*words: str) -> dict[str, Any]:
        assert main(["forecast", "--lr", "3e-4", "--weight-decay", "0.1", *words, "--json"]) == 0
        content: dict[str, Any] = json.loads(capsys.readouterr().out)
        return content

    plain = found("--steps", "20000", "--batch-size", "256", "--samples", "1048576")
    tokens = ("--batch-size", "0.5Mi", "--samples", "2Gi", "--sequence-length", "2048")
    assert found("--steps", "2e4", *tokens) == plain
    mixed = ("--batch-size", "256seq", "--samples", "2Gi", "--sequence-length", "2Ki")
    assert found("--steps", "20k", *mixed) == plain
    assert plain["memory_epochs"] == pytest.approx(1 / (3e-4 * 0.1) * 256 / 1048576)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--batch-size", "64", "--samples", "1Btok"), "--samples counts tokens"),
        (("--batch-size", "64", "--samples", "0.5"), "--samples must be a whole number"),
        (("--batch-size", "64", "--sequence-length", "2048"), "write 64seq"),
    ],
)
def test_what_is_no_count_names_its_flag(
    words: tuple[str, ...], said: str, refused: Callable[..., str]
) -> None:
    assert said in refused(*FORECAST, *words)


@pytest.mark.parametrize("schedule", ["wsd:0.2,0.1", "onecycle", "cosine:0.1", "linear"])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "lion", "muon", "sophia", "nobody's own"])
def test_any_optimizer_and_schedule_fits_a_terminal(
    schedule: str, optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--batch-size", "64", "--samples", "50k", "--optimizer", optimizer)
    assert main([*FORECAST, *words, "--schedule", schedule]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "which is" in text
