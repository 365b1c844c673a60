"""The flow of rho and V against autograd, a closed form, and itself beside other runs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from undertow.train.flows import normalized_flow
from undertow.train.flows._normalized_flow import forward

DOUBLE = torch.float64
SIZES = (7, 6, 5, 1)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def random_runs(seed: int, runs: int = 3) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Inputs, labels +-1, and unit layers."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        torch.randn(runs, b, a, generator=generator, dtype=DOUBLE) for a, b in pairwise(SIZES)
    ]
    inputs = torch.randn(runs, 4, SIZES[0], generator=generator, dtype=DOUBLE)
    labels = numbers(1, -1, 1, -1).expand(runs, 4)
    return inputs, labels, [w / w.flatten(1).norm(dim=1)[:, None, None] for w in layers]


def outputs(inputs: Tensor, layers: list[Tensor]) -> Tensor:
    """One run's f, of layers made unit; what autograd differentiates."""
    for layer in layers[:-1]:
        inputs = (inputs @ (layer / layer.norm()).T).relu()
    return (inputs @ (layers[-1] / layers[-1].norm()).T)[:, 0]


@pytest.mark.parametrize("slowed", [True, False])
def test_the_first_move_is_the_gradient_flow_of_the_penalised_loss(slowed: bool) -> None:
    inputs, labels, layers = random_runs(0)
    rho, decay, short = numbers(0.5, 1.5, 3.0), numbers(0.0, 0.1, 0.2), 1e-7
    times = torch.full((3, 1), short, dtype=DOUBLE)
    path = normalized_flow(inputs, labels, layers, rho, decay=decay, times=times, slowed=slowed)
    assert path.steps.tolist() == [[1]] * 3
    for run in range(3):
        own = [layer[run].clone().requires_grad_() for layer in layers]
        size = rho[run].clone().requires_grad_()
        loss = (size * outputs(inputs[run], own) - labels[run]).square().mean()
        expected = torch.autograd.grad(loss + decay[run] * size**2, [size, *own])
        assert float((path.rho[run, 0] - rho[run]) / short) == pytest.approx(
            -float(expected[0]), rel=1e-5
        )
        slower = max(float(rho[run]), 1.0) ** 2 if slowed else 1.0
        for layer, moved, gradient in zip(layers, path.layers, expected[1:], strict=True):
            speed = (moved[run] - layer[run]) / short * slower
            assert torch.allclose(speed, -gradient, atol=1e-5)


def test_the_speed_bound_is_the_trace_of_the_dense_tangent_kernel() -> None:
    inputs, _, layers = random_runs(2)
    bound = forward(inputs, layers).speed_bound()
    for run in range(3):
        own = tuple(layer[run] for layer in layers)
        pieces = torch.autograd.functional.jacobian(lambda *w, x=inputs[run]: outputs(x, w), own)
        jacobian = torch.cat([piece.flatten(1) for piece in pieces], dim=1)
        kernel = jacobian @ jacobian.T / len(jacobian)
        assert float(bound[run]) == pytest.approx(float(kernel.trace()), rel=1e-12)
        assert float(bound[run]) >= float(torch.linalg.eigvalsh(kernel)[-1])


@pytest.mark.parametrize("slowed", [True, False])
def test_two_opposite_points_have_an_equilibrium_in_closed_form(slowed: bool) -> None:
    """Two paths, one for x and one for -x, share the norm of each layer, so y f is 2^(-3/2)."""
    generator = torch.Generator().manual_seed(3)
    layers = [
        torch.randn(1, b, a, generator=generator, dtype=DOUBLE).expand(4, b, a)
        for a, b in pairwise((16, 32, 32, 1))
    ]
    point = torch.eye(16, dtype=DOUBLE)[0]
    path = normalized_flow(
        torch.stack([point, -point]).expand(4, 2, 16),
        numbers(1, -1).expand(4, 2),
        layers,
        numbers(1.0, 1.5, 2.0, 4.0),
        decay=torch.full((4,), 0.04, dtype=DOUBLE),
        times=torch.full((4, 1), 500.0, dtype=DOUBLE),
        slowed=slowed,
    )
    assert torch.allclose(path.margins.mean(2), numbers(2**-1.5), rtol=1e-2)
    assert torch.allclose(path.rho, numbers(2**-1.5 / (2**-3 + 0.04)), rtol=1e-2)
    assert torch.allclose(path.rho, path.equilibrium, rtol=1e-3)


def test_readings_are_those_of_the_network_of_unit_layers() -> None:
    inputs, labels, layers = random_runs(7)
    times, ones = torch.zeros(3, 1, dtype=DOUBLE), numbers(1, 1, 1)
    path = normalized_flow(inputs, labels, layers, ones, decay=ones, times=times)
    for run in range(3):
        own = [layer[run] for layer in layers]
        assert torch.allclose(path.outputs[run, 0], outputs(inputs[run], own))
        ranks = [float(w.square().sum() / torch.linalg.svdvals(w)[0] ** 2) for w in own]
        assert path.stable_ranks[run, 0].tolist() == pytest.approx(ranks)


def test_facts_are_numbers_of_the_margins_and_of_rho() -> None:
    inputs, labels, layers = random_runs(7)
    ones, times = numbers(1, 1, 1), numbers(0, 0.01, 0.02).expand(3, 3)
    facts = normalized_flow(inputs, labels, layers, ones, decay=ones, times=times).facts()
    path = normalized_flow(inputs, labels, layers, ones, decay=ones, times=times)
    for run in range(3):
        for at in range(3):
            own = {name: float(value[run, at]) for name, value in facts.items()}
            rho, margins = float(path.rho[run, at]), labels[run] * path.outputs[run, at]
            assert own["rho"] == rho
            assert own["margin"] == pytest.approx(float(margins.mean()))
            assert own["least_margin"] == float(margins.min())
            spread = float((margins - margins.mean()).square().mean().sqrt())
            assert own["margin_cv"] == pytest.approx(spread / abs(own["margin"]))
            assert own["fitted"] == sum(margins > 0) / len(margins)
            residuals = rho * path.outputs[run, at] - labels[run]
            assert own["loss"] == pytest.approx(float(residuals.square().mean()))
            before = float(path.rho[run, at - 1]) if at else 0.0
            moved = abs(math.log(rho / before)) if before else math.inf
            assert own["moved"] == pytest.approx(moved)
            assert not own["diverged"]
    short = normalized_flow(inputs, labels, layers, ones, decay=ones, times=times, max_steps=1)
    assert short.facts()["diverged"].tolist() == [[False, True, True]] * 3


def test_other_inputs_are_shown_to_the_layers_of_the_end() -> None:
    inputs, labels, layers = random_runs(7)
    times, ones = torch.full((3, 1), 2.0, dtype=DOUBLE), numbers(1, 1, 1)
    path = normalized_flow(inputs, labels, layers, ones, decay=ones, times=times)
    assert torch.allclose(path.predict(inputs), path.outputs[:, -1])
    other = inputs.flip(2)
    for run in range(3):
        own = [layer[run] for layer in path.layers]
        assert torch.allclose(path.predict(other)[run], outputs(other[run], own))


def test_rho_at_rest_is_the_equilibrium_and_a_fitted_margin_its_inverse_by_construction() -> None:
    """The speed of rho is -2 (M + decay) (rho - equilibrium) for any V; fitted, rho f is y."""
    inputs, labels, layers = random_runs(5)
    rho, decay, moment = numbers(2.0, 5.0, 9.0), numbers(0.0, 0.1, 0.3), 1e-6
    times = torch.tensor([0.0, moment], dtype=DOUBLE).expand(3, 2)
    path = normalized_flow(inputs, labels, layers, rho, decay=decay, times=times)
    speed = path.rho.log().diff(dim=1)[:, 0] / moment
    second = path.outputs[:, 0].square().mean(1)
    assert torch.allclose(
        speed, -2 * (second + decay) * (1 - path.equilibrium[:, 0] / rho), rtol=1e-4
    )
    free = torch.zeros(3, dtype=DOUBLE)
    long = torch.full((3, 1), 2_000.0, dtype=DOUBLE)
    end = normalized_flow(inputs, labels, layers, numbers(30, 50, 80), decay=free, times=long)
    margins = (end.margins * end.rho[..., None])[end.margins > 0]  # dead units leave zeros
    assert len(margins) > 6
    assert torch.allclose(margins, torch.ones_like(margins), rtol=1e-2)


def test_far_above_what_the_fit_needs_rho_falls_at_twice_its_decay() -> None:
    inputs, labels, layers = random_runs(5)
    start, decay = numbers(200, 200, 200), numbers(1e-5, 1e-4, 1e-3)
    times = torch.stack([0.05 / decay, 0.5 / decay], dim=1)
    path = normalized_flow(inputs, labels, layers, start, decay=decay, times=times)
    slope = path.rho.log().diff(dim=1)[:, 0] / (times[:, 1] - times[:, 0])
    assert torch.allclose(slope / (-2 * decay), torch.ones(3, dtype=DOUBLE), rtol=0.05)


def test_a_run_does_not_depend_on_those_beside_it_and_is_read_at_its_times() -> None:
    inputs, labels, layers = random_runs(4)
    rho, decay = numbers(1.0, 20.0, 3.0), numbers(1e-2, 0.0, 0.1)
    times = torch.stack([numbers(5, 50), numbers(1, 30), numbers(0, 2)])
    together = normalized_flow(inputs, labels, layers, rho, decay=decay, times=times)
    assert torch.equal(together.times, times)
    assert bool((together.steps.diff(dim=1) > 0).all())
    for run in range(3):
        own = slice(run, run + 1)
        alone = normalized_flow(
            inputs[own],
            labels[own],
            [layer[own] for layer in layers],
            rho[own],
            decay=decay[own],
            times=times[own],
        )
        assert torch.allclose(alone.rho, together.rho[own], rtol=1e-6)


def test_a_run_out_of_steps_or_bounds_is_not_read_any_further() -> None:
    inputs, labels, layers = random_runs(5, runs=2)
    spoiled = inputs.clone()
    spoiled[1] = math.nan
    times = torch.stack([numbers(1e-9, 100), numbers(1, 100)])
    given = (spoiled, labels, layers, numbers(1, 1))
    path = normalized_flow(*given, decay=numbers(0, 0), times=times, max_steps=3)
    assert torch.isfinite(path.rho).tolist() == [[True, False], [False, False]]
    assert path.steps.tolist() == [[1, 3], [1, 3]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layers": [torch.ones(2, 3, 7), torch.ones(2, 1, 4)]}, "layers must lead"),
        ({"layers": [torch.ones(2, 2, 7)]}, "layers must lead from 7 features to one output"),
        ({"labels": torch.ones(2, 5)}, "labels must be"),
        ({"layers": [torch.ones(3, 1, 7)]}, r"layers\[0\] must hold one for each of 2 runs"),
        ({"rho": torch.ones(3)}, "rho must hold one for each of 2 runs, got 3"),
        ({"rho": numbers(1, 0)}, "rho must be positive"),
        ({"decay": numbers(0, -1)}, "decay not negative"),
        ({"times": torch.tensor([[1.0, 1.0], [0.0, 1.0]])}, "times must ascend"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
    ],
)
def test_what_does_not_fit_is_named_at_once(changed: dict[str, Tensor], message: str) -> None:
    inputs, labels, layers = random_runs(6, runs=2)
    times = torch.ones(2, 1)
    given = {"inputs": inputs, "labels": labels, "layers": layers, "rho": numbers(1, 1)}
    with pytest.raises(ValueError, match=message):
        normalized_flow(**(given | {"decay": numbers(0, 0), "times": times} | changed))
