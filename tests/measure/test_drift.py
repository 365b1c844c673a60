"""Drift of Local SGD's clients: closed forms, averages by hand, and modules left as found."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from undertow.measure import local_drift
from undertow.models import mlp
from undertow.objective import Objective

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def clients(
    sizes: tuple[int, ...], count: int = 3, spread: float = 0.3, **kind: object
) -> tuple[list[nn.Sequential], list[tuple[Tensor, Tensor]]]:
    """Networks around a common one, and data of each."""
    models = []
    for k in range(count):
        model = mlp(sizes, generator=torch.Generator().manual_seed(9), **kind).double()
        for index, parameter in enumerate(model.parameters()):
            parameter.data += spread * draw(100 * k + index, *parameter.shape)
        models.append(model)
    data = [(draw(k, 11 + k, sizes[0]), draw(50 + k, 11 + k, sizes[-1])) for k in range(count)]
    return models, data


def averaged(models: list[nn.Sequential]) -> nn.Sequential:
    center = copy.deepcopy(models[0])
    columns = zip(*(model.parameters() for model in models), strict=True)
    for parameter, column in zip(center.parameters(), columns, strict=True):
        parameter.data = torch.stack([p.detach() for p in column]).mean(0)
    return center


def test_linear_regression_in_closed_form() -> None:
    models, data = clients((4, 2), bias=False)
    found = local_drift(
        models, [Objective(m, nn.MSELoss(), d) for m, d in zip(models, data, strict=True)]
    )
    mean = torch.stack([model[1].weight.detach() for model in models]).mean(0)
    for k, (model, (x, y)) in enumerate(zip(models, data, strict=True)):
        difference = model[1].weight.detach() - mean
        # The mean runs over samples and outputs: Hess = 2 X'X / (n outputs).
        drift = 2 * (difference @ x.T @ x).norm() / y.numel()
        norm = (2 * (x @ mean.T - y).T @ x / y.numel()).norm()
        assert float(found.gradient_drift[k]) == pytest.approx(float(drift))
        assert float(found.gradient_norm[k]) == pytest.approx(float(norm))
        assert float(found.relative_drift[k]) == pytest.approx(float(drift / norm))
        assert float(found.parameter_distance[k]) == pytest.approx(float(difference.norm()))
    assert found.flip_fraction.isnan().all()


@pytest.mark.parametrize("batch", [None, 4])
def test_a_relu_network_against_autograd_and_counted_signs(batch: int | None) -> None:
    models, data = clients((4, 7, 6, 2))
    center = averaged(models)
    objectives = [
        Objective(m, nn.MSELoss(), d, microbatch=batch) for m, d in zip(models, data, strict=True)
    ]
    found = local_drift(models, objectives)
    for k, (model, (x, y)) in enumerate(zip(models, data, strict=True)):
        gradients, signs = [], []
        for network in (model, center):
            loss = nn.functional.mse_loss(network(x), y)
            parts = torch.autograd.grad(loss, list(network.parameters()))
            gradients.append(torch.cat([part.flatten() for part in parts]))
            hidden = [network[:2](x), network[:4](x)]
            signs.append(torch.cat([h.detach() > 0 for h in hidden], 1))
        drift = (gradients[0] - gradients[1]).norm()
        assert float(found.gradient_drift[k]) == pytest.approx(float(drift))
        expected = float((signs[0] != signs[1]).double().mean())
        assert 0 < expected < 1
        assert float(found.flip_fraction[k]) == pytest.approx(expected)


def test_equal_clients_do_not_drift_and_small_steps_drift_in_proportion() -> None:
    models, data = clients((4, 8, 2), spread=0.0)
    objectives = [Objective(m, nn.MSELoss(), d) for m, d in zip(models, data, strict=True)]
    still = local_drift(models, objectives)
    assert float(still.gradient_drift.max()) < 1e-14
    assert not still.flip_fraction.any()
    drifts = []
    for spread in (1e-6, 2e-6):
        moved, _ = clients((4, 8, 2), spread=spread)
        drifts.append(local_drift(moved, objectives))
    assert not drifts[0].flip_fraction.any()
    torch.testing.assert_close(
        2 * drifts[0].gradient_drift, drifts[1].gradient_drift, rtol=1e-4, atol=0
    )
    assert repr(still).startswith("LocalDrift of 3 clients from their average: relative gradient")


def test_a_sign_that_always_flips() -> None:
    models = [mlp((1, 1, 1), bias=False).double() for _ in range(3)]
    for model, weight in zip(models, (-1.0, 2.0, 2.0), strict=True):
        model[1].weight.data.fill_(weight)
    data = (draw(0, 8, 1), draw(1, 8, 1))
    found = local_drift(models, [Objective(m, nn.MSELoss(), data) for m in models])
    assert found.flip_fraction.tolist() == [1.0, 0.0, 0.0]


def test_batch_norm_keeps_the_clients_own_statistics() -> None:
    models, data = clients((4, 6, 2), batch_norm=True)
    for k, model in enumerate(models):
        model[2].running_mean.copy_(draw(k, 6))
    found = local_drift(
        models, [Objective(m, nn.MSELoss(), d) for m, d in zip(models, data, strict=True)]
    )
    center = averaged(models)
    center[2].load_state_dict({**center[2].state_dict(), "running_mean": models[1][2].running_mean})
    expected = Objective(center, nn.MSELoss(), data[1]).gradient().norm()
    assert float(found.gradient_norm[1]) == pytest.approx(float(expected))


def test_the_objectives_parameters_and_their_own_model_are_respected() -> None:
    models, data = clients((4, 6, 2))
    shared = copy.deepcopy(models[0])
    names = ["3.weight"]
    own = [Objective(m, nn.MSELoss(), d, params=names) for m, d in zip(models, data, strict=True)]
    one = [Objective(shared, nn.MSELoss(), d, params=names) for d in data]
    first, second = local_drift(models, own), local_drift(models, one)
    assert torch.equal(first.gradient_drift, second.gradient_drift)
    whole = [Objective(m, nn.MSELoss(), d) for m, d in zip(models, data, strict=True)]
    assert (first.gradient_drift < local_drift(models, whole).gradient_drift).all()


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp((3, 4, 2), batch_norm=True).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("fails", [False, True])
def test_the_modules_are_left_as_found(fails: bool) -> None:
    models = [Failing(), Failing()]
    models[1].body[2].eval()
    models[0].body[1].weight.grad = torch.ones(4, 3, dtype=torch.float64)
    states = [copy.deepcopy(model.state_dict()) for model in models]
    modes = [[part.training for part in model.modules()] for model in models]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if fails:
            raise RuntimeError("midway")
        return (outputs - targets).square().mean()

    objectives = [Objective(model, loss, (draw(0, 5, 3), draw(1, 5, 2))) for model in models]
    if fails:
        with pytest.raises(RuntimeError, match="midway"):
            local_drift(models, objectives)
    else:
        local_drift(models, objectives)
    for model, state, mode in zip(models, states, modes, strict=True):
        assert [part.training for part in model.modules()] == mode
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert float(models[0].body[1].weight.grad.sum()) == 12
    assert models[1].body[1].weight.grad is None


def test_bad_input_says_what_would_do() -> None:
    models, data = clients((4, 6, 2))
    objectives = [Objective(m, nn.MSELoss(), d) for m, d in zip(models, data, strict=True)]
    with pytest.raises(ValueError, match="at least two, got 1 and 1"):
        local_drift(models[:1], objectives[:1])
    with pytest.raises(ValueError, match="got 3 and 2"):
        local_drift(models, objectives[:2])
    with pytest.raises(
        TypeError, match=r"objectives\[1\] must be an undertow.Objective, got Sequential"
    ):
        local_drift(models, [objectives[0], models[1], objectives[2]])
    other = mlp((4, 5, 2)).double()
    with pytest.raises(ValueError, match=r"parameter 1.weight of models\[2\]"):
        local_drift([*models[:2], other], objectives)


def test_ragged_batches_class_weights_and_ignored_labels_do_not_matter() -> None:
    models, _ = clients((4, 6, 3))
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.5]).double(), ignore_index=2)
    labels = [torch.arange(11 + k) % 3 for k in range(3)]
    data = [(draw(k, 11 + k, 4), labels[k]) for k in range(3)]
    ragged = [list(zip(x.split(4), y.split(4), strict=True)) for x, y in data]
    whole, split = (
        local_drift(models, [Objective(m, loss, d) for m, d in zip(models, given, strict=True)])
        for given in (data, ragged)
    )
    torch.testing.assert_close(whole.gradient_drift, split.gradient_drift)
    torch.testing.assert_close(whole.relative_drift, split.relative_drift)
    assert torch.equal(whole.flip_fraction, split.flip_fraction)


def test_the_relu_of_a_transformer_layer_is_seen() -> None:
    with torch.random.fork_rng():
        layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, batch_first=True).double()
    models = [layer, copy.deepcopy(layer)]
    for index, parameter in enumerate(models[1].parameters()):
        parameter.data += 0.5 * draw(index, *parameter.shape)
    center = averaged(models)
    data = [(draw(k, 5, 3, 4), draw(9 + k, 5, 3, 4)) for k in range(2)]
    found = local_drift(models, [Objective(layer, nn.MSELoss(), pair) for pair in data])
    for model, (x, _), fraction in zip(models, data, found.flip_fraction, strict=True):
        signs = []
        for module in (model, center):
            caught: list[Tensor] = []
            handle = module.linear1.register_forward_hook(
                lambda layer, args, output, caught=caught: caught.append(output > 0)
            )
            with torch.no_grad():
                copy.deepcopy(module).eval()(x)
            handle.remove()
            signs.append(caught[0])
        assert 0 < float(fraction) == pytest.approx(float((signs[0] != signs[1]).double().mean()))
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_network_without_relu_says_so() -> None:
    models, data = clients((3, 4, 2), activation="identity")
    found = local_drift(
        models, [Objective(m, nn.MSELoss(), d) for m, d in zip(models, data, strict=True)]
    )
    assert found.flip_fraction.isnan().all()
    assert "no ReLU" in repr(found)
