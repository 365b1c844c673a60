"""What is missing is found before the first trial, in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from undertow import claims, lab
from undertow.claims._needs import check_needs
from undertow.cli import main
from undertow.data import Images, Text

pytestmark = pytest.mark.fast


@dataclass(frozen=True)
class Trial:
    images: Images
    text: Text | None
    device: str
    seed: int


TRIAL = Trial(Images(train_size=100), Text(windows=4), "cpu", 0)


def must_not_run(trials: Sequence[Any]) -> list[Any]:
    raise AssertionError("a trial ran")


def needs(store: Path, *trials: Trial) -> None:
    study = lab.Study("dice", {"runs": lab.Experiment(trials, must_not_run)})
    check_needs(study, lab.Store(store))


def test_what_is_there_is_no_error(tmp_path: Path) -> None:
    needs(tmp_path, TRIAL, replace(TRIAL, seed=1, text=None))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": Images("cifar10", data_root="/nowhere")}, "dice cannot run here: no CIFAR-10"),
        ({"images": Images("mnist")}, "dice cannot run here: name='mnist' is no dataset here"),
        ({"images": Images(train_size=1438)}, r"train_size=1438 is out of range: .* to 1,437"),
        ({"images": Images(image_size=3)}, "image_size=3 does not divide the images' 8"),
        ({"text": Text("austen", text_root="/nowhere")}, "no novels found"),
        ({"text": Text(windows=10**6)}, "train_size=1000000 is out of range"),
        ({"text": Text(context=10**6)}, "context=1000000 is out of range"),
        ({"device": "abacus"}, "there is no device 'abacus' .*; --device cpu would do"),
        ({"device": "cuda:99"}, "there is no device 'cuda:99'"),
    ],
)
def test_what_is_not_is_told_before_anything_runs(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        needs(tmp_path, TRIAL, replace(TRIAL, **changed))


@pytest.mark.parametrize(
    "source",
    [
        Images(),
        Images(train_size=1437),
        Images(train_size=10, image_size=4),
        Text(),
        Text(windows=1),
    ],
)
def test_what_is_checked_can_be_loaded(source: Images | Text) -> None:
    source.check()
    source.load()


def test_a_command_ends_with_one_line_and_no_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["reproduce", "momentum", "--preset", "smoke", "--out", str(tmp_path / "run")]
    assert main([*words, "--data", "cifar10", "--data-root", str(tmp_path)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("undertow: momentum cannot run here: no CIFAR-10")
    assert not list((tmp_path / "run").glob("*/*"))


def test_what_is_stored_needs_nothing(toy_claim: claims.Claim, tmp_path: Path) -> None:
    """A finished run is reported where its data or its device are not."""
    study = lab.Study("dice", {"runs": lab.Experiment([replace(TRIAL, device="abacus")], once)})
    store = lab.Store(tmp_path / "run")
    lab.run(study, store, engine="inline", progress=False)
    check_needs(study, store)


def once(trial: Trial) -> dict[str, float]:
    return {"value": 1.0}
