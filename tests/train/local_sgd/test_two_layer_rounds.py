"""Batched two-layer networks under Local SGD against plain PyTorch, and their laws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undertow import measure
from undertow.objective import Objective
from undertow.train import Ensemble, Member, TwoLayerRounds, Workers, two_layer_rounds

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

MEMBERS, SAMPLES, FEATURES, UNITS, CLIENTS = 2, 12, 5, 30, 3
GENERATOR = torch.Generator().manual_seed(0)
WEIGHTS = torch.randn(MEMBERS, UNITS, FEATURES, generator=GENERATOR).double() / math.sqrt(UNITS)
OUTPUTS = torch.randn(MEMBERS, UNITS, generator=GENERATOR).double().sign()
INPUTS = torch.randn(MEMBERS, SAMPLES, FEATURES, generator=GENERATOR).double()
TARGETS = torch.randn(MEMBERS, SAMPLES, generator=GENERATOR).double()
ROWS = torch.stack([torch.randperm(SAMPLES, generator=GENERATOR).view(3, -1) for _ in range(2)])
LR = torch.tensor([0.01, 0.02]).double()


def course(**changes: Any) -> TwoLayerRounds:
    given: dict[str, Any] = {"weights": WEIGHTS, "outputs": OUTPUTS, "inputs": INPUTS}
    given |= {"targets": TARGETS, "clients": ROWS, "period": 4, "lr": LR, "rounds": 2}
    return two_layer_rounds(**(given | changes))


class Last(nn.Module):
    """Output weights that stay."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.register_buffer("outputs", outputs)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.outputs


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean() / 2


def network(member: int, weights: Tensor) -> nn.Sequential:
    layer = nn.utils.skip_init(nn.Linear, FEATURES, UNITS, bias=False, dtype=torch.float64)
    layer.weight = nn.Parameter(weights.clone())
    return nn.Sequential(layer, nn.ReLU(), Last(OUTPUTS[member]))


def test_rounds_are_those_of_pytorch_and_drift_that_of_measure() -> None:
    found = course(read=[1, 2])
    for member in range(MEMBERS):
        x, y, weights = INPUTS[member], TARGETS[member], WEIGHTS[member]
        for turn in range(2):
            clients, objectives = [], []
            for rows in ROWS[member]:
                model = network(member, weights)
                optimizer = torch.optim.SGD(model.parameters(), lr=float(LR[member]))
                for _ in range(4):
                    optimizer.zero_grad()
                    half_square(model(x[rows]), y[rows]).backward()
                    optimizer.step()
                clients.append(model)
                objectives.append(Objective(model, half_square, (x[rows], y[rows])))
            drift = measure.local_drift(clients, objectives)
            weights = torch.stack([model[0].weight.detach() for model in clients]).mean(0)
            residual = torch.relu(x @ weights.mT) @ OUTPUTS[member] - y
            torch.testing.assert_close(found.residuals[turn + 1, member], residual)
            for own, known in (
                (found.flips, drift.flip_fraction),
                (found.distances, drift.parameter_distance),
                (found.gradient_drifts, drift.relative_drift),
            ):
                torch.testing.assert_close(own[turn, member], known.mean())
        torch.testing.assert_close(found.weights[member], weights)
        changed = (x @ WEIGHTS[member].mT > 0) != (x @ weights.mT > 0)
        assert float(found.since_start[member]) == pytest.approx(float(changed.double().mean()))


def test_it_is_what_an_ensemble_with_workers_does() -> None:
    """Targets are sample numbers, so that sorted and cut they are dealt out in order."""

    def loss(outputs: Tensor, numbers: Tensor) -> Tensor:
        return (outputs - TARGETS[0, order][numbers]).square().mean() / 2

    order = ROWS[0].flatten()
    ensemble = Ensemble(
        network(0, WEIGHTS[0]),
        loss,
        (INPUTS[0, order], torch.arange(SAMPLES)),
        [Member(1, 0.01, order="full", workers=Workers(CLIENTS, rounds=4, data="by_class"))],
        batch_size=SAMPLES // CLIENTS,
        path="loop",
        dtype=torch.float64,
    )
    ensemble.train(8)
    torch.testing.assert_close(ensemble.parameters()["0.weight"][0], course().weights[0])


def test_a_network_does_not_depend_on_its_neighbours() -> None:
    alone = course(
        weights=WEIGHTS[1:], outputs=OUTPUTS[1:], inputs=INPUTS[1:], targets=TARGETS[1:],
        clients=ROWS[1:], lr=LR[1:],
    )  # fmt: skip
    torch.testing.assert_close(alone.residuals[:, 0], course().residuals[:, 1])


def test_batches_of_all_samples_are_full_batches_and_others_are_not() -> None:
    whole = ROWS[None, :, :, None].expand(2, -1, -1, 4, -1)
    torch.testing.assert_close(course(batches=whole).residuals, course().residuals)
    assert not torch.allclose(course(batches=whole[..., :2]).residuals, course().residuals)


def test_one_client_takes_plain_steps_and_does_not_drift() -> None:
    everything = torch.arange(SAMPLES).view(1, 1, -1).expand(2, 1, -1)
    found = course(clients=everything, read=[2])
    assert found.distances.tolist() == found.flips.tolist() == [[0.0, 0.0]]
    again = course(clients=everything, period=1, rounds=8)
    torch.testing.assert_close(found.residuals[-1], again.residuals[-1])


def test_the_start_is_left_as_found_and_nothing_is_read_unasked() -> None:
    before = WEIGHTS.clone()
    found = course()
    assert torch.equal(WEIGHTS, before)
    assert found.flips.shape == (0, MEMBERS)
    assert "2 networks" in repr(found)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"period": 0}, ValueError, "period must be at least 1"),
        ({"rounds": 1.5}, TypeError, "rounds must be a whole number"),
        ({"weights": WEIGHTS[0]}, ValueError, "weights must have 3 axes"),
        ({"outputs": OUTPUTS[:, :3]}, ValueError, "outputs must be of shape"),
        ({"targets": TARGETS[:1]}, ValueError, "targets must be of shape"),
        ({"lr": LR[:1]}, ValueError, "lr must be of shape"),
        ({"clients": ROWS + 1}, ValueError, "clients must be rows 0 to 11"),
        ({"batches": ROWS[None]}, ValueError, "batches must be of shape"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        course(**changes)
