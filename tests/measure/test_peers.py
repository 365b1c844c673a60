"""Parity with peers, where they are installed: curvlinops and BackPACK, in float64."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from undertow.measure import hessian_trace, per_sample_gradient_norms, sharpness
from undertow.objective import Objective

NETS = {
    "perceptron": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ),
}
LOSSES = {
    "cross_entropy": (nn.CrossEntropyLoss(), lambda: torch.arange(20) % 3),
    "mse": (nn.MSELoss(), lambda: draw(2, 20, 3)),
}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(net: str, loss: str) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    model = NETS[net]().double()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(0.5 * draw(10 + seed, *parameter.shape))
    function, targets = LOSSES[loss]
    return model, function, draw(1, 20, 6), targets()


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize("net", NETS)
def test_products_traces_and_eigenvalues_are_those_of_curvlinops(net: str, loss_name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of its own dependencies
        curvlinops = pytest.importorskip("curvlinops")
    model, loss, inputs, targets = case(net, loss_name)
    objective = Objective(model, loss, (inputs, targets), microbatch=7)
    parameters = list(model.parameters())
    batches = [(inputs[rows], targets[rows]) for rows in (slice(12), slice(12, 20))]  # ragged
    block = draw(3, 4, objective.num_params)
    for kind, make in (
        ("hessian", curvlinops.HessianLinearOperator),
        ("ggn", curvlinops.GGNLinearOperator),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            operator = make(model, loss, parameters, batches, check_deterministic=False)
            expected = (operator @ block.T).T
            dense = operator @ torch.eye(objective.num_params, dtype=torch.float64)
        found = objective.hvp(block) if kind == "hessian" else objective.ggnvp(block)
        torch.testing.assert_close(found, expected)
        top = sharpness(objective, 3, 1e-6, curvature=kind).eigenvalues  # type: ignore[arg-type]
        torch.testing.assert_close(top, torch.linalg.eigvalsh(dense).flip(0)[:3], rtol=1e-6, atol=0)
    trace = hessian_trace(objective, curvature="ggn")  # exact for few outputs
    assert trace.value == pytest.approx(float(dense.trace()))


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize("net", NETS)
def test_gradient_norms_of_samples_are_those_of_backpack(net: str, loss_name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backpack = pytest.importorskip("backpack")
        extensions = pytest.importorskip("backpack.extensions")
    model, loss, inputs, targets = case(net, loss_name)
    found = per_sample_gradient_norms(Objective(model, loss, (inputs, targets)))
    body = nn.Sequential(*list(model)[1:]) if net == "convolution" else model
    shaped = inputs[:, None] if net == "convolution" else inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extended, its_loss = backpack.extend(body), backpack.extend(loss)
        with backpack.backpack(extensions.BatchL2Grad()):
            its_loss(extended(shaped), targets).backward()
    squares = torch.stack([parameter.batch_l2 for parameter in body.parameters()]).sum(0)
    # BackPACK's are of the summands of the mean, ours of the samples' own losses.
    torch.testing.assert_close(found.norms.square(), squares * 20**2)
