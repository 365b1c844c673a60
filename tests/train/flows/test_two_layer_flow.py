"""The flow of two-layer networks: against a solver in plain time, and its own conserved laws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from undertow import predict
from undertow.train import flows

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

SLOPE = 0.5


def problem(seed: int, *, neurons: int = 3, scale: float = 0.3) -> tuple[Tensor, ...]:
    """Mirrored samples, their labels, and a start: one run."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(4 + neurons + 6, 4, generator=generator, dtype=torch.float64)
    teacher = torch.nn.functional.normalize(drawn[0], dim=0)
    z = drawn[-6:] * (drawn[-6:] @ teacher).sign()[:, None] + 0.3 * teacher
    y = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    x = y[:, None] * z
    weights, outputs = scale * drawn[1 : 1 + neurons], scale * drawn[1 : 1 + neurons].sum(1)
    return tuple(v[None] for v in (torch.cat([x, -x]), torch.cat([y, -y]), weights, outputs))


def stacked(*problems: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(*problems, strict=True))


def follow(given: tuple[Tensor, ...], *log_losses: float, **options: Any) -> flows.TwoLayerPath:
    return flows.two_layer_flow(*given, **({"slope": SLOPE} | options), log_losses=log_losses)


def reference(given: tuple[Tensor, ...], time: float) -> tuple[np.ndarray, np.ndarray]:
    """The w and a of one run at a time of theta' = -grad L, by autograd and a stiff solver."""
    x, y, w, a = (value[0] for value in given)

    def velocity(_: float, theta: np.ndarray) -> np.ndarray:
        leaf = torch.from_numpy(theta).requires_grad_()
        inner, outer = leaf[: w.numel()].view_as(w), leaf[w.numel() :]
        f = torch.nn.functional.leaky_relu(x @ inner.mT, SLOPE) @ outer
        torch.nn.functional.softplus(-y * f).mean().backward()
        assert leaf.grad is not None
        return -leaf.grad.numpy()

    begin = torch.cat([w.flatten(), a]).numpy()
    end = solve_ivp(velocity, (0, time), begin, method="LSODA", rtol=1e-10, atol=1e-12).y[:, -1]
    return end[: w.numel()].reshape(w.shape), end[w.numel() :]


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_flow_of_the_logistic_loss_in_time(seed: int) -> None:
    given = problem(seed)
    path = follow(given, -0.8, -3.0, -6.0, rtol=1e-5)
    for reading in range(3):
        w, a = reference(given, math.exp(float(path.log_times[0, reading])))
        np.testing.assert_allclose(path.weights[0, reading], w, rtol=0, atol=2e-3)
        np.testing.assert_allclose(path.outputs[0, reading], a, rtol=0, atol=2e-3)


def test_it_is_of_second_order() -> None:
    """Steps go as the root of rtol, so the error goes as rtol: a tenth of one, a tenth of other."""
    given = problem(2)
    errors = []
    for rtol in (1e-3, 1e-4):
        path = follow(given, -2.0, rtol=rtol)
        w, _ = reference(given, math.exp(float(path.log_times[0, 0])))
        errors.append(float(np.abs(path.weights[0, 0].numpy() - w).max()))
    assert errors[1] < errors[0] / 5


def test_what_the_layers_have_over_one_another_is_conserved() -> None:
    given = problem(3)
    path = follow(given, -1.0, -10.0, -1e3, rtol=1e-4)
    over = path.outputs.square() - path.weights.square().sum(-1)
    start = given[3].square() - given[2].square().sum(-1)
    size = path.weights.square().sum((-2, -1))
    assert ((over - start[:, None]).abs().amax(-1) < 1e-3 * size).all()


@pytest.mark.parametrize("slope", [0.5, 1.0])
def test_far_past_zero_loss_the_margin_is_the_ceiling(slope: float) -> None:
    given = stacked(problem(4, scale=1e-10), problem(5, scale=1e-10))
    path = follow(given, -1e4, -1e8, -1e11, slope=slope)
    x, y = given[0].numpy(), given[1].numpy()
    for run in range(2):
        known = predict.two_layer_margin(x[run], y[run], slope=slope)
        assert known.ceiling is not None
        stuck = known.gets_stuck(given[2][run].numpy(), given[3][run].numpy())
        level = known.stuck_share if stuck else 1.0
        ratio = path.margins[run] / (known.ceiling * level)
        assert (ratio <= 1 + 1e-9).all()
        assert ratio[-1] > 1 - 1e-6
        assert path.log_losses[run, -1] <= -1e11


def test_a_tenth_of_the_start_takes_so_much_longer() -> None:
    given = stacked(*(problem(6, scale=scale) for scale in (1e-6, 1e-20, 1e-40)))
    path = follow(given, -0.7)
    known = predict.two_layer_margin(given[0][0].numpy(), given[1][0].numpy(), slope=SLOPE)
    assert known.growth is not None
    gaps = path.log_times[:, 0].exp().diff() * known.growth / math.log(10)
    torch.testing.assert_close(gaps, torch.tensor([14.0, 20.0]).double(), rtol=3e-3, atol=0)
    assert (path.rank_ratios[:, 0] < 1e-3).all()


def test_one_run_does_not_touch_another() -> None:
    both = follow(stacked(problem(7), problem(8)), -1.0, -100.0)
    alone = follow(problem(8), -1.0, -100.0)
    torch.testing.assert_close(both.weights[1:], alone.weights, rtol=1e-9, atol=1e-12)
    assert both.steps[1] == alone.steps[0]


def test_a_run_that_cannot_fit_is_not_read_and_leaves_the_other() -> None:
    x, y, w, a = problem(9)
    hopeless = x[:, :1].expand_as(x), y, w, a  # one sample, under either label
    path = follow(stacked(hopeless, problem(9)), -0.8, -5.0, max_steps=500)
    assert not path.reached[0].any()
    assert path.margins[0].isnan().all()
    assert path.rank_ratios[0].isnan().all()
    assert path.steps[0] == 500
    assert path.reached[1].all()
    assert repr(path).startswith(
        "1 of 2 two-layer networks reached their last log loss, at most -5"
    )
    assert "none of which" in repr(follow(hopeless, -0.8, max_steps=5))


def with_a_sample_far_out(seed: int, *, mirrored: bool) -> tuple[Tensor, ...]:
    """Four neurons from 1e-8, and one more sample along the teacher: the least q_n tie early."""
    x, y, w, a = problem(seed, neurons=4, scale=1e-8)
    drawn = torch.randn(14, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = x.shape[1] // (1 if mirrored else 2)
    far = 4 * torch.nn.functional.normalize(drawn[:1], dim=1)[None]
    return torch.cat([x[:, :kept], far], 1), torch.cat([y[:, :kept], far.new_ones(1, 1)], 1), w, a


@pytest.mark.parametrize(
    ("seed", "mirrored", "deep"), [(117, True, -1e6), (119, True, -1e6), (121, False, -1e4)]
)
def test_ties_do_not_stall_it_where_data_are_not_symmetric(
    seed: int, mirrored: bool, deep: float
) -> None:
    """At 700, 940 and 870 steps; damped by less they were more than 4,000, or 1,300 to 1,800."""
    path = follow(with_a_sample_far_out(seed, mirrored=mirrored), -1e3, deep, max_steps=1_100)
    assert path.reached.all()


@pytest.mark.parametrize("scale", [1e-150, 1e-320])
def test_neurons_whose_squares_leave_float64_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="of a neuron must be zero or of norm 1e-140 or more"):
        follow(problem(0, scale=scale), -0.8)


def test_a_neuron_that_is_zero_stays_so() -> None:
    x, y, w, a = problem(2)
    w[:, 0], a[:, 0] = 0.0, 0.0
    path = follow((x, y, w, a), -2.0)
    assert path.reached.all()
    assert not path.weights[0, 0, 0].any()
    assert path.outputs[0, 0, 0] == 0


def test_arrays_are_no_tensors() -> None:
    with pytest.raises(TypeError, match="labels must be a tensor, got ndarray"):
        follow(bad(1, np.ones((1, 12))), -1.0)  # type: ignore[arg-type]


def test_a_path_says_what_its_networks_are() -> None:
    given = problem(10)
    path = follow(given, -5.0)
    x, y = given[0], given[1]
    f = path.predict(x)[:, 0]
    norm = path.weights.square().sum() + path.outputs.square().sum()
    assert float((y * f).min() / norm) == pytest.approx(float(path.margins[0, 0]))
    odd = (f - path.predict(-x)[:, 0]) / 2
    torch.testing.assert_close(odd, (x @ path.linear_parts[:, 0, :, None])[..., 0])
    torch.testing.assert_close(path.shares.sum(-1), torch.ones(1, 1).double())
    loss = torch.nn.functional.softplus(-y * f).mean().log()
    assert float(loss) == pytest.approx(float(path.log_losses[0, 0]))


def test_what_is_below_a_reading_from_the_start_is_read_there() -> None:
    x, y, w, a = problem(11)
    end = follow((x, y, w, a), -4.0)
    again = follow((x, y, end.weights[:, 0], end.outputs[:, 0]), -1.0, -3.0)
    assert again.steps.tolist() == [0]
    torch.testing.assert_close(again.weights[:, 1], end.weights[:, 0])


def bad(place: int, value: Tensor) -> tuple[Tensor, ...]:
    given = list(problem(0))
    given[place] = value
    return tuple(given)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (bad(0, torch.ones(1, 12, 3)), {}, "inputs must be .runs, samples, features. and weights"),
        (bad(1, torch.ones(1, 3)), {}, "labels must be .1, 12., got .1, 3."),
        (bad(1, torch.zeros(1, 12)), {}, "labels must be 1 or -1, got .0.0."),
        (bad(3, torch.ones(1, 2)), {}, "outputs must be .1, 3., got .1, 2."),
        (bad(1, torch.ones(0, 12)), {}, "labels must be .1, 12., got .0, 12."),
        ((torch.ones(1, 0, 4), torch.ones(1, 0), *problem(0)[2:]), {}, "inputs must hold someth"),
        (bad(3, torch.full((1, 3), math.nan)), {}, "outputs must be finite"),
        (problem(0), {"slope": 1.5}, "slope must be from 0 to 1, got 1.5"),
        (problem(0), {"rtol": 0.0}, "rtol must be a finite number above 0"),
        (problem(0), {"max_steps": 0}, "max_steps must be at least 1"),
    ],
)
def test_bad_input_is_named(given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        follow(given, -1.0, **options)


@pytest.mark.parametrize("log_losses", [(), (-1.0, -1.0), (-1.0, 0.0), (-1e13,), (math.nan,)])
def test_readings_fall_and_end_where_outputs_are_exact(log_losses: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="log_losses must fall and stay above -1e12"):
        follow(problem(0), *log_losses)
