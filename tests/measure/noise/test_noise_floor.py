"""The noise floor: an inequality that no batch may break, and its closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_cases import NETS, SAMPLES, draw, labels, network
from torch import Tensor, nn

from undertow.measure import noise_floor
from undertow.measure.noise._noise_floor import NoiseFloor
from undertow.objective import Objective

SLACK = 1 - 1e-9


def objective_of(net: nn.Module, inputs: Tensor) -> Objective:
    return Objective(net, nn.CrossEntropyLoss(), (inputs, labels()[: len(inputs)]))


def regularised(
    net: nn.Module, inputs: Tensor, targets: Tensor, weight_decay: float
) -> dict[str, Tensor]:
    """Regularised gradients of one batch, in eval mode."""
    net.eval()
    loss = nn.functional.cross_entropy(net(inputs), targets)
    parameters = dict(net.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: weight_decay * p.detach() + (0 if g is None else g)
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def matrix(net: nn.Module, name: str, tensors: dict[str, Tensor]) -> Tensor:
    if name in tensors:
        return tensors[name].flatten(1)
    stem, _, last = name.rpartition(".")
    return tensors[f"{stem}.in_proj_weight"].chunk(3)["qkv".index(last[0])]


def check(floor: NoiseFloor, net: nn.Module, gradients: dict[str, Tensor]) -> None:
    squares = 0.0
    norms = {}
    for row in floor.table.iter_rows(named=True):
        norms[row["name"]] = norm = float(matrix(net, row["name"], gradients).norm())
        assert norm >= row["floor"] * SLACK, row
        squares += norm**2
    assert math.sqrt(squares) >= floor.floor * SLACK
    for row, distance in zip(
        floor.table.iter_rows(named=True), floor.certificate(norms).values(), strict=True
    ):
        assert row["rank_distance"] * SLACK <= distance


@pytest.mark.parametrize("weight_decay", [1e-3, 0.3, 30.0])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("name", NETS)
def test_no_batch_of_any_network_breaks_it(name: str, batch_size: int, weight_decay: float) -> None:
    net, inputs = network(name), NETS[name][1]()
    objective = objective_of(net, inputs)
    floor = noise_floor(net, weight_decay=weight_decay, batch_size=batch_size, patches=objective)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        batch = torch.randint(SAMPLES, (batch_size,), generator=generator)
        check(floor, net, regularised(net, inputs[batch], labels()[batch], weight_decay))


@pytest.mark.parametrize(
    "name", ["perceptron", "sequence", "convolutional", "times first", "decoder"]
)
def test_batch_gradients_have_at_most_the_rank_in_the_table(name: str) -> None:
    net, inputs = network(name), NETS[name][1]()
    for batch_size in (1, 2):
        floor = noise_floor(
            net, weight_decay=0.1, batch_size=batch_size, patches=objective_of(net, inputs)
        )
        gradients = regularised(net, inputs[:batch_size], labels()[:batch_size], 0.0)
        for row in floor.table.iter_rows(named=True):
            values = torch.linalg.svdvals(matrix(net, row["name"], gradients))
            assert int((values > 1e-10 * values[0]).sum()) <= row["rank"], row


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 12),
    cols=st.integers(1, 12),
    batch_size=st.integers(1, 6),
    weight_decay=st.floats(1e-6, 1e3),
    seed=st.integers(0, 2**16),
)
def test_the_best_batch_attains_it_and_none_is_below(
    rows: int, cols: int, batch_size: int, weight_decay: float, seed: int
) -> None:
    net = nn.Linear(cols, rows, bias=False).double()
    weight = draw(seed, rows, cols)
    with torch.no_grad():
        net.weight.copy_(weight)
    floor = noise_floor(net, weight_decay=weight_decay, batch_size=batch_size)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    kept = min(batch_size, len(values))
    best = (left[:, :kept] * values[:kept]) @ right[:kept]
    attained = float((weight_decay * (weight - best)).norm())
    assert floor.floor == pytest.approx(attained, rel=1e-9, abs=1e-12 * weight_decay)
    deltas, inputs = draw(seed + 1, batch_size, rows), draw(seed + 2, batch_size, cols)
    for gradient in (deltas.T @ inputs, -weight_decay * best):
        norm = float((gradient + weight_decay * weight).norm())
        assert norm >= floor.floor * SLACK - 1e-12 * weight_decay


def test_it_falls_with_the_batch_and_is_proportional_to_the_decay() -> None:
    net = network("perceptron")
    floors = [noise_floor(net, weight_decay=0.1, batch_size=size).floor for size in range(1, 9)]
    assert floors == sorted(floors, reverse=True)
    assert floors[-1] == 0
    assert noise_floor(net, weight_decay=0.3, batch_size=2).floor == pytest.approx(3 * floors[1])
    assert noise_floor(net, weight_decay=0.0, batch_size=2).floor == 0


def test_positions_are_counted() -> None:
    net = network("convolutional")
    floor = noise_floor(
        net,
        weight_decay=0.1,
        batch_size=1,
        patches=objective_of(net, NETS["convolutional"][1]()),
    )
    patches = dict(zip(floor.table["name"], floor.table["patches"], strict=True))
    # 5 x 5 outputs; 7 x 5 in two groups; 7 x 5 in eight groups.
    assert patches == {"0.weight": 25, "3.weight": 2 * 35, "5.weight": 8 * 35, "7.weight": 1}


def test_positions_can_be_given() -> None:
    net = nn.Sequential(nn.Conv2d(1, 30, 8), nn.Flatten(), nn.Linear(30, 4)).double()
    counted = noise_floor(
        net,
        weight_decay=0.1,
        batch_size=3,
        patches=Objective(net, nn.CrossEntropyLoss(), (draw(1, 5, 1, 8, 8), labels()[:5])),
    )
    given = noise_floor(net, weight_decay=0.1, batch_size=3, patches={"0.weight": 1})
    assert given.floor == counted.floor > 0
    assert "one vector a sample" in repr(given)


def test_unknown_uses_leave_full_rank_and_computed_weights_are_left_out() -> None:
    net = network("odd")
    found = noise_floor(
        net, weight_decay=0.1, batch_size=1, patches=objective_of(net, NETS["odd"][1]())
    )
    patches = dict(zip(found.table["name"], found.table["patches"], strict=True))
    assert patches["own"] is None
    assert patches["twice.weight"] == 2
    assert any("norm.weight is computed" in note for note in found.notes)


def test_uses_inside_of_lists_leave_full_rank() -> None:
    class Chained(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            once = super().forward(input)
            return once + torch.linalg.multi_dot([input, self.weight, self.weight])

    net = Chained(20, 20).double()
    floor = noise_floor(
        net, weight_decay=0.1, batch_size=1, patches=objective_of(net, draw(0, 6, 20))
    )
    assert floor.floor == 0
    assert floor.table["patches"].to_list() == [None]


def test_the_longest_samples_count() -> None:
    class Pooled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(torch.tanh(input)).mean(1)

    net = Pooled(20, 20).double()
    short, long = (draw(0, 4, length, 20) for length in (2, 9))
    data = [(short, labels()[:4]), (long, labels()[:4]), (short, labels()[:4])]
    for order in (data, data[1:]):
        objective = Objective(net, lambda o, t: (o[:, 0] - t).square(), order)
        floor = noise_floor(net, weight_decay=0.1, batch_size=1, patches=objective)
        assert floor.table["patches"].to_list() == [9]


def test_certificate_of_one_batch() -> None:
    net = nn.Linear(6, 5, bias=False).double()
    floor = noise_floor(net, weight_decay=0.2, batch_size=2)
    distance = float(floor.table["rank_distance"][0])
    at_the_floor = floor.certificate({"weight": floor.floor})["weight"]
    assert at_the_floor == pytest.approx(distance)
    norm = float(net.weight.detach().norm())
    assert floor.certificate({"weight": 1.0})["weight"] == pytest.approx(1 / (0.2 * norm))


def test_bad_input() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(3, 4)).double()
    with pytest.raises(ValueError, match=r"patches does not say .* 0\.weight"):
        noise_floor(net, weight_decay=0.1, batch_size=2)
    with pytest.raises(ValueError, match="patches names 'x'"):
        noise_floor(net, weight_decay=0.1, batch_size=2, patches={"x": 1})
    with pytest.raises(ValueError, match=r"patches\['0\.weight'\] must be at least 1, got 0"):
        noise_floor(net, weight_decay=0.1, batch_size=2, patches={"0.weight": 0})
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        noise_floor(net, weight_decay=0.1, batch_size=0)
    with pytest.raises(TypeError, match=r"batch_size must be a whole number, got 2\.0"):
        noise_floor(net, weight_decay=0.1, batch_size=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight_decay"):
        noise_floor(net, weight_decay=-1.0, batch_size=2)
    with pytest.raises(TypeError, match=r"model must be an nn\.Module"):
        noise_floor({"weight": torch.ones(2, 2)}, weight_decay=0.1, batch_size=2)  # type: ignore[arg-type]
    other = objective_of(network("perceptron"), NETS["perceptron"][1]())
    with pytest.raises(ValueError, match="another model"):
        noise_floor(net, weight_decay=0.1, batch_size=2, patches=other)
    floor = noise_floor(net, weight_decay=0.0, batch_size=2, patches={"0.weight": 1})
    with pytest.raises(ValueError, match="weight_decay is 0"):
        floor.certificate({"0.weight": 1.0})
    floor = noise_floor(net, weight_decay=0.1, batch_size=2, patches={"0.weight": 1})
    with pytest.raises(ValueError, match="gradient_norms names 'x'"):
        floor.certificate({"x": 1.0})
    with pytest.raises(ValueError, match="must not be negative"):
        floor.certificate({"0.weight": -1.0})


def test_batch_norm_in_training_couples_samples_and_leaves_the_floor() -> None:
    """A batch's gradient has rank B at most whether or not statistics couple its samples."""
    layer = nn.Linear(20, 16, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(draw(0, 16, 20))
    norm, inputs = nn.BatchNorm1d(16).double(), draw(1, 3, 20)
    loss = (norm(layer(inputs)).tanh() * draw(2, 3, 16)).sum() / 3
    (gradient,) = torch.autograd.grad(loss, [layer.weight])
    values = torch.linalg.svdvals(gradient)
    assert int((values > 1e-10 * values[0]).sum()) <= 3
    found = noise_floor(layer, weight_decay=0.1, batch_size=3)
    assert 0 < found.floor <= float((gradient + 0.1 * layer.weight.detach()).norm())
    # Another third sample changes the gradient of the loss on the first two.
    kept = [
        torch.autograd.grad(norm(layer(batch))[:2].exp().sum(), [layer.weight])[0]
        for batch in (inputs, torch.cat([inputs[:2], draw(3, 1, 20)]))
    ]
    assert not torch.allclose(*kept)
