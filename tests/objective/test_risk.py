"""Laws of `EmpiricalRisk`: sums over any microbatches, other precisions, a theta of its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_cases import (
    CASES,
    CLASSES,
    FEATURES,
    SAMPLES,
    class_weight,
    draw,
    labels,
    labels_with_gaps,
    network,
)
from token_models import Named, sliced, tokens
from torch import Tensor, nn
from torch.nn import functional

from left_as_found import same, snapshot
from undertow.objective import CurvatureProducts, EmpiricalRisk, Objective, Tensors, gradient

# What a sweep may be asked to add up, of a microbatch.
PARTS = {
    "sum": lambda risk, *batch: risk.sum_and_count(*batch)[0],
    "count": lambda risk, *batch: risk.sum_and_count(*batch)[1],
    "sum by logits": lambda risk, *batch: risk.logits_and_sum(*batch)[1],
    "samples": lambda risk, *batch: risk.sample_sums(*batch).sum(),
    "denominators": lambda risk, *batch: risk.denominators(batch[-1]).sum().double(),
}


def total(risk: EmpiricalRisk, part: str) -> Tensor:
    found: list[Tensor] = []
    risk.sweep(lambda *batch: PARTS[part](risk, *batch), found.append)
    return torch.stack(found).sum()


@settings(max_examples=20, deadline=None)
@given(case=st.sampled_from(sorted(CASES)), size=st.integers(1, SAMPLES))
def test_a_sweep_adds_up_over_any_microbatches(case: str, size: int) -> None:
    loss, make_targets = CASES[case]
    net, data = network(), (draw(0, SAMPLES, FEATURES), make_targets())
    whole, split = (EmpiricalRisk(net, loss, data, microbatch=m) for m in (None, size))
    for part in PARTS:
        torch.testing.assert_close(total(split, part), total(whole, part))
    torch.testing.assert_close(total(whole, "samples"), total(whole, "sum"))
    torch.testing.assert_close(total(whole, "denominators"), total(whole, "count"))
    torch.testing.assert_close(split.value(), total(whole, "sum") / total(whole, "count"))


@pytest.mark.parametrize("case", CASES)
def test_denominators_are_the_weights_of_the_labels_that_count(case: str) -> None:
    loss, make_targets = CASES[case]
    targets = make_targets()
    risk = EmpiricalRisk(network(), loss, (draw(0, SAMPLES, FEATURES), targets), microbatch=4)
    expected = torch.ones(SAMPLES, dtype=torch.float64)
    if getattr(loss, "weight", None) is not None and not targets.is_floating_point():
        expected = class_weight[targets.clamp(min=0)]
    if not targets.is_floating_point():
        expected = expected * (targets >= 0)
    torch.testing.assert_close(risk.all_denominators().double(), expected)


@pytest.mark.parametrize("shift", [0, 1])
def test_denominators_of_a_models_own_loss_are_found_first(shift: int) -> None:
    batch = tokens()
    risk = EmpiricalRisk(Named(shift).double(), None, sliced(batch, 2))
    expected = (batch["labels"][:, shift:] != -100).sum(1)
    assert torch.equal(risk.all_denominators(), expected.float())


@pytest.mark.parametrize("case", CASES)
def test_a_risk_in_float64_is_that_of_a_copy_in_float64(case: str) -> None:
    loss, make_targets = CASES[case]
    net, inputs, targets = network().float(), draw(0, SAMPLES, FEATURES).float(), make_targets()
    single = copy.deepcopy(loss).float() if isinstance(loss, nn.Module) else loss
    targets = targets.float() if targets.is_floating_point() else targets
    risk = EmpiricalRisk(net, single, (inputs, targets), microbatch=5)
    exact = EmpiricalRisk(
        copy.deepcopy(net).double(),
        copy.deepcopy(single).double() if isinstance(single, nn.Module) else single,
        (inputs.double(), targets.double() if targets.is_floating_point() else targets),
    )
    block = draw(1, 2, risk.num_params)
    before = snapshot(net)
    for found in (risk.at(torch.float64), risk.at(torch.float64).held()):
        assert found.value().dtype == torch.float64
        torch.testing.assert_close(found.value(), exact.value(), rtol=1e-14, atol=0)
        torch.testing.assert_close(gradient(found), gradient(exact), rtol=1e-12, atol=1e-15)
        for kind in ("hessian", "ggn"):
            products = (CurvatureProducts(each).product(kind, block) for each in (found, exact))
            torch.testing.assert_close(*products, rtol=1e-10, atol=1e-13)
    assert same(snapshot(net), before)
    assert risk.value().dtype == torch.float32


@pytest.mark.parametrize("shift", [0, 1])
def test_a_models_own_loss_in_float64_is_that_of_a_copy(shift: int) -> None:
    net, batch = Named(shift), tokens()
    batch["mask"] = batch["mask"].float()
    exact = EmpiricalRisk(
        copy.deepcopy(net).double(), None, [{**batch, "mask": batch["mask"].double()}]
    )
    found = EmpiricalRisk(net, None, sliced(batch, 2)).at(torch.float64)
    for risk in (found, found.held()):
        torch.testing.assert_close(risk.value(), exact.value(), rtol=1e-14, atol=0)
        torch.testing.assert_close(gradient(risk), gradient(exact), rtol=1e-12, atol=1e-15)
        assert torch.equal(risk.all_denominators(), exact.all_denominators())


def test_a_loss_with_parameters_goes_along_and_is_left_as_found() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor(1 / 3))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return self.scale * functional.cross_entropy(outputs, targets, reduction="none")

    loss = Scaled()
    risk = EmpiricalRisk(network(), loss, (draw(0, SAMPLES, FEATURES), labels()))
    assert risk.at(torch.float64).loss.scale.dtype == torch.float64  # type: ignore[union-attr]
    assert loss.scale.dtype == torch.float32


def test_another_precision_follows_the_module_and_a_held_risk_does_not() -> None:
    net, data = network().float(), (draw(0, SAMPLES, FEATURES).float(), labels())
    risk = EmpiricalRisk(net, nn.CrossEntropyLoss(), data)
    exact, held = risk.at(torch.float64), risk.at(torch.float64).held()
    before = held.value()
    with torch.no_grad():
        net[0].weight.add_(0.5)
        net[1].running_var.mul_(2)
    assert torch.equal(held.value(), before)
    torch.testing.assert_close(exact.value(), risk.value().double(), rtol=1e-5, atol=0)
    assert not torch.allclose(exact.value(), before)


def test_a_held_risk_moves_without_its_module() -> None:
    net = network()
    objective = Objective(
        net, nn.CrossEntropyLoss(class_weight), (draw(0, SAMPLES, FEATURES), labels_with_gaps())
    )
    held, before = objective.risk.held(), snapshot(net)
    products, block = CurvatureProducts(held), draw(1, 2, objective.num_params)
    theta = objective.risk.theta()
    assert torch.equal(held.theta(), theta)
    for seed in range(2):  # graphs that are kept must follow
        target = theta + 0.1 * draw(seed, len(theta))
        held.move(target)
        assert torch.equal(held.theta(), target)
        moved = copy.deepcopy(net)
        torch.nn.utils.vector_to_parameters(target, list(moved.parameters()))
        expected = Objective(moved, objective.loss, list(objective.batches()))
        torch.testing.assert_close(held.value(), expected.value())
        torch.testing.assert_close(gradient(held), expected.gradient())
        torch.testing.assert_close(products.product("hessian", block), expected.hvp(block))
    assert same(snapshot(net), before)
    with pytest.raises(TypeError, match="only a held risk can be moved"):
        objective.risk.move(theta)


@pytest.mark.parametrize("fail_at", [1, 3])
@pytest.mark.parametrize("which", ["own", "float64", "held"])
def test_the_module_is_left_as_found_when_a_sweep_raises(which: str, fail_at: int) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network().float()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.net(x) + 0 * torch.randn(1, dtype=x.dtype)

    net = Counting()
    net.net[0].eval()
    data = draw(0, SAMPLES, FEATURES).float(), labels()
    risk = EmpiricalRisk(net, nn.CrossEntropyLoss(), data, microbatch=4)
    risk = {"own": risk, "float64": risk.at(torch.float64), "held": risk.held()}[which]
    before, seen = snapshot(net), 0

    def compute(tensors: Tensors, inputs: Any, targets: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        found = risk.sum_and_count(tensors, inputs, targets)[0]
        if seen == fail_at:
            raise KeyError("midway")
        return found

    with pytest.raises(KeyError, match="midway"):
        risk.sweep(compute, lambda _: None)
    assert same(snapshot(net), before)


def test_precisions_that_are_none_are_refused() -> None:
    risk = EmpiricalRisk(network(), nn.MSELoss(), (draw(0, 3, FEATURES), draw(1, 3, CLASSES)))
    for wrong in (torch.int64, torch.complex64, "float64", None):
        with pytest.raises(TypeError, match=r"dtype must be a floating-point torch\.dtype, got"):
            risk.at(wrong)  # type: ignore[arg-type]
