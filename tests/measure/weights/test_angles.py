"""The turn between snapshots: closed forms, scale invariance, and AdamW's own on a network."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from undertow import predict
from undertow.measure import angular_update
from undertow.models import scale_invariant_mlp


def turned(angle: float, size: int = 4) -> dict[str, Tensor]:
    weights = torch.zeros(2, size, dtype=torch.float64)
    weights[0, 0], weights[1, 1] = math.cos(angle), math.sin(angle)
    return {"weight": weights}


@pytest.mark.parametrize("angle", [1e-9, 1e-3, 1.0, 3.0])
def test_it_is_the_angle_to_all_digits(angle: float) -> None:
    found = angular_update(turned(0.0), turned(angle))
    assert found.angle == pytest.approx(angle)
    assert found.per_layer == {"weight": pytest.approx(angle)}
    assert found.stderr is None


def test_scale_does_not_count_and_pairs_add_in_squares() -> None:
    snapshots = [{"weight": 3.0**k * turned(angle)["weight"]} for k, angle in enumerate((0, 3, 7))]
    found = angular_update(*({"weight": own["weight"]} for own in snapshots[:2]))
    assert found.angle == pytest.approx(3.0)
    steps = [turned(angle) for angle in (0.0, 0.03, 0.07)]
    both = angular_update(*steps)
    assert both.angle == pytest.approx(math.sqrt((0.03**2 + 0.04**2) / 2), rel=1e-3)
    assert both.pairs == 2
    assert both.stderr == pytest.approx(abs(0.04**2 - 0.03**2) / 2 / (2 * both.angle), rel=1e-3)
    same = [{name: own.clone() for name, own in steps[0].items()} for _ in range(3)]
    assert angular_update(*same).stderr == 0


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_at_rest_a_network_turns_as_predicted(optimizer: str) -> None:
    """Labels without a signal, and no averages, as gradients remember the steps before them."""
    draw = torch.Generator().manual_seed(0)
    net = scale_invariant_mlp((16, 32, 8), norm="batch", activation="tanh", generator=draw)
    weights = [own for own in net.parameters() if own.requires_grad]
    settings = {"sgd": (0.5, 0.02), "adamw": (0.02, 0.5)}[optimizer]
    lr, decay = settings
    step = (
        torch.optim.SGD(weights, lr, weight_decay=decay)
        if optimizer == "sgd"
        else torch.optim.AdamW(weights, lr, weight_decay=decay, betas=(0.0, 0.999))
    )
    snapshots = []
    for count in range(900):
        inputs, labels = (
            torch.randn(32, 16, generator=draw),
            torch.randint(8, (32,), generator=draw),
        )
        step.zero_grad()
        functional.cross_entropy(net(inputs), labels).backward()
        step.step()
        if count >= 500:
            snapshots.append(copy.deepcopy(net.state_dict()))
    found = angular_update(*snapshots, include=["1.weight"])
    more = {} if optimizer == "sgd" else {"beta1": 0.0}
    expected = predict.equilibrium(lr, decay, optimizer=optimizer, **more)  # type: ignore[arg-type]
    assert found.angle == pytest.approx(expected.angular_update, rel=0.05)


def test_a_module_is_taken_and_all_reads_like_a_sentence() -> None:
    one, other = (nn.Linear(3, 3), nn.Linear(3, 3))
    found = angular_update(one, other)
    assert repr(found).startswith("AngularUpdate: ")
    assert found.as_dict()["pairs"] == 1


def test_bad_input_is_named() -> None:
    good = turned(0.1)
    with pytest.raises(ValueError, match="snapshots must be at least two"):
        angular_update(good)
    with pytest.raises(ValueError, match="snapshot 1 must hold weight"):
        angular_update(good, turned(0.1, size=5))
    with pytest.raises(ValueError, match="weight of snapshot 1 has norm 0"):
        angular_update(good, {"weight": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match="has norm nan"):
        angular_update(good, {"weight": torch.full((2, 4), math.nan)})


def test_snapshots_of_one_memory_are_refused_and_a_layer_that_is_shared_is_not() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    for same in (net, net.state_dict()):
        with pytest.raises(ValueError, match="snapshots 0 and 1 must be copies"):
            angular_update(same, net)
    frozen = nn.Sequential(net[0], nn.Linear(3, 3))
    found = angular_update(net, frozen)
    assert found.per_layer["0.weight"] == 0
    assert found.per_layer["1.weight"] > 0
