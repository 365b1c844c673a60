"""Grids of trials: every combination once, fields by name, mappings that set several."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from undertow.lab import grid, rows_of, seeds


@dataclass(frozen=True)
class Trial:
    width: int
    lr: float
    decay: float
    seed: int
    depth: int = 2


KNOBS = SimpleNamespace(width=8, decay=0.5, other=1)


def test_every_combination_once_the_last_axis_fastest() -> None:
    made = grid(Trial, KNOBS, lr=(0.1, 0.2), seed=(1, 2))
    assert made == [Trial(8, lr, 0.5, seed) for lr in (0.1, 0.2) for seed in (1, 2)]


def test_a_mapping_sets_the_fields_it_names_and_a_later_axis_goes_first() -> None:
    cells = [{"lr": 0.1, "decay": 0.0}, {"lr": 0.3, "depth": 5}]
    assert grid(Trial, KNOBS, cell=cells, seed=(1,)) == [
        Trial(8, 0.1, 0.0, 1),
        Trial(8, 0.3, 0.5, 1, 5),
    ]
    assert grid(Trial, KNOBS, cell=cells, lr=(0.2,), seed=(1,))[0].lr == 0.2


def test_no_trial_is_made_twice() -> None:
    assert len(grid(Trial, KNOBS, lr=(0.1, 0.1, 0.2), seed=(1,))) == 2


def test_a_field_that_nothing_sets_is_named() -> None:
    with pytest.raises(TypeError, match="lr"):
        grid(Trial, KNOBS, seed=(1,))


def test_seeds_of_different_bases_do_not_meet_and_fewer_are_the_first_of_more() -> None:
    assert not set(seeds(0, 1000)) & set(seeds(1, 1000))
    assert seeds(3, 5) == seeds(3, 9)[:5]


def test_facts_of_several_runs_are_a_record_each() -> None:
    facts = {"loss": np.array([0.5, 0.25]), "path": [[1, 2], [3, 4]], "step": 7}
    assert rows_of(facts) == [
        {"loss": 0.5, "path": [1, 2], "step": 7},
        {"loss": 0.25, "path": [3, 4], "step": 7},
    ]
    with pytest.raises(ValueError, match=r"as many values each, got \[1, 2\]"):
        rows_of({"a": [1], "b": [1, 2]})


def test_more_seeds_than_a_base_seed_has_are_refused() -> None:
    assert not set(seeds(0, 10_000)) & set(seeds(1, 10_000))
    with pytest.raises(ValueError, match=r"count must be at most 10,000, .* got 10,001"):
        seeds(0, 10_001)


@pytest.mark.parametrize("base", [0, 1, 2**63 // 10_000 - 1, 2**63 // 10_000, 2**62, 2**63 - 1])
def test_seeds_of_any_base_fit_a_generator_and_are_its_own(base: int) -> None:
    found = seeds(base, 100)
    assert all(0 <= seed < 2**63 for seed in found)
    assert len(set(found)) == 100
    assert found[:7] == seeds(base, 7)
    assert not set(found) & set(seeds(base - 1 if base else 1, 100))


def test_a_base_that_is_no_seed_is_refused() -> None:
    for base, kind in ((-1, ValueError), (2**63, ValueError), (0.5, TypeError), (True, TypeError)):
        with pytest.raises(kind, match="base must be"):
            seeds(base, 2)  # type: ignore[arg-type]
