"""`undertow rescale`: each change with its equation, or one JSON object."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from undertow.cli import main

RESCALE = ("rescale", "--lr", "3e-4", "--batch-size", "256", "--to", "1024", "--optimizer", "adamw")


def test_rescale_prints_each_change_or_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RESCALE, "--weight-decay", "0.1", "--warmup-steps", "500"]) == 0
    text = capsys.readouterr().out
    assert "lr' = sqrt(k) lr" in text
    assert "500 -> 125" in text
    assert max(map(len, text.splitlines())) <= 80
    assert main([*RESCALE, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["hyper"]["lr"] == pytest.approx(6e-4)
    assert main([*RESCALE, "--to-workers", "64", "--averages", "sde"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the largest k is just under 10" in captured.err


def test_rescale_verifies_on_an_objective_in_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import torch, undertow as ut\n"
        "print('standard output is not ours alone')\n"
        "def objective():\n"
        "    inputs = torch.randn(64, 3)\n"
        "    data = (inputs, inputs.sum(1, keepdim=True) + torch.randn(64, 1))\n"
        "    model = torch.nn.Linear(3, 1)\n"
        "    return ut.Objective(model, torch.nn.functional.mse_loss, data)\n"
        "other = 3\n"
        "number = lambda: 3\n"
    )
    words = ("rescale", *shlex.split("--optimizer sgd --lr 0.01 --batch-size 4 --to 8"))
    assert main([*words, "--json", "--verify", f"{script}:objective"]) == 0
    verification = json.loads(capsys.readouterr().out)["verification"]
    assert verification["noise_scale"] > 0
    assert verification["answer"] in ("holds", "does not hold", "cannot be told")
    assert main([*words, "--verify", f"{script}:objective"]) == 0
    printed = capsys.readouterr().out.splitlines()
    verdict = next(line for line in printed if "standard output is not ours" not in line)
    assert "the rule" in verdict  # says whether it holds before anything else
    assert "Batch 4 -> 8" in verdict
    for place, said in (
        (f"{script}:other", "no function other"),
        (f"{script}:number", "must return an Objective"),
        ("job.py", "does not parse"),
    ):
        assert main([*words, "--verify", place]) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import sys; sys.exit(0)", "job.py raised SystemExit: 0"),
        ("def (", "job.py raised SyntaxError"),
        ("def objective(): raise StopIteration", r"objective\(\) of .*job.py raised StopIteration"),
        ("def objective(): return objective()", "raised RecursionError"),
        (
            "class Mute(ValueError):\n"
            "    def __str__(self): raise OSError\n"
            "def objective(): raise Mute",
            "raised Mute$",
        ),
        (
            "import sys, torch, undertow as ut\n"
            "def loss(outputs, targets): sys.exit(3)\n"
            "data = torch.ones(8, 3), torch.ones(8, 1)\n"
            "def objective(): return ut.Objective(torch.nn.Linear(3, 1), loss, data)",
            "job.py:objective raised SystemExit: 3",
        ),
    ],
)
def test_a_file_that_is_run_may_raise_what_it_likes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, body: str, said: str
) -> None:
    script = tmp_path / "job.py"
    script.write_text(body + "\n")
    words = shlex.split("rescale --optimizer sgd --lr 0.01 --batch-size 4 --to 8 --verify")
    assert main([*words, f"{script}:objective"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    notice, line = captured.err.splitlines()
    assert "--verify runs" in notice
    assert re.search(said, line)


def test_the_optimizer_must_be_named_as_the_rules_differ(refused: Callable[..., str]) -> None:
    line = refused("rescale", "--lr", "0.1", "--batch-size", "8", "--to", "16")
    assert "rescale needs --optimizer NAME" in line


def test_as_many_workers_after_as_before_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    for workers in (["--workers", "8"], ["--workers", "8", "--to-workers", "8"]):
        assert main([*RESCALE, *workers, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["factor"] == 4
