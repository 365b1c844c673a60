"""What every test shares: one thread for tiny nets, and a guard on the global random states."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from undertow.claims import Claim

torch.set_num_threads(1)

# No test asserts on time, hypothesis's deadline of 0.2 s an example included.
settings.register_profile("undertow", deadline=None)
settings.load_profile("undertow")

_SLOW_SUITE = Path(__file__).parent / "slow"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The slow suite is for those who name it, as `make slow` does."""
    named = any(_SLOW_SUITE.name in Path(argument).parts for argument in config.args)
    return True if collection_path == _SLOW_SUITE and not named else None


@pytest.fixture(autouse=True)
def _same_draws_in_any_order() -> None:
    """Modules built without a generator start from the same weights, whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture
def global_rng_untouched() -> Iterator[None]:
    """Fail the test if Python's, numpy's or torch's global random state has moved."""
    python_before = random.getstate()
    numpy_before = np.random.get_state(legacy=False)  # noqa: NPY002
    torch_before = torch.get_rng_state()
    yield
    numpy_after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert random.getstate() == python_before, "Python's global random state moved"
    assert numpy_after["state"]["pos"] == numpy_before["state"]["pos"]
    assert np.array_equal(numpy_after["state"]["key"], numpy_before["state"]["key"])
    assert torch.equal(torch.get_rng_state(), torch_before), "torch's global random state moved"


@pytest.fixture
def toy_claim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Claim:
    """A claim of coins, with a second like it, in a temporary current folder.

    It draws no figures, which take a second each; `toy.CLAIM` does. Seeds are redrawn ten times.
    """
    import toy
    from undertow.claims import _registry, _reproduce

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_reproduce, "DRAWS", 10)
    monkeypatch.setattr(_registry, "ALL", ("toy", "coin"))
    for name in ("toy", "coin"):
        module = ModuleType(name)
        vars(module).update(vars(toy))
        home = f"undertow.claims.{name}"
        module.FIGURES = ()  # type: ignore[attr-defined]
        module.CLAIM = replace(toy.CLAIM, name=name, home=home)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, home, module)
    return _registry.get("toy")
