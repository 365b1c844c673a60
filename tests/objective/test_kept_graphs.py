"""Kept graphs follow parameters, buffers, data and loss, within a budget of memory."""

from __future__ import annotations

import copy

import pytest
import torch
from dense_curvature import dense, draw, fill, product
from product_cases import CLASSES, FEATURES, MODELS, SAMPLES, labels
from torch import Tensor, nn

from undertow.objective import Objective, _curvature_products


def test_kept_graphs_follow_parameters_buffers_and_data() -> None:
    net, loss = fill(MODELS["batch norm, dropout"]()), nn.MSELoss()
    inputs, targets = draw(1, SAMPLES, FEATURES), draw(2, SAMPLES, CLASSES)
    objective = Objective(net, loss, (inputs, targets), microbatch=4)
    block = draw(3, 2, objective.num_params)

    def check() -> None:
        for kind in ("hessian", "ggn"):
            expected = block @ dense(net, loss, inputs, targets, kind)
            torch.testing.assert_close(product(objective, kind, block), expected)

    check()
    with torch.no_grad():
        net[0].weight += 0.3
    check()
    net[4].weight.data.mul_(1.5)  # moves no version counter
    check()
    net[0].weight.data = draw(7, 4, FEATURES)
    check()
    net[1].running_var += 1.0
    check()
    inputs += 0.5
    check()
    net[0].weight = nn.Parameter(draw(8, 4, FEATURES))
    check()


def test_fixed_parameters_are_compared_once_and_no_longer_than_that() -> None:
    net, loss = fill(MODELS["batch norm, dropout"]()), nn.MSELoss()
    inputs, targets = draw(1, SAMPLES, FEATURES), draw(2, SAMPLES, CLASSES)
    objective = Objective(net, loss, (inputs, targets), microbatch=4)
    block = draw(3, 2, objective.num_params)
    objective.hvp(block)
    for _ in range(2):
        with torch.no_grad():
            net[0].weight += 0.3
        with objective.fixed(), objective.fixed():  # may be nested
            for kind in ("hessian", "ggn", "hessian"):
                expected = block @ dense(net, loss, inputs, targets, kind)
                torch.testing.assert_close(product(objective, kind, block), expected)
            objective.release()
            torch.testing.assert_close(
                objective.ggnvp(block[:1]), product(objective, "ggn", block)[:1]
            )
    with pytest.raises(KeyError), objective.fixed():
        raise KeyError
    net[0].weight.data.mul_(2.0)
    expected = block @ dense(net, loss, inputs, targets, "hessian")
    torch.testing.assert_close(objective.hvp(block), expected)


def test_holding_still_leaves_everything_as_found(global_rng_untouched: None) -> None:
    with torch.random.fork_rng():
        net = fill(MODELS["batch norm, dropout"]())
    objective = Objective(net, nn.CrossEntropyLoss(), (draw(1, SAMPLES, FEATURES), labels()))
    block = draw(2, 2, objective.num_params)
    expected = product(objective, "hessian", block)
    fused = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    with objective.fixed(), objective.fixed():
        for _ in range(2):
            torch.testing.assert_close(objective.hvp(block), expected)
    with pytest.raises(KeyError), objective.fixed():
        raise KeyError
    assert all(module.training for module in net.modules())
    assert fused == (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
    )
    torch.testing.assert_close(objective.hvp(block), expected)


def test_graphs_are_kept_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return super().forward(x)

    monkeypatch.setattr(_curvature_products, "fastest_mode", lambda *args, **kwargs: ("loop", None))
    net = Counting(FEATURES, CLASSES).double()
    objective = Objective(net, nn.MSELoss(), (draw(0, 8, FEATURES), draw(1, 8, CLASSES)))
    block = draw(2, 2, objective.num_params)
    expected = objective.hvp(block)
    calls = 0
    assert torch.equal(objective.hvp(block), expected)
    assert calls == 0
    duplicate = copy.deepcopy(objective)  # graphs stay behind
    assert torch.equal(duplicate.hvp(block), expected)
    objective.release()
    calls = 0
    assert torch.equal(objective.hvp(block), expected)
    assert calls == 1
    monkeypatch.setattr(_curvature_products, "GRAPH_BYTES", 0)
    objective = Objective(net, nn.MSELoss(), (draw(0, 8, FEATURES), draw(1, 8, CLASSES)))
    calls = 0
    for _ in range(3):
        assert torch.equal(objective.hvp(block), expected)
    assert calls >= 3
