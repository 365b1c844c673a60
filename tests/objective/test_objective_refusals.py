"""What an objective refuses, and in which words."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from objective_cases import CLASSES, FEATURES, SAMPLES, draw, labels, network
from torch import nn
from torch.nn import functional

from undertow.objective import Objective


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (iter([(torch.ones(1, FEATURES), torch.zeros(1))]), "spent after one pass"),
        ((pair for pair in [(torch.ones(1, FEATURES), torch.zeros(1))]), "spent after one pass"),
        ({"x": torch.ones(1, FEATURES)}, "tuple of tensors"),
        (torch.ones(1, FEATURES), "tuple of tensors"),
        (3, "tuple of tensors"),
        ((torch.ones(2, FEATURES), [0, 1]), "targets of batch 0"),
    ],
)
def test_data_of_the_wrong_kind_is_a_type_error(data: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Objective(network(), nn.CrossEntropyLoss(), data)


def test_batches_of_the_wrong_kind_are_a_type_error() -> None:
    x, y = draw(0, SAMPLES, FEATURES), labels()
    for data in ([x, y], [(x, y, y)], (x, y, y)):
        with pytest.raises(TypeError, match="inputs, targets"):
            Objective(network(), nn.CrossEntropyLoss(), data).value()


def test_data_that_cannot_be_measured_are_refused() -> None:
    x, y, loss = draw(0, SAMPLES, FEATURES), labels(), nn.CrossEntropyLoss()
    broken = x.clone()
    broken[3, 2] = math.nan
    for data, message in (
        ((broken, y), "inputs of batch 0 hold NaN"),
        ((x, torch.full((SAMPLES, CLASSES), math.inf)), "targets of batch 0 hold NaN or inf"),
        ((x[:0], y[:0]), "at least one"),
        ((x, y[:-1]), "23 inputs and 22 targets"),
    ):
        with pytest.raises(ValueError, match=message):
            Objective(network(), loss, data)
    with pytest.raises(ValueError, match="inputs of batch 1 hold NaN"):
        Objective(network(), loss, [(x, y), (broken, y)]).value()
    with pytest.raises(ValueError, match="data are empty"):
        Objective(network(), loss, []).gradient()
    with pytest.raises(ValueError, match="no target counts"):
        Objective(network(), loss, (x, torch.full_like(y, -100))).value()
    with pytest.raises(ValueError, match="no target counts"):
        Objective(network(), loss, (x, torch.full_like(y, -100))).gradient()


def test_targets_that_do_not_fit_the_outputs_are_refused() -> None:
    x, y = draw(0, SAMPLES, FEATURES), labels()
    for wrong in (CLASSES, -1):
        bad = y.clone()
        bad[5] = wrong
        for loss in (nn.CrossEntropyLoss(), functional.cross_entropy):
            with pytest.raises(ValueError, match=f"label {wrong}.*4 outputs.*0 to 3"):
                Objective(network(), loss, (x, bad)).value()
    with pytest.raises(ValueError, match=r"\(23, 1\) and targets \(23,\)"):
        Objective(network(1), nn.MSELoss(), (x, draw(1, SAMPLES))).value()


def test_losses_of_another_shape_are_refused() -> None:
    x, y = draw(0, SAMPLES, FEATURES), draw(1, SAMPLES, CLASSES)
    with pytest.raises(ValueError, match=r"one value per sample, \[23\], got \(23, 4\)"):
        Objective(network(), nn.MSELoss(reduction="none"), (x, y)).value()
    with pytest.raises(ValueError, match="got float"):
        Objective(network(), lambda o, t: float(o.sum()), (x, y)).value()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction='sum'"):
        Objective(network(), nn.MSELoss(reduction="sum"), (x, y))
    with pytest.raises(TypeError, match="loss must be"):
        Objective(network(), "mse", (x, y))  # type: ignore[arg-type]


def test_loss_that_does_not_reach_the_parameters_is_refused() -> None:
    x, y = draw(0, SAMPLES, FEATURES), labels()
    detached = Objective(
        network(), lambda o, t: functional.cross_entropy(o.detach(), t), (x, y), microbatch=5
    )
    assert detached.value() > 0
    with pytest.raises(ValueError, match=r"depends on none of the parameters 0\.weight"):
        detached.gradient()


def test_diverged_parameters_are_named() -> None:
    net = network()
    with torch.no_grad():
        net[4].bias[1] = math.nan
    objective = Objective(net, nn.CrossEntropyLoss(), (draw(0, SAMPLES, FEATURES), labels()))
    with pytest.raises(ValueError, match=r"parameter 4\.bias is not finite"):
        objective.value()


def test_bad_arguments_are_named() -> None:
    net, loss, data = network(), nn.CrossEntropyLoss(), (draw(0, SAMPLES, FEATURES), labels())
    with pytest.raises(ValueError, match=r"params names '9\.weight'; the model has 0\.weight"):
        Objective(net, loss, data, params=["9.weight"])
    with pytest.raises(ValueError, match="selects no parameter"):
        Objective(net, loss, data, params=lambda name, p: False)
    with pytest.raises(TypeError, match="list of names"):
        Objective(net, loss, data, params="0.weight")
    with pytest.raises(ValueError, match="microbatch must be at least 1, got 0"):
        Objective(net, loss, data, microbatch=0)
    with pytest.raises(TypeError, match=r"microbatch must be a whole number, got 2\.0"):
        Objective(net, loss, data, microbatch=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_outputs must be at least 1, got 0"):
        Objective(net, loss, data).ggn_trace(max_outputs=0)
    with pytest.raises(ValueError, match="has no values yet"):
        Objective(nn.LazyLinear(3), loss, data)
    with pytest.raises(TypeError, match=r"nn\.Module"):
        Objective(lambda x: x, loss, data)  # type: ignore[arg-type]


def test_a_missing_second_derivative_is_said() -> None:
    net = nn.Sequential(nn.EmbeddingBag(5, CLASSES), nn.Tanh())
    data = torch.arange(SAMPLES)[:, None] % 5, labels()
    objective = Objective(net, nn.CrossEntropyLoss(), data)
    with pytest.raises(ValueError, match=r"has no second derivative: .*embedding_bag"):
        objective.hvp(torch.ones(1, objective.num_params))
