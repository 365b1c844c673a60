"""The laws that hold for every claim, over the worlds that each claim's own test describes."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from contract import Contract

from undertow import claims, lab


def told(*parts: object) -> str:
    """A test's name: the same in every process, so without the places of objects in memory."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", ": ".join(map(str, parts)))[:120]


MODULES = {name: "test_" + name.replace("-", "_") for name in claims.ALL}
CONTRACTS: dict[str, Contract] = {
    name: importlib.import_module(module).CONTRACT for name, module in MODULES.items()
}

each_claim = pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS.keys())


def cases(kind: str) -> list[Any]:
    """Every case of one kind, over all claims."""
    return [
        pytest.param(contract, given, expected, id=told(name, expected, given))
        for name, contract in CONTRACTS.items()
        for given, expected in getattr(contract, kind)
    ]


def judged(contract: Contract, knobs: Any = None, **broken: Any) -> lab.Verdict:
    knobs = contract.knobs if knobs is None else knobs
    return claims.get(contract.claim).judge(contract.world(**broken), knobs)


def named(verdict: lab.Verdict, start: str) -> lab.Check:
    found = [check for check in verdict.checks if check.name.startswith(start)]
    assert found, f"no check begins with {start!r}: {[check.name for check in verdict.checks]}"
    return found[0]


# ---- before anything runs


@each_claim
@pytest.mark.parametrize("preset", ["smoke", "small", "paper"])
def test_trials_are_distinct_and_all_is_said_before_the_run(
    contract: Contract, preset: str
) -> None:
    claim = claims.get(contract.claim)
    knobs = claim.presets[preset]
    study = lab.Study(claim.name, claim.experiments(knobs, 3))  # refuses a trial twice
    assert len(study) > 0
    predictions = claim.predictions(knobs)
    assert all(prediction.words for prediction in predictions.values())
    assert any(prediction.control for prediction in predictions.values())
    assert not all(prediction.control for prediction in predictions.values())


@each_claim
def test_another_base_seed_shares_no_trial_that_has_a_seed(contract: Contract) -> None:
    claim = claims.get(contract.claim)
    first, other = (
        {
            (name, identity)
            for name, experiment in claim.experiments(contract.tiny, seed).items()
            for trial, identity in zip(
                experiment.trials, lab.Study("", {name: experiment}).identities[name], strict=True
            )
            if hasattr(trial, "seed")
        }
        for seed in (1, 2)
    )
    assert first
    assert not first & other


@pytest.mark.parametrize(("contract", "changed", "message"), cases("bad_knobs"))
def test_a_knob_out_of_range_is_named(
    contract: Contract, changed: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(contract.knobs, **changed)


# ---- the verdict


@each_claim
def test_a_world_in_which_everything_holds_is_supported(contract: Contract) -> None:
    verdict = judged(contract)
    assert verdict.outcome == "supported", verdict.checks
    assert set(claims.get(contract.claim).predictions(contract.knobs)) == {
        check.name for check in verdict.checks
    }


@pytest.mark.parametrize(("contract", "broken", "check"), cases("refuted"))
def test_evidence_against_a_prediction_refutes_it(
    contract: Contract, broken: Mapping[str, Any], check: str
) -> None:
    verdict = judged(contract, **broken)
    assert verdict.outcome == "refuted", verdict.checks
    assert named(verdict, check).refuted


@pytest.mark.parametrize(("contract", "broken", "check"), cases("left_open"))
def test_a_control_that_does_not_fail_leaves_it_open(
    contract: Contract, broken: Mapping[str, Any], check: str
) -> None:
    verdict = judged(contract, **broken)
    assert verdict.outcome == "inconclusive", verdict.checks
    control = named(verdict, check)
    assert control.control
    assert not control.passed


@each_claim
def test_every_control_has_a_world_that_it_catches(contract: Contract) -> None:
    predictions = claims.get(contract.claim).predictions(contract.knobs)
    controls = [name for name, prediction in predictions.items() if prediction.control]
    caught = [start for _, start in contract.left_open]
    missed = [name for name in controls if not any(name.startswith(start) for start in caught)]
    assert not missed


@each_claim
def test_few_seeds_promise_no_verdict(contract: Contract) -> None:
    few = replace(contract.knobs, seeds=3)
    assert judged(contract, few, seeds=3).outcome == "inconclusive"


@each_claim
def test_a_verdict_counts_the_seeds_that_survived(contract: Contract) -> None:
    """Not those of the knobs: of seven that are left of more, no effect is evidence."""
    verdict = judged(contract, seeds=7)
    assert contract.knobs.seeds > 7
    assert verdict.outcome == "inconclusive"
    assert not any(check.refuted for check in verdict.checks)


@each_claim
def test_a_list_that_knobs_cut_promises_no_verdict(
    contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = claims.get(contract.claim)
    part = claim.part("predictions")
    whole = part.predictions

    def cut(knobs: Any) -> dict[str, lab.Prediction]:
        found = dict(whole(knobs))
        if knobs is contract.knobs:
            found.pop(next(name for name, own in found.items() if not own.control))
        return found

    monkeypatch.setattr(part, "predictions", cut)
    if len(cut(contract.knobs)) < len(whole(claim.presets["small"])):
        verdict = judged(contract)
        assert verdict.outcome == "inconclusive"
        assert "checks promise no verdict" in verdict.summary


# ---- a whole run


@dataclass(frozen=True)
class Run:
    """A tiny run, and the study that gave it."""

    contract: Contract
    study: lab.Study
    results: lab.Results


@pytest.fixture(scope="module", params=CONTRACTS.values(), ids=CONTRACTS.keys())
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    contract = request.param
    claim = claims.get(contract.claim)
    study = lab.Study(claim.name, claim.experiments(contract.tiny, 7))
    store = lab.Store(tmp_path_factory.mktemp(claim.name))
    return Run(contract, study, lab.run(study, store, engine="inline", progress=False))


def test_no_trial_of_a_whole_run_fails(tiny: Run) -> None:
    assert not tiny.results.failures, tiny.results.failures[0]
    assert all(not frame.is_empty() for frame in tiny.results.records.values())


def test_a_whole_run_is_judged_and_drawn(tiny: Run, tmp_path: Any) -> None:
    claim, knobs = claims.get(tiny.contract.claim), tiny.contract.tiny
    verdict = claim.judge(tiny.results.records, knobs)
    assert verdict.outcome == "inconclusive"
    assert len(verdict.checks) == len(claim.predictions(knobs))
    assert not claim.table(tiny.results.records, knobs).is_empty()
    for drawn in claim.figures(tiny.results.records, knobs):
        assert drawn.title
        assert len(drawn.caption) > 20
        assert "{" not in drawn.caption
        lab.save_chart(drawn.chart, tmp_path / f"{drawn.name}.svg")


def test_a_run_does_not_depend_on_its_group(tiny: Run) -> None:
    for name, experiment in tiny.study.experiments.items():
        if not experiment.together:
            continue
        trial, identity = experiment.trials[-1], tiny.study.identities[name][-1]
        (rows,) = experiment.run((trial,))
        stored = tiny.results.records[name].filter(trial=identity)
        assert len(rows) == len(stored)
        for row, kept in zip(rows, stored.iter_rows(named=True), strict=True):
            for key, value in row.items():
                assert alike(value, kept[key]), (
                    f"{name}: {key} is {value}, in its group {kept[key]}"
                )


def alike(first: Any, second: Any) -> bool:
    """Equal up to the rounding of products whose order depends on the group."""
    if first is None or isinstance(first, bool | str):
        return bool(first == second)
    if hasattr(first, "tolist"):
        first = first.tolist()
    if isinstance(first, list):
        return len(first) == len(second) and all(map(alike, first, second))
    if math.isnan(first):
        return math.isnan(second)
    return bool(np.isclose(first, second, rtol=1e-3, atol=1e-6))


def test_worlds_have_the_columns_of_records(tiny: Run) -> None:
    """What a world makes up is what an experiment gives."""
    world = tiny.contract.world()
    for name, frame in world.items():
        known = set(tiny.results.records[name].columns)
        made_up = set(frame.columns) - known
        assert not made_up, f"{name} has no columns {made_up}"
    assert isinstance(frame, pl.DataFrame)
