"""The noise scale against dense covariances, closed forms, and the truth behind drawn samples."""

from __future__ import annotations

import math

import pytest
import torch
from noise_cases import (
    LOSSES,
    NETS,
    SAMPLES,
    covariance,
    dense,
    draw,
    labels,
    labels_with_gaps,
    network,
)
from torch import Tensor, nn

from undertow.measure import gradient_noise, noise_covariance
from undertow.objective import Objective


class Location(nn.Module):
    """Gradient of half the squared distance to a sample x: -x, at the location zero."""

    def __init__(self, size: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(size, dtype=dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - self.place


def half_squares(outputs: Tensor, _: Tensor) -> Tensor:
    return outputs.square().sum(1) / 2


def located(inputs: Tensor, microbatch: int | None = None) -> Objective:
    model = Location(inputs.shape[1], inputs.dtype)
    return Objective(model, half_squares, (inputs, torch.zeros(len(inputs))), microbatch=microbatch)


@pytest.mark.parametrize("microbatch", [None, 4])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("net", NETS)
def test_trace_and_squared_norm_are_the_dense_ones(
    net: str, loss: str, microbatch: int | None
) -> None:
    function, targets = LOSSES[loss]
    inputs = NETS[net][1]()
    objective = Objective(network(net), function, (inputs, targets()), microbatch=microbatch)
    found = gradient_noise(objective)
    gradients, weights = dense(objective, inputs, targets())
    diagonal = covariance(gradients, weights).diagonal()
    squares = gradients.mean(0).square() - diagonal / SAMPLES
    assert found.trace == pytest.approx(float(diagonal.sum()), rel=1e-9)
    scale = float(gradients.mean(0).square().sum())
    assert found.gradient_sqnorm == pytest.approx(float(squares.sum()), abs=1e-9 * scale)
    sizes = dict(
        zip(objective.param_names, map(torch.numel, objective.model.parameters()), strict=True)
    )
    expected: dict[str, float] = {}
    for name, part in zip(sizes, diagonal.split(list(sizes.values())), strict=True):
        layer = name.rpartition(".")[0] or "(own)"
        expected[layer] = expected.get(layer, 0.0) + float(part.sum())
    traces = {name: layer.trace for name, layer in found.per_layer.items()}
    assert traces == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_dictionary_batches_are_the_same_as_pairs() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network("perceptron")

        def forward(self, *, numbers: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(numbers)}

    inputs, net = NETS["perceptron"][1](), Keyword()
    batches = [
        {"numbers": inputs[rows], "labels": labels()[rows]} for rows in (slice(7), slice(7, None))
    ]
    pairs = Objective(net.inner, nn.CrossEntropyLoss(), (inputs, labels()))
    named = Objective(net, nn.CrossEntropyLoss(), batches)
    expected, found = gradient_noise(pairs), gradient_noise(named)
    assert found.trace == pytest.approx(expected.trace)
    assert found.interval == pytest.approx(expected.interval)
    block = draw(5, 2, pairs.num_params)
    torch.testing.assert_close(
        noise_covariance(named).product(block), noise_covariance(pairs).product(block)
    )


def test_linear_regression_closed_form() -> None:
    inputs, targets = draw(1, 50, 3), draw(2, 50, 1)
    net = nn.Linear(3, 1, bias=False).double()
    net.weight.data = draw(4, 1, 3)  # a draw whose gradient stands out from the noise
    rows = 2 * (net(inputs).detach() - targets) * inputs
    mean = rows.mean(0)
    trace = float((rows - mean).square().sum() / 49)
    found = gradient_noise(Objective(net, nn.MSELoss(), (inputs, targets)))
    assert found.trace == pytest.approx(trace)
    assert found.gradient_sqnorm == pytest.approx(float(mean.square().sum()) - trace / 50)
    assert found.noise_scale == pytest.approx(found.trace / found.gradient_sqnorm)
    low, high = found.interval
    assert low < found.noise_scale < high


def test_squared_norm_is_the_mean_over_pairs_of_different_samples() -> None:
    inputs = draw(3, 20, 4) + 0.3
    gram = inputs @ inputs.T
    pairs = (gram.sum() - gram.trace()) / (20 * 19)
    assert gradient_noise(located(inputs)).gradient_sqnorm == pytest.approx(float(pairs))


def test_noise_to_signal_is_that_of_the_data_themselves() -> None:
    inputs = draw(3, 20, 4) + 0.3
    found = gradient_noise(located(inputs))
    mean = inputs.mean(0)
    trace = float((inputs - mean).square().sum() / 19)
    assert found.noise_to_signal == pytest.approx(trace / float(mean.square().sum()))
    assert found.noise_to_signal < found.noise_scale
    # Where the gradient cannot be told from zero the noise scale is infinite, and this is not.
    faint = gradient_noise(located(inputs - 0.99 * mean))
    assert math.isinf(faint.noise_scale)
    assert faint.noise_to_signal == pytest.approx(1e4 * found.noise_to_signal)


@pytest.mark.slow
def test_standard_errors_are_the_spread_over_data_sets() -> None:
    size, count = 6, 80
    found = [gradient_noise(located(draw(seed, count, size) + 0.5)) for seed in range(1000, 1200)]
    for value, error in (
        ("trace", "trace_stderr"),
        ("gradient_sqnorm", "gradient_sqnorm_stderr"),
    ):
        spread = torch.tensor([getattr(noise, value) for noise in found]).std()
        typical = torch.tensor([getattr(noise, error) for noise in found]).square().mean().sqrt()
        assert 0.8 < float(typical / spread) < 1.25


@pytest.mark.slow
@pytest.mark.parametrize(("count", "signal"), [(20, 3.0), (100, 1.0), (100, 0.3), (100, 0.0)])
def test_intervals_cover_the_true_noise_scale(count: int, signal: float) -> None:
    size, trials = 10, 200
    truth = math.inf if signal == 0 else size / signal**2
    generator = torch.Generator().manual_seed(4)
    covered = 0
    for _ in range(trials):
        noise = torch.randn(count, size, generator=generator, dtype=torch.float64)
        low, high = gradient_noise(located(noise + signal / math.sqrt(size))).interval
        covered += low <= truth <= high
    # 190 expected; a binomial's three standard deviations below are 181.
    assert covered >= 181


def test_many_samples_cost_a_pass() -> None:
    found = gradient_noise(located(draw(5, 2000, 3) + 1))
    assert found.passes == 1
    assert found.num_samples == 2000
    low, high = found.interval
    assert low < 1.0 < high


def test_scaling_the_loss_changes_no_noise_scale() -> None:
    inputs = draw(6, 40, 5) + 1
    once = gradient_noise(located(inputs))
    objective = Objective(
        Location(5), lambda o, t: 7 * half_squares(o, t), (inputs, torch.zeros(40))
    )
    found = gradient_noise(objective)
    assert found.noise_scale == pytest.approx(once.noise_scale)
    assert found.interval == pytest.approx(once.interval)
    assert found.trace == pytest.approx(49 * once.trace)


def test_order_and_batches_change_nothing() -> None:
    inputs = draw(7, 30, 5) + 1
    whole = gradient_noise(located(inputs))
    for objective in (located(inputs.flip(0)), located(inputs, microbatch=7)):
        found = gradient_noise(objective)
        assert found.trace == pytest.approx(whole.trace)
        assert found.interval == pytest.approx(whole.interval)


def test_ignored_labels_are_samples_without_gradient() -> None:
    """Of n samples k count: a batch holds B k / n of them, so Sigma is n / k times theirs."""
    net, inputs = network("perceptron"), NETS["perceptron"][1]()
    loss = nn.CrossEntropyLoss()
    with_gaps = gradient_noise(Objective(net, loss, (inputs, labels_with_gaps())))
    without = gradient_noise(Objective(net, loss, (inputs[5:], labels()[5:])))
    count = SAMPLES - 5
    expected = without.trace * (count - 1) / count * (SAMPLES / count) * SAMPLES / (SAMPLES - 1)
    assert with_gaps.trace == pytest.approx(expected)


def test_noise_is_that_of_mini_batches_of_a_weighted_loss() -> None:
    """Gradients of drawn batches of a class-weighted loss, each with its own denominator."""
    net, inputs = nn.Linear(3, 2).double(), draw(8, 40, 3)
    targets = (inputs[:, 0] > 0).long()
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0], dtype=torch.float64))
    objective = Objective(net, loss, (inputs, targets))
    gradients, weights = dense(objective, inputs, targets)
    picks = torch.randint(40, (4000, 400), generator=torch.Generator().manual_seed(9))
    batches = gradients[picks].mean(1) / weights[picks].mean(1)[:, None]
    trace = float(batches.var(0).sum()) * 400 * 40 / 39
    assert gradient_noise(objective).trace == pytest.approx(trace, rel=0.05)


def test_no_noise() -> None:
    found = gradient_noise(located(torch.ones(10, 3, dtype=torch.float64)))
    assert found.trace == pytest.approx(0, abs=1e-12)
    assert found.noise_scale == pytest.approx(0, abs=1e-12)
    assert found.converged


@pytest.mark.parametrize(
    "inputs", [torch.zeros(10, 3, dtype=torch.float64), torch.eye(3).repeat(4, 1) - 1 / 3]
)
def test_zero_gradient_says_that_the_noise_scale_is_infinite(inputs: Tensor) -> None:
    found = gradient_noise(located(inputs))
    assert found.noise_scale == math.inf
    assert found.interval[1] == math.inf
    assert not found.converged
    assert "cannot be told from zero" in repr(found)


def test_one_sample_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="one sample"):
        gradient_noise(located(draw(1, 1, 3)))


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, math.nan])
def test_confidence_out_of_range(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        gradient_noise(located(draw(1, 4, 3)), confidence=confidence)


def test_repr_says_what_there_is() -> None:
    objective = Objective(network("tied"), nn.CrossEntropyLoss(), (NETS["tied"][1](), labels()))
    said = repr(gradient_noise(objective))
    assert "Noise scale" in said
    assert "the per-sample gradients of table.weight were written down" in said
