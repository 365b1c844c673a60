"""Margins against plain float64 scores, their inequalities, and losses below any float."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from undertow.measure import margins, normalized_outputs
from undertow.models import conv_net, mlp
from undertow.objective import Objective

SAMPLES, FEATURES, CLASSES = 23, 5, 4
CE = nn.CrossEntropyLoss()


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(classes: int = CLASSES) -> Tensor:
    return torch.randint(classes, (SAMPLES,), generator=torch.Generator().manual_seed(9))


def network(outputs: int = CLASSES) -> nn.Sequential:
    return mlp((FEATURES, 7, 6, outputs), bias=False, generator=torch.Generator().manual_seed(3))


def scores(net: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(net).double().eval()(inputs.double())


def plain_margins(outputs: Tensor, targets: Tensor) -> Tensor:
    rows = []
    for row, label in zip(outputs, targets.tolist(), strict=True):
        others = torch.cat([row[:label], row[label + 1 :]])
        rows.append(row[label] - others.max())
    return torch.stack(rows)


def scaled(net: nn.Module, factor: float) -> nn.Module:
    net = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(factor)
    return net


class Identity(nn.Module):
    """A linear map whose weight a test sets, so that the scores are what the test says."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(columns, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


BATCHINGS: dict[str, Any] = {
    "tensors": lambda x, y: (x, y),
    "list": lambda x, y: list(zip(x.split(6), y.split(6), strict=True)),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=5),
}


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("microbatch", [None, 4])
@pytest.mark.parametrize(
    "loss",
    [CE, functional.cross_entropy, nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1, 3, 0.7]))],
    ids=["module", "function", "weights"],
)
def test_margins_are_those_of_the_float64_scores(
    batching: str, microbatch: int | None, loss: Any
) -> None:
    net, x, y = network(), draw(1, SAMPLES, FEATURES), labels()
    found = margins(Objective(net, loss, BATCHINGS[batching](x, y), microbatch=microbatch))
    outputs = scores(net, x)
    torch.testing.assert_close(found.per_sample, plain_margins(outputs, y), rtol=0, atol=1e-14)
    norm = torch.cat([p.detach().double().flatten() for p in net.parameters()]).norm()
    assert found.degree == 3
    assert found.normalized == pytest.approx(float(found.per_sample.min() / norm**3))
    loss_sum = functional.cross_entropy(outputs, y, reduction="sum")
    assert found.log_loss == pytest.approx(float(loss_sum.log()), abs=1e-12)
    assert found.smoothed == pytest.approx(float(-(loss_sum.expm1()).log() / norm**3))
    weights = [p.detach().double() for p in net.parameters()]
    least = float(found.per_sample.min())
    assert found.frobenius == pytest.approx(least / math.prod(float(w.norm()) for w in weights))
    assert found.spectral == pytest.approx(
        least / math.prod(float(torch.linalg.svdvals(w)[0]) for w in weights)
    )


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.floats(-300, 300), min_size=3, max_size=3), min_size=1, max_size=6)
)
def test_the_smoothed_margin_lies_between_its_bounds(rows: list[list[float]]) -> None:
    x = torch.tensor(rows, dtype=torch.float64)
    y = torch.arange(len(rows)) % 3
    objective = Objective(Identity(3), CE, (x, y))
    count, least = len(rows), float(plain_margins(x, y).min())
    slack = 1e-9 * (1 + abs(least))
    found = margins(objective, degree=1, smoothing="exponential")
    assert least - math.log(count) - slack <= found.smoothed_margin <= least + slack
    found = margins(objective, degree=1)
    assert found.smoothed_margin <= least + slack
    # Loss <= n log(1 + (C - 1) e^-q), so e^Loss - 1 <= (1 + 2 e^-q)^n - 1.
    power = count * (math.log1p(2 * math.exp(-least)) if least > -700 else -least + math.log(2))
    lowest = -math.log(math.expm1(power)) if power < 700 else -power
    if least < 30:  # beyond, the bound itself is lost to rounding
        assert found.smoothed_margin >= lowest - slack


@pytest.mark.parametrize("factor", [0.3, 4.0])
def test_scaling_the_parameters_moves_no_normalised_margin(factor: float) -> None:
    net, data = network(), (draw(1, SAMPLES, FEATURES), labels())
    before = margins(Objective(net, CE, data))
    after = margins(Objective(scaled(net, factor), CE, data))
    assert after.normalized == pytest.approx(before.normalized, rel=1e-6)
    assert after.frobenius == pytest.approx(before.frobenius, rel=1e-6)
    assert after.spectral == pytest.approx(before.spectral, rel=1e-6)
    torch.testing.assert_close(after.per_sample, factor**3 * before.per_sample, rtol=1e-5, atol=0)


def test_losses_below_any_float_keep_their_logarithm() -> None:
    x = torch.tensor([[900.0, 0, 0], [0, 901.0, 0], [-5, 2, 2000.0]], dtype=torch.float64)
    y = torch.arange(3)
    found = margins(Objective(Identity(3), CE, (x, y)), degree=1)
    # e^-900 (1 + 1) + e^-901 (1 + 1) and nothing beside them.
    expected = -900 + math.log(2) + math.log1p(math.exp(-1))
    assert found.log_loss == pytest.approx(expected, rel=1e-14)
    assert found.smoothed_margin == pytest.approx(-expected, rel=1e-14)
    assert found.below_threshold
    assert "all separated" in repr(found)


@pytest.mark.parametrize("gap", [35.0, 36.5, 36.9, 37.1, 38.0, 40.0])
def test_nothing_jumps_where_the_series_takes_over(gap: float) -> None:
    x = torch.tensor([[gap, 0.0]], dtype=torch.float64)
    found = margins(Objective(Identity(2), CE, (x, torch.tensor([0]))), degree=1)
    assert found.log_loss == pytest.approx(-gap, abs=1e-14)
    assert found.smoothed_margin == pytest.approx(gap, abs=1e-14)


def test_losses_above_any_float_keep_theirs_too() -> None:
    x = torch.tensor([[-8e307, 0.0]], dtype=torch.float64).expand(3, 2)
    found = margins(Objective(Identity(2), CE, (x, torch.zeros(3, dtype=torch.long))), degree=1)
    assert found.log_loss == pytest.approx(math.log(8e307) + math.log(3))
    assert found.smoothed_margin == -math.inf
    assert not found.below_threshold


def test_norms_beyond_any_float_keep_their_logarithm() -> None:
    net = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(400)])
    for layer in net:
        nn.init.ones_(layer.weight)
    found = margins(Objective(net, nn.BCEWithLogitsLoss(), (torch.ones(2, 1), torch.ones(2, 1))))
    assert found.degree == 400
    assert found.normalized == 0
    assert found.log_normalized == pytest.approx(-400 * math.log(20))
    assert found.frobenius == pytest.approx(1)


@pytest.mark.parametrize("shape", [(SAMPLES,), (SAMPLES, 1)])
@pytest.mark.parametrize("coding", ["0 and 1", "-1 and +1"])
def test_one_output_is_the_difference_of_two(shape: tuple[int, ...], coding: str) -> None:
    net, x = network(1), draw(1, SAMPLES, FEATURES)
    sign = 2.0 * labels(2) - 1
    targets = (sign if coding == "-1 and +1" else (sign + 1) / 2).reshape(shape)
    model = nn.Sequential(net, nn.Flatten(0)) if len(shape) == 1 else net
    found = margins(Objective(model, nn.MSELoss(), (x, targets)))
    outputs = scores(net, x)[:, 0]
    torch.testing.assert_close(found.per_sample, sign * outputs, rtol=0, atol=1e-14)
    expected = functional.softplus(-sign * outputs, threshold=1e9).sum().log()
    assert found.log_loss == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_one_hot_targets_are_labels(low: float) -> None:
    net, x, y = network(), draw(1, SAMPLES, FEATURES), labels()
    coded = low + (1 - low) * functional.one_hot(y, CLASSES).float()
    one = margins(Objective(net, nn.MSELoss(), (x, coded)))
    other = margins(Objective(net, CE, (x, y)))
    assert torch.equal(one.per_sample, other.per_sample)


def test_positions_count_one_by_one_and_ignored_labels_do_not() -> None:
    net = nn.Conv1d(3, CLASSES, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(draw(3, CLASSES, 3, 2))
    x = draw(2, 6, 3, 5)
    y = torch.randint(CLASSES, (6, 4), generator=torch.Generator().manual_seed(1))
    y[:2] = -100
    y[3, 1] = -100
    found = margins(Objective(net, CE, (x, y), microbatch=2))
    flat = scores(net, x).movedim(1, -1).reshape(-1, CLASSES)
    kept = y.flatten() != -100
    expected = plain_margins(flat[kept], y.flatten()[kept])
    torch.testing.assert_close(found.per_sample, expected, rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="no label counts"):
        margins(Objective(net, CE, (x, torch.full_like(y, -100))))


def test_a_network_that_is_not_homogeneous_still_has_margins() -> None:
    net, x, y = mlp((FEATURES, 7, CLASSES)), draw(1, SAMPLES, FEATURES), labels()
    found = margins(Objective(net, CE, (x, y)))
    assert math.isnan(found.degree)
    assert math.isnan(found.normalized)
    assert math.isnan(found.smoothed)
    assert found.homogeneity is not None
    assert not found.homogeneity.homogeneous
    expected = plain_margins(scores(net, x), y)
    torch.testing.assert_close(found.per_sample, expected, rtol=0, atol=1e-14)
    assert math.isfinite(found.frobenius)
    assert "not homogeneous" in repr(found)


def test_a_given_degree_is_not_measured() -> None:
    data = draw(1, SAMPLES, FEATURES), labels()
    measured = margins(Objective(network(), CE, data))
    given_degree = margins(Objective(network(), CE, data), degree=3)
    assert given_degree.homogeneity is None
    assert given_degree.normalized == measured.normalized


def test_normalized_outputs_have_the_scale_of_no_layer() -> None:
    net = conv_net((1, 6, 6), (2, 3), CLASSES, bias=False)
    x = draw(4, SAMPLES, 1, 6, 6)
    found = normalized_outputs(Objective(net, CE, (x, labels()), microbatch=5))
    rho = math.prod(float(p.detach().double().norm()) for p in net.parameters())
    torch.testing.assert_close(found, scores(net, x) / rho, rtol=1e-12, atol=1e-15)
    again = normalized_outputs(Objective(scaled(net, 3.0), CE, (x, labels())))
    torch.testing.assert_close(again, found, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (1, torch.full((SAMPLES,), 2.0), "0 and 1"),
        (1, torch.tensor([-1.0, 0.0, 1.0] + [1.0] * (SAMPLES - 3)), "0 and 1"),
        (1, torch.ones(SAMPLES, 2), "one target per sample"),
        (CLASSES, torch.ones(SAMPLES, CLASSES), "one class per row"),
        (CLASSES, draw(5, SAMPLES, CLASSES), "one class per row"),
        (CLASSES, torch.ones(SAMPLES), "name no classes"),
        (CLASSES, torch.ones(SAMPLES, 2).long(), "do not label"),
        (CLASSES, torch.full((SAMPLES,), CLASSES), "label 4"),
    ],
)
def test_targets_that_name_no_class_are_refused(
    outputs: int, targets: Tensor, message: str
) -> None:
    objective = Objective(network(outputs), nn.MSELoss(), (draw(1, SAMPLES, FEATURES), targets))
    with pytest.raises(ValueError, match=message):
        margins(objective)


def test_bad_arguments_are_refused() -> None:
    objective = Objective(network(), CE, (draw(1, SAMPLES, FEATURES), labels()))
    with pytest.raises(ValueError, match="smoothing"):
        margins(objective, smoothing="hinge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="degree"):
        margins(objective, degree=math.nan)
