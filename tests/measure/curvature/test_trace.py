"""Trace and density against dense matrices; intervals cover as often as they say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undertow.measure import Estimate, hessian_trace, spectral_density
from undertow.measure.curvature import _density, _krylov
from undertow.measure.curvature._krylov import Operator
from undertow.measure.curvature._quadrature import lanczos_quadrature
from undertow.measure.curvature._trace import hutchinson
from undertow.objective import Objective


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def objective(loss: Any = None, hidden: int = 12, **kwargs: Any) -> Objective:
    net = nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 3)).double()
    with torch.no_grad():
        for number, p in enumerate(net.parameters()):
            p.copy_(0.7 * draw(number, *p.shape))
    labels = torch.randint(3, (40,), generator=torch.Generator().manual_seed(0))
    return Objective(net, loss or nn.CrossEntropyLoss(), (draw(10, 40, 6), labels), **kwargs)


def dense(measured: Objective, kind: str = "hessian") -> Tensor:
    units = torch.eye(measured.num_params, dtype=torch.float64)
    return measured.hvp(units) if kind == "hessian" else measured.ggnvp(units)


def rotated(values: Tensor, seed: int = 0) -> tuple[Operator, Tensor]:
    basis = torch.linalg.qr(draw(seed, len(values), len(values)))[0]
    matrix = basis * values @ basis.T
    return Operator(lambda block: block @ matrix, len(values), draw(0, 0, len(values))), matrix


SPECTRA = {
    "flat": torch.linspace(1, 2, 100, dtype=torch.float64),
    "decaying": torch.arange(1, 101, dtype=torch.float64) ** -1.0,
    "outliers": torch.cat([2.0 ** torch.arange(8), 0.1 * torch.ones(92)]).double(),
    "indefinite": torch.cat([torch.linspace(-1, 1, 95), 8.0 * torch.arange(1, 6)]).double(),
}


@pytest.mark.slow
@pytest.mark.parametrize("rtol", [0.05, 0.02])
@pytest.mark.parametrize("name", SPECTRA)
def test_intervals_cover_the_truth_as_often_as_they_say(name: str, rtol: float) -> None:
    operator, matrix = rotated(SPECTRA[name])
    truth = float(matrix.trace())
    runs = [hutchinson(operator, rtol, 5000, torch.Generator().manual_seed(s)) for s in range(500)]
    covered = sum(run.interval[0] <= truth <= run.interval[1] for run in runs)
    assert abs(covered / 500 - 0.95) <= 0.03  # three standard errors of 500 runs
    assert all(run.converged and run.stderr <= rtol * abs(run.value) for run in runs)
    # Plain Hutchinson's products: Var[z^T H z] = 2 (||H||_F^2 - sum of H_ii^2).
    plain = float(2 * (matrix.square().sum() - matrix.diagonal().square().sum()))
    needed = max(24.0, plain / (rtol * truth) ** 2)
    assert sum(run.products for run in runs) / 500 <= 1.1 * needed


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_intervals_allow_for_rounding_where_nothing_else_is_left(dtype: torch.dtype) -> None:
    """Deflation finds all of a matrix of low rank; the trace then varies by rounding alone."""
    for values in ([5.0, 3.0, 2.0, 1.0], [5.0, -4.9, 3.0, -3.05]):
        spectrum = torch.cat([torch.tensor(values), torch.zeros(96)]).double()
        operator, matrix = rotated(spectrum)
        matrix = matrix.to(dtype)
        operator = Operator(lambda block, m=matrix: block @ m, 100, torch.zeros(0, 100).to(dtype))
        truth = float(matrix.double().trace())
        for seed in range(50):
            run = hutchinson(operator, 0.01, 2000, torch.Generator().manual_seed(seed))
            if run.stderr < 1e-5:
                assert run.interval[0] <= truth <= run.interval[1]
                assert run.interval[1] - run.interval[0] < 1e-3


@pytest.mark.slow
def test_estimates_are_unbiased_with_and_without_deflation() -> None:
    for name, deflates in (("flat", False), ("outliers", True)):
        operator, matrix = rotated(SPECTRA[name])
        runs = [
            hutchinson(operator, 0.02, 5000, torch.Generator().manual_seed(s)) for s in range(200)
        ]
        assert all((run.deflated > 0) == deflates for run in runs)
        error = sum(run.value for run in runs) / 200 - float(matrix.trace())
        spread = math.sqrt(sum(run.stderr**2 for run in runs)) / 200
        assert abs(error) < 4 * spread


def test_trace_of_a_network() -> None:
    measured = objective(microbatch=16)
    truth = float(dense(measured).trace())
    found = hessian_trace(measured, 0.02)
    assert found.converged
    assert found.stderr <= 0.02 * abs(found.value)
    assert abs(found.value - truth) < 4 * found.stderr
    assert f"after {found.products} products" in repr(found)


class_weight = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=class_weight, label_smoothing=0.1, ignore_index=1),
        lambda o, t: torch.cos(o - t[:, None]).sum(1),  # of indefinite curvature
    ],
)
def test_gauss_newton_trace_is_exact_for_few_outputs(loss: Any) -> None:
    measured = objective(loss, microbatch=16)
    found = hessian_trace(measured, curvature="ggn")
    assert found.method == "exact"
    assert found.stderr == 0.0
    assert found.products == 3
    assert found.value == pytest.approx(float(dense(measured, "ggn").trace()), rel=1e-10)


def test_gauss_newton_trace_of_samples_that_mix_is_estimated() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False)).double()
    measured = Objective(net, nn.MSELoss(), (draw(0, 30, 6), draw(1, 30, 5)))
    found = hessian_trace(measured, curvature="ggn")
    assert found.method == "hutchinson"
    assert abs(found.value - float(dense(measured, "ggn").trace())) < 4 * found.stderr


def test_gauss_newton_trace_of_samples_that_mix_behind_a_layer_of_zeros_is_estimated() -> None:
    """The outputs are zero of a sample alone and in its batch, and tell nothing."""
    net = nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    nn.init.zeros_(net[3].weight)
    nn.init.zeros_(net[3].bias)
    data = draw(0, 9, 2, 6), torch.arange(9) % 3
    assert Objective(net, nn.CrossEntropyLoss(), data).ggn_trace() is None


@pytest.mark.parametrize("microbatch", [None, 3])
def test_gauss_newton_trace_does_not_trust_derivatives_that_are_mapped_wrongly(
    microbatch: int | None,
) -> None:
    """PyTorch maps a PReLU's slopes wrongly over two axes, if these are equally long."""
    net = nn.Sequential(nn.Linear(6, 4), nn.PReLU(4), nn.Linear(4, 3)).double()
    data = draw(0, 7, 6), torch.arange(7) % 3
    measured = Objective(net, nn.CrossEntropyLoss(), data, microbatch=microbatch)
    found = measured.ggn_trace()
    if found is not None:
        torch.testing.assert_close(found[0], float(dense(measured, "ggn").trace()))


def test_gauss_newton_trace_with_many_outputs_is_estimated() -> None:
    net = nn.Linear(6, 20).double()
    measured = Objective(net, nn.MSELoss(), (draw(0, 30, 6), draw(1, 30, 20)))
    found = hessian_trace(measured, curvature="ggn")
    assert found.method == "hutchinson"
    assert abs(found.value - float(dense(measured, "ggn").trace())) < 4 * found.stderr


def test_few_parameters_are_taken_one_by_one() -> None:
    net = nn.Linear(4, 2).double()
    measured = Objective(net, nn.CrossEntropyLoss(), (draw(0, 30, 4), torch.arange(30) % 2))
    found = hessian_trace(measured)
    assert found.products == 10
    assert found.value == pytest.approx(float(dense(measured).trace()))


def test_a_trace_near_zero_runs_out_of_products_and_says_so() -> None:
    operator, _ = rotated(torch.linspace(-1, 1, 200, dtype=torch.float64))
    found = hutchinson(operator, 0.05, 100, torch.Generator().manual_seed(0))
    assert not found.converged
    assert found.products == 100
    assert found.interval[0] <= 0 <= found.interval[1]
    assert "NOT converged" in repr(found)


def test_generators_decide_and_global_state_stays() -> None:
    measured = objective()
    before = torch.get_rng_state()
    first, again = hessian_trace(measured), hessian_trace(measured)
    other = hessian_trace(measured, generator=torch.Generator().manual_seed(7))
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), before)


# Density.


def test_density_has_the_mass_moments_and_range_of_the_spectrum() -> None:
    measured = objective()
    values = torch.linalg.eigvalsh(dense(measured))
    found = spectral_density(measured, 0.05, steps=30)
    assert found.converged
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1.0, abs=1e-3)
    assert float(torch.trapezoid(found.stderr, found.grid)) <= 0.05
    torch.testing.assert_close(found.weights.sum(1), torch.ones(len(found.weights)).double())
    assert found.largest == pytest.approx(float(values[-1]), rel=1e-6)
    assert found.smallest >= float(values[0]) - 1e-9
    assert abs(found.trace.value - float(values.sum())) < 4 * found.trace.stderr
    assert f"{found.products} products" in repr(found)


@pytest.mark.slow
def test_error_bands_cover_the_smoothed_density() -> None:
    measured = objective()
    values = torch.linalg.eigvalsh(dense(measured))
    inside = []
    for seed in range(8):
        found = spectral_density(
            measured, 0.06, width=0.05, generator=torch.Generator().manual_seed(seed)
        )
        kernel = torch.exp(-0.5 * ((found.grid[:, None] - values) / 0.05).square())
        truth = kernel.mean(1) / (0.05 * math.sqrt(2 * math.pi))
        weight = truth / truth.sum()
        inside.append(float(weight[(found.density - truth).abs() <= 2 * found.stderr].sum()))
    assert sum(inside) / len(inside) > 0.88


@pytest.mark.slow
@pytest.mark.parametrize("steps", [20, 40])
@pytest.mark.parametrize("name", ["flat", "outliers"])
def test_error_bands_hold_at_the_width_that_the_steps_resolve(name: str, steps: int) -> None:
    """A kernel narrower than the nodes' distances would show these, for all probes alike."""
    spread = {
        "flat": torch.linspace(0, 1, 300, dtype=torch.float64),
        "outliers": torch.cat([torch.linspace(0, 1, 280), torch.linspace(5, 50, 20)]).double(),
    }
    operator, _ = rotated(spread[name])
    inside = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        runs = [
            lanczos_quadrature(operator, operator.random(8, generator), steps) for _ in range(4)
        ]
        least = _density._SPACINGS * _density._spacing(runs)
        found = _density._density(runs, 300, 0, None, 0.05, least)
        kernel = torch.exp(-0.5 * ((found.grid[:, None] - spread[name]) / found.width).square())
        truth = kernel.mean(1) / (found.width * math.sqrt(2 * math.pi))
        weight = truth / truth.sum()
        inside.append(float(weight[(found.density - truth).abs() <= 2 * found.stderr].sum()))
    assert sum(inside) / len(inside) > 0.88


def test_each_probe_gives_exact_moments() -> None:
    measured = objective(hidden=3)
    matrix, size = dense(measured), measured.num_params
    found = spectral_density(measured, steps=4, max_products=40)
    # The quadrature of a probe z has the moments z^T H^j z / z^T z for j < 2 steps.
    probes = torch.randn(8, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    power = probes
    for degree in range(1, 8):
        power = power @ matrix
        exact = (probes * power).sum(1) / probes.square().sum(1)
        moment = (found.weights * found.nodes**degree).sum(1)[:8]
        torch.testing.assert_close(moment, exact, rtol=1e-8, atol=1e-10)


def test_quadrature_without_room_for_its_basis_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orthogonality is lost to outliers; their weights are shared among copies."""
    values = torch.cat([torch.linspace(0, 1, 290), torch.linspace(5, 500, 10)]).double()
    operator = Operator(lambda vectors: vectors * values.float(), 300, values.float()[None])
    functions = (torch.sqrt, torch.log1p, lambda nodes: (nodes > 3).double())
    found: dict[int, Tensor] = {}
    for rows in (2, 80):
        monkeypatch.setattr(_krylov, "BASIS_BYTES", 4 * 300 * 4 * rows)
        probes = operator.random(4, torch.Generator().manual_seed(0))
        run = lanczos_quadrature(operator, probes, 80)
        moments = [
            (function(run.nodes.clamp(min=0)) * run.weights).sum(1) for function in functions
        ]
        found[rows] = torch.stack(moments)
        if rows == 2:
            assert (run.nodes > 499).sum() > 4  # ghosts
    shares = probes.double().square() / probes.double().square().sum(1, keepdim=True)
    exact = torch.stack([shares @ function(values) for function in functions])
    torch.testing.assert_close(found[80], exact, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found[2], exact, rtol=1e-3, atol=1e-5)


def test_little_memory_gives_the_same_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    operator, matrix = rotated(torch.linspace(-1, 3, 200, dtype=torch.float64))
    blocks: list[int] = []

    def multiply(vectors: Tensor) -> Tensor:
        blocks.append(len(vectors))
        return vectors @ matrix

    small = Operator(multiply, operator.size, operator.like)
    monkeypatch.setattr(_krylov, "BASIS_BYTES", 3 * 200 * 8)
    found = hutchinson(small, 0.02, 4000, torch.Generator().manual_seed(0))
    assert found.converged
    assert found.interval[0] <= float(matrix.trace()) <= found.interval[1]
    assert max(blocks) == 3


def test_a_matrix_of_few_eigenvalues_ends_the_run_early() -> None:
    net = nn.Linear(4, 3, bias=False).double()
    measured = Objective(net, nn.MSELoss(), (2 * torch.eye(4).double(), torch.zeros(4, 3).double()))
    found = spectral_density(measured)  # the Hessian is a multiple of the identity
    assert found.converged
    assert found.nodes.shape[1] == 1
    assert found.largest == pytest.approx(found.smallest)
    assert found.trace.stderr < 1e-12


def test_density_out_of_products_is_said() -> None:
    found = spectral_density(objective(), 0.001, steps=10, max_products=25)
    assert not found.converged
    assert found.products == 20
    assert "NOT converged" in repr(found)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (hessian_trace, {"rtol": 0}, "rtol must be between 0 and 1"),
        (hessian_trace, {"max_products": 3}, "max_products must be at least 24"),
        (hessian_trace, {"curvature": "fisher"}, "curvature must be"),
        (spectral_density, {"rtol": 1}, "rtol must be between 0 and 1"),
        (spectral_density, {"steps": 1}, "steps must be at least 2, got 1"),
        (spectral_density, {"width": 0.0}, "width must be above 0"),
        (spectral_density, {"max_products": 60}, "must allow two probes"),
    ],
)
def test_bad_arguments_are_named(function: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(objective(), **arguments)
    with pytest.raises(TypeError, match=r"undertow\.Objective"):
        function(nn.Linear(1, 1))


def test_an_estimate_reads_like_a_sentence() -> None:
    text = repr(Estimate(12.5, 0.25, 40, True, (12.0, 13.0)))
    assert text == (
        "12.5 with standard error 0.25 (95% interval 12 to 13), converged after 40 products."
    )
