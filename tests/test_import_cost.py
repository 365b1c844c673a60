"""What a first import may load: nothing heavy before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # a process a test
HEAVY = {"torch", "polars", "altair", "scipy", "sklearn", "pandas", "vl_convert", "tyro", "rich"}


def loaded_by(program: str) -> set[str]:
    """The top-level packages in `sys.modules` after a program ran in a new process."""
    tail = "import sys, json; print(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    finished = subprocess.run(
        [sys.executable, "-c", f"{program}\n{tail}"], capture_output=True, text=True, check=True
    )
    return set(json.loads(finished.stdout.splitlines()[-1]))


def test_import_undertow_loads_nothing_heavy() -> None:
    assert loaded_by("import undertow as ut; dir(ut); ut.__version__").isdisjoint(HEAVY | {"numpy"})


def test_predict_needs_numpy_only() -> None:
    assert loaded_by("import undertow as ut; ut.predict").isdisjoint(HEAVY)


def test_lab_and_claims_load_no_torch() -> None:
    heavy = {"torch", "altair", "scipy", "sklearn", "pandas", "vl_convert"}
    assert loaded_by("import undertow.lab").isdisjoint(heavy)
    assert loaded_by("import undertow.claims").isdisjoint(heavy)


def test_measure_and_train_load_no_scipy() -> None:
    assert loaded_by("import undertow as ut; ut.ranks; ut.train").isdisjoint({"scipy", "altair"})


@pytest.mark.parametrize("command", ["--help", "--version"])
def test_the_first_help_loads_next_to_nothing(command: str) -> None:
    program = f"from undertow.cli import main; assert main([{command!r}]) == 0"
    assert loaded_by(program).isdisjoint(HEAVY | {"numpy"})


@pytest.mark.parametrize("command", [["claims"], ["claims", "--json"]])
def test_the_quick_commands_load_no_torch(command: list[str]) -> None:
    program = f"from undertow.cli import main; assert main({command!r}) == 0"
    assert "torch" not in loaded_by(program)


_FORECAST = "forecast --lr 0.1 --weight-decay 5e-4 --steps 1000 --batch-size 64 --shapes 64x64"


@pytest.mark.parametrize(
    "words",
    [
        "rescale --optimizer sgd --lr 0.1 --batch-size 8 --to 16",
        "rescale --lr 3e-4 --batch-size 8 --to 16 --optimizer adamw --json",
        _FORECAST,
        f"{_FORECAST} --json",
    ],
)
def test_closed_forms_answer_without_torch(words: str) -> None:
    program = f"from undertow.cli import main; assert main({words.split()!r}) == 0"
    assert loaded_by(program).isdisjoint(HEAVY - {"tyro"})


@pytest.mark.parametrize("command", ["inspect", "rescale", "forecast", "resume", "report"])
def test_the_help_of_a_command_needs_tyro_only(command: str) -> None:
    program = f"from undertow.cli import main; assert main([{command!r}, '--help']) == 0"
    assert loaded_by(program).isdisjoint((HEAVY | {"numpy"}) - {"tyro"})


def test_only_the_module_of_the_command_called_is_imported() -> None:
    program = """
import sys
from undertow.cli import main
assert main(["inspect", "--help"]) == 0
assert not any(f"undertow.cli._{name}" in sys.modules for name in ("rescale", "reproduce"))
"""
    loaded_by(program)


def test_the_help_of_a_claim_loads_nothing_that_the_claim_does_not() -> None:
    claim = "from undertow import claims; claims.get('momentum')"
    program = "from undertow.cli import main; main(['reproduce', 'momentum', '--help'])"
    added = loaded_by(program) - loaded_by(claim)
    assert added.isdisjoint((HEAVY | {"numpy"}) - {"tyro"})


def test_a_claim_and_its_knobs_load_nothing_heavy() -> None:
    program = "from undertow import claims; [claims.get(name).presets for name in claims.ALL]"
    assert loaded_by(program).isdisjoint(HEAVY | {"numpy", "polars"})


def test_trials_and_predictions_load_no_torch_and_no_altair() -> None:
    program = """
from undertow import claims
for claim in map(claims.get, claims.ALL):
    for preset in claim.presets.values():
        claim.experiments(preset, 0)
        claim.predictions(preset)
"""
    assert loaded_by(program).isdisjoint({"torch", "altair"})
