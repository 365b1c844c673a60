"""The command line as a whole: its help, its commands, and how it ends."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from undertow.cli import main
from undertow.cli._main import COMMANDS


def test_the_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 25
    assert max(map(len, text.splitlines())) <= 80
    for command in COMMANDS:
        module = importlib.import_module(f"undertow.cli._{command}")
        assert f"undertow {command} {module.SYNOPSIS}" in text
        assert module.SUMMARY in text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_a_screen(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert any("--json" in line for line in lines)


def test_a_command_that_there_is_not(refused: Callable[..., str]) -> None:
    assert refused("reprduce") == "undertow: no command 'reprduce'; did you mean reproduce?"


@pytest.mark.slow
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
