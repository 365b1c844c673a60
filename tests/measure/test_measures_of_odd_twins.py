"""Every measure of a model in an odd form is that of its plain twin, or is refused in a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

import undertow as ut
from odd_twins import COMPILED, TWINS, Twins
from undertow import measure
from undertow.objective import Objective
from undertow.train import flows

ALL = TWINS | COMPILED


def path(objective: Objective) -> Any:
    generator = torch.Generator().manual_seed(0)
    found = flows.sgd_sde(
        objective, 0.02, lr=0.01, batch_size=2, replicas=2, substeps=1, generator=generator
    )
    return found.states


MEASURES: Mapping[str, Callable[[Objective], Any]] = {
    "sharpness": lambda o: ut.sharpness(o, rtol=1e-6).eigenvalues[0],
    "sharpness of the Gauss-Newton matrix": lambda o: ut.sharpness(
        o, rtol=1e-6, curvature="ggn"
    ).eigenvalues[0],
    "noise": lambda o: ut.gradient_noise(o).trace,
    "norms": lambda o: measure.per_sample_gradient_norms(o).norms,
    "covariance": lambda o: measure.noise_covariance(o).trace,
    "homogeneity": lambda o: ut.homogeneity(o).degree,
    "drift": lambda o: measure.local_drift([o.model, o.model], [o, o]).gradient_norm,
    "batch gradients": lambda o: list(
        measure.noise.batch_gradient_norms(o, torch.arange(6)[None]).values()
    )[-1],
    "path": path,
}


def objectives(twins: Twins) -> tuple[Objective, Objective]:
    odd_data = twins.data if twins.odd_data is None else twins.odd_data
    return (
        Objective(twins.odd, twins.loss, odd_data, microbatch=7),
        Objective(twins.plain, twins.loss, twins.data, microbatch=7),
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("name", ALL)
def test_measures_are_those_of_the_plain_twin(name: str) -> None:
    odd, plain = objectives(ALL[name]())
    for what, measured in MEASURES.items():
        found, expected = (torch.as_tensor(measured(each)).double() for each in (odd, plain))
        torch.testing.assert_close(
            found, expected, rtol=1e-6, atol=1e-9, equal_nan=True, msg=lambda m, w=what: f"{w}: {m}"
        )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["compiled", "checkpointed", "two inputs", "torch.func.grad"])
def test_profiles_are_those_of_the_plain_twin(name: str) -> None:
    odd, plain = (measure.profile(each).table for each in objectives(ALL[name]()))
    assert odd["quantity"].to_list() == plain["quantity"].to_list()
    pairs = zip(odd["value"], plain["value"], strict=True)
    for found, expected in pairs:
        assert found == (expected if expected is None else pytest.approx(expected, rel=1e-5))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["compiled", "compiled parts", "data parallel"])
def test_weights_are_those_of_the_module_inside(name: str) -> None:
    twins = ALL[name]()
    found, expected = ut.ranks(twins.odd), ut.ranks(twins.plain)
    assert found.table["stable_rank"].to_list() == expected.table["stable_rank"].to_list()
    odd, plain = objectives(twins)
    rank = ut.functional_rank(twins.odd, odd, 0.01)
    assert list(rank.ranks.values()) == list(
        ut.functional_rank(twins.plain, plain, 0.01).ranks.values()
    )
