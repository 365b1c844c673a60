"""The noise covariance against the dense one in float64."""

from __future__ import annotations

import pytest
import torch
from noise_cases import LOSSES, NETS, SAMPLES, covariance, dense, draw, labels, network
from torch import Tensor, nn

from undertow.measure import noise_covariance
from undertow.objective import Objective


def objective_of(net: str, loss: str = "cross_entropy", **options: int) -> Objective:
    function, targets = LOSSES[loss]
    return Objective(network(net), function, (NETS[net][1](), targets()), **options)


def dense_of(objective: Objective, net: str, loss: str = "cross_entropy") -> Tensor:
    return covariance(*dense(objective, NETS[net][1](), LOSSES[loss][1]()))


@pytest.mark.parametrize("microbatch", [None, 4])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("net", NETS)
def test_products_are_the_dense_ones(net: str, loss: str, microbatch: int | None) -> None:
    options = {} if microbatch is None else {"microbatch": microbatch}
    objective = objective_of(net, loss, **options)
    expected = dense_of(objective, net, loss)
    found = noise_covariance(objective)
    block = draw(1, 3, len(expected))
    torch.testing.assert_close(found.product(block), block @ expected, rtol=1e-8, atol=1e-10)
    assert found.trace == pytest.approx(float(expected.trace()))
    assert found.num_samples == SAMPLES


@pytest.mark.parametrize("k", [1, 3, SAMPLES - 1])
def test_eigenpairs(k: int) -> None:
    objective = objective_of("perceptron")
    expected = dense_of(objective, "perceptron")
    found = noise_covariance(objective).eigenpairs(k, rtol=1e-8)
    values = torch.linalg.eigvalsh(expected).flip(0)[:k]
    torch.testing.assert_close(found.eigenvalues, values, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(k).double())
    residuals = (found.vectors @ expected - found.eigenvalues[:, None] * found.vectors).norm(dim=1)
    torch.testing.assert_close(found.residuals, residuals, rtol=1e-3, atol=1e-10)
    assert found.converged


def test_eigenvalues_beyond_the_rank_are_zero() -> None:
    inputs, targets = draw(0, 2, 6).repeat_interleave(5, 0), torch.arange(10) // 5
    net = nn.Linear(6, 3).double()
    operator = noise_covariance(Objective(net, nn.CrossEntropyLoss(), (inputs, targets)))
    pairs = operator.eigenpairs(4)
    assert pairs.converged
    torch.testing.assert_close(float(pairs.eigenvalues[0]), operator.trace)
    assert pairs.eigenvalues[1:].abs().max() < 1e-12 * operator.trace
    identity = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(pairs.vectors @ pairs.vectors.mT, identity)


def test_eigenpairs_stop_on_their_residuals_or_say_that_they_ran_out() -> None:
    samples = draw(2, 300, 60) * torch.linspace(1, 2, 60)
    net = nn.Linear(60, 1, bias=False).double()
    objective = Objective(net, lambda outputs, _: outputs[:, 0], (samples, torch.zeros(300)))
    operator = noise_covariance(objective)
    values = torch.linalg.eigvalsh(samples.T.cov()).flip(0)
    rough, fine = (operator.eigenpairs(2, rtol=rtol) for rtol in (1e-1, 1e-5))
    assert rough.converged
    assert fine.converged
    assert rough.products < fine.products
    for found in (rough, fine):
        assert torch.all((found.eigenvalues - values[:2]).abs() <= found.residuals * 1.001)
    short = operator.eigenpairs(2, rtol=1e-8, max_products=8)
    assert not short.converged
    assert short.products <= 8
    assert "not converged" in repr(short)


@pytest.mark.slow
def test_draws_have_the_covariance() -> None:
    objective = objective_of("perceptron", "weights and gaps")
    expected = dense_of(objective, "perceptron", "weights and gaps")
    generator = torch.Generator().manual_seed(0)
    drawn = noise_covariance(objective).draws(20_000, generator=generator)
    found = drawn.T @ drawn / len(drawn)
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_alignment_with_a_known_curvature() -> None:
    objective = objective_of("perceptron")
    sigma = dense_of(objective, "perceptron")
    root = draw(3, len(sigma), len(sigma))
    bent = root @ root.T / 100 + 3 * sigma
    found = noise_covariance(objective).alignment(
        lambda block: block @ bent, atol=0.01, max_products=4000
    )
    product = float((sigma * bent).sum())
    cosine = product / float(sigma.norm() * bent.norm())
    assert found.converged
    assert found.cosine_stderr <= 0.01
    assert abs(found.cosine - cosine) < 4 * found.cosine_stderr
    assert abs(found.trace_product - product) < 4 * found.trace_product_stderr
    assert found.noise_curvature == pytest.approx(product / float(sigma.trace()), rel=0.2)
    assert found.mean_curvature == pytest.approx(float(bent.trace()) / len(bent), rel=0.2)


def test_noise_is_aligned_with_itself_and_with_the_hessian_of_a_fitted_regression() -> None:
    inputs = draw(4, 60, 4) * torch.tensor([3.0, 1.0, 0.3, 0.1])
    net = nn.Linear(4, 1, bias=False).double()
    # Residuals of constant size: Sigma is proportional to the Hessian.
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(30)[:, None]
    targets = net(inputs).detach() + signs
    objective = Objective(net, nn.MSELoss(), (inputs, targets))
    operator = noise_covariance(objective)
    for product in (operator.product, objective.hvp):
        found = operator.alignment(product, max_products=2048)
        assert found.cosine == pytest.approx(1, abs=0.1)
        assert found.noise_curvature > found.mean_curvature


def test_budget_of_the_alignment() -> None:
    operator = noise_covariance(objective_of("perceptron"))
    found = operator.alignment(lambda block: block, atol=1e-9, max_products=70)
    assert not found.converged
    assert found.products == 64
    assert found.mean_curvature == pytest.approx(1, rel=0.2)
    assert "not converged" in repr(found)


def test_no_curvature_has_no_angle() -> None:
    found = noise_covariance(objective_of("perceptron")).alignment(torch.zeros_like)
    assert found.cosine == 0
    assert found.trace_product == 0


def test_a_parameter_that_is_not_used_has_no_noise() -> None:
    net = nn.ModuleDict({"used": nn.Linear(6, 4), "idle": nn.Linear(2, 2)}).double()
    net.forward = lambda inputs: net["used"](inputs)  # type: ignore[method-assign]
    inputs = NETS["perceptron"][1]()
    operator = noise_covariance(Objective(net, nn.CrossEntropyLoss(), (inputs, labels())))
    found = operator.product(torch.ones(1, 34, dtype=torch.float64))
    assert torch.all(found[0, 28:] == 0)
    assert torch.any(found[0, :28] != 0)


def test_products_go_on_from_the_graphs_of_the_first_one() -> None:
    passes = 0

    class Counting(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            return super().forward(inputs)

    net = Counting(6, 4).double()
    objective = Objective(net, nn.CrossEntropyLoss(), (draw(1, SAMPLES, 6), labels()), microbatch=4)
    operator, block = noise_covariance(objective), draw(2, 3, 28)
    first = operator.product(block)
    passes = 0
    torch.testing.assert_close(operator.product(block), first)
    torch.testing.assert_close(operator.product(block[:0]), block[:0])
    assert passes == 0


def test_half_precision_runs_in_single() -> None:
    net, inputs = network("perceptron").bfloat16(), NETS["perceptron"][1]().bfloat16()
    found = noise_covariance(Objective(net, nn.CrossEntropyLoss(), (inputs, labels())))
    exact = noise_covariance(objective_of("perceptron")).eigenpairs(2)
    values = found.eigenpairs(2).eigenvalues
    torch.testing.assert_close(values, exact.eigenvalues, rtol=0.05, atol=0)


def test_bad_input() -> None:
    operator = noise_covariance(objective_of("perceptron"))
    with pytest.raises(ValueError, match=r"block must be \[directions"):
        operator.product(torch.zeros(3))
    with pytest.raises(ValueError, match="block holds NaN"):
        operator.product(torch.full((1, len(operator.gradient)), torch.nan))
    with pytest.raises(ValueError, match="rtol must be between 0 and 1, got -1"):
        operator.eigenpairs(1, rtol=-1.0)
    with pytest.raises(TypeError, match="k must be a whole number, got True"):
        operator.eigenpairs(True)
    with pytest.raises(ValueError, match="max_products must be at least k = 3, got 2"):
        operator.eigenpairs(3, max_products=2)
    with pytest.raises(ValueError, match="k must be at most min"):
        operator.eigenpairs(SAMPLES)
    one = Objective(network("perceptron"), nn.CrossEntropyLoss(), (draw(1, 1, 6), labels()[:1]))
    with pytest.raises(ValueError, match="one sample"):
        noise_covariance(one)
