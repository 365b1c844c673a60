"""`undertow forecast`: facts and ranks, or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

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
