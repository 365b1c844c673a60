"""`undertow rescale`: each change with its equation, or one JSON object."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from undertow import predict
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


def moved(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["rescale", "--lr", "3e-4", *words, "--json"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def test_a_rule_and_what_becomes_of_betas_can_be_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--optimizer", "adamw", "--batch-size", "256", "--to", "1024")
    found = moved(capsys, *words, "--rule", "fixed-rate", "--averages", "keep")
    assert found["rule"] == "fixed rate"
    assert found["hyper"]["lr"] == 3e-4
    assert found["hyper"]["betas"] == [0.9, 0.999]
    assert found["hyper"]["weight_decay"] == pytest.approx(0.04)
    rates = {one["rule"]: one["lr"] for one in found["rules"]}
    assert rates["linear"] == pytest.approx(1.2e-3)
    assert rates["surge"] is None
    assert found["averages"]["betas"]["sde"] == pytest.approx([0.6, 0.996])
    assert "factor 4" in found["disagreement"]
    assert main(["rescale", "--lr", "3e-4", *words, "--rule", "surge"]) == 1
    assert "needs noise_scale" in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", [*sorted(set(predict.FAMILIES) - {"unknown"}), "sophia"])
@pytest.mark.parametrize("more", [(), ("--every",), ("--noise-scale", "90")])
def test_the_rules_fit_a_terminal(
    optimizer: str, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--lr", "3e-4", "--weight-decay", "0.1", "--batch-size", "256", "--to", "2048")
    assert main(["rescale", "--optimizer", optimizer, *words, *more]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "The rules side by side" in text
    assert ("arXiv" in text) == (more == ("--every",))


def test_batches_may_be_in_tokens_and_counts_in_units(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = moved(
        capsys, "--optimizer", "adamw", "--batch-size", "256", "--to", "1024", "--steps", "78000"
    )
    for batches in (
        ("0.5Mi", "2Mi", "--sequence-length", "2048"),
        ("524288", "1024seq", "--sequence-length", "2Ki"),
        ("0.256k", "1.024e3"),
    ):
        old, new, *length = batches
        words = ("--batch-size", old, "--to", new, "--steps", "78k", *length)
        found = moved(capsys, "--optimizer", "adamw", *words)
        assert found["hyper"] == plain["hyper"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--batch-size", "0.5Mtok", "--to", "8"), "--batch-size counts tokens"),
        (("--batch-size", "8", "--to", "2.5"), "--to must be a whole number"),
        (("--batch-size", "8", "--to", "many"), "--to must be a number of samples"),
        (("--batch-size", "8", "--to", "0"), "--to must be at least 1"),
        (
            ("--batch-size", "256", "--to", "2M", "--sequence-length", "2048"),
            "256 is 0.125 sequences of 2048 tokens, and must be whole ones; write 256seq",
        ),
        (("--batch-size", "8", "--to", "9", "--steps", "5seq"), "--steps takes a whole number"),
        (("--batch-size", "8", "--to", "9", "--steps", "1.5"), "--steps takes a whole number"),
    ],
)
def test_what_is_no_count_names_its_flag(
    words: tuple[str, ...], said: str, refused: Callable[..., str]
) -> None:
    assert said in refused("rescale", "--optimizer", "sgd", "--lr", "0.1", *words)


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
