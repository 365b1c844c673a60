"""Per-sample gradient norms against the per-sample gradients themselves, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_cases import (
    CLASSES,
    LOSSES,
    NETS,
    SAMPLES,
    VMAPPED,
    dense,
    draw,
    labels,
    network,
    whole,
)
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from undertow.measure import gradient_noise, noise_covariance, per_sample_gradient_norms
from undertow.objective import Objective


@pytest.mark.parametrize("microbatch", [None, 4])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("net", NETS)
def test_norms_are_those_of_the_gradients(net: str, loss: str, microbatch: int | None) -> None:
    function, targets = LOSSES[loss]
    inputs = NETS[net][1]()
    objective = Objective(network(net), function, (inputs, targets()), microbatch=microbatch)
    found = per_sample_gradient_norms(objective)
    gradients, _ = dense(objective, inputs, targets())
    torch.testing.assert_close(found.norms, gradients.norm(dim=1), rtol=1e-10, atol=1e-12)
    sizes = [p.numel() for p in objective.model.parameters()]
    for name, part in zip(objective.param_names, gradients.split(sizes, 1), strict=True):
        expected = part.square().sum(1)
        torch.testing.assert_close(found.squares[name], expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(found.gradient, gradients.mean(0), rtol=1e-9, atol=1e-14)
    assert set(found.vmapped) == VMAPPED.get(net, set())
    assert ("were written down" in repr(found)) == (net in VMAPPED)


@settings(max_examples=40, deadline=None)
@given(
    times=st.integers(1, 9),
    width=st.integers(1, 9),
    height=st.integers(1, 9),
    samples=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
def test_linear_layers_of_any_shape(
    times: int, width: int, height: int, samples: int, seed: int
) -> None:
    net = nn.Sequential(nn.Linear(width, height), nn.Tanh(), nn.Flatten(), SumTo(2)).double()
    inputs = draw(seed, samples, times, width)
    objective = Objective(net, nn.MSELoss(), (inputs, draw(seed + 1, samples, 2)))
    gradients, _ = dense(objective, inputs, draw(seed + 1, samples, 2))
    found = per_sample_gradient_norms(objective)
    torch.testing.assert_close(found.norms, gradients.norm(dim=1), rtol=1e-9, atol=1e-12)
    assert not found.vmapped


@settings(max_examples=30, deadline=None)
@given(
    taps=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**16),
)
def test_convolutions_of_any_shape(
    taps: int, stride: int, padding: int, dilation: int, groups: int, seed: int
) -> None:
    layer = nn.Conv1d(4, 6, taps, stride, padding, dilation, groups)
    net = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), SumTo(2)).double()
    inputs, targets = draw(seed, 5, 4, 9), draw(seed + 1, 5, 2)
    objective = Objective(net, nn.MSELoss(), (inputs, targets))
    gradients, _ = dense(objective, inputs, targets)
    found = per_sample_gradient_norms(objective)
    torch.testing.assert_close(found.norms, gradients.norm(dim=1), rtol=1e-9, atol=1e-12)
    assert not found.vmapped


class SumTo(nn.Module):
    """So many sums of a vector's entries, with fixed weights."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ torch.linspace(-1, 1, inputs.shape[1] * self.size).to(inputs).reshape(
            inputs.shape[1], self.size
        )


def test_samples_and_times_of_equal_number_are_told_apart() -> None:
    inputs = whole(3, 9, 2, 2)
    net = Times(2).double()
    objective = Objective(net, nn.CrossEntropyLoss(), (inputs, labels()[:2]))
    gradients, _ = dense(objective, inputs, labels()[:2])
    found = per_sample_gradient_norms(objective)
    torch.testing.assert_close(found.norms, gradients.norm(dim=1), rtol=1e-9, atol=1e-12)


class Times(nn.Module):
    """Linear layers that see the samples on their second axis."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.layer = nn.Linear(6, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(self.table(tokens.T)).tanh().sum(0)


def test_a_subset_of_the_parameters() -> None:
    inputs = NETS["convolutional"][1]()
    net = network("convolutional")
    objective = Objective(net, nn.CrossEntropyLoss(), (inputs, labels()), params=["4.weight"])
    found = per_sample_gradient_norms(objective)
    everything = per_sample_gradient_norms(Objective(net, objective.loss, (inputs, labels())))
    torch.testing.assert_close(found.norms.square(), everything.squares["4.weight"])


def test_small_gradients_keep_their_norm_in_single_precision() -> None:
    net, inputs = nn.Linear(3, 1), torch.rand(4, 3)
    objective = Objective(net, lambda outputs, _: 1e-30 * outputs[:, 0], (inputs, torch.zeros(4)))
    expected = 1e-30 * (inputs.double().square().sum(1) + 1).sqrt()
    torch.testing.assert_close(
        per_sample_gradient_norms(objective).norms, expected, rtol=1e-5, atol=0
    )


def test_half_precision() -> None:
    inputs = NETS["perceptron"][1]().bfloat16()
    net = network("perceptron").bfloat16()
    objective = Objective(net, nn.CrossEntropyLoss(), (inputs, labels()))
    exact = Objective(network("perceptron"), nn.CrossEntropyLoss(), (inputs.double(), labels()))
    found = per_sample_gradient_norms(objective).norms
    torch.testing.assert_close(found, per_sample_gradient_norms(exact).norms, rtol=0.1, atol=0.05)


def test_batches_of_keyword_arguments() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4).double()
            self.own = nn.Parameter(torch.ones(4, 4, dtype=torch.float64))

        def forward(self, *, numbers: Tensor) -> dict[str, Tensor]:
            return {"logits": self.layer(numbers) @ self.own}

    net, inputs = Named(), draw(1, SAMPLES, 6)
    found = per_sample_gradient_norms(
        Objective(net, nn.CrossEntropyLoss(), [{"numbers": inputs, "labels": labels()}])
    )
    plain = nn.Sequential(net.layer, Product(net.own))
    expected, _ = dense(
        Objective(plain, nn.CrossEntropyLoss(), (inputs, labels())), inputs, labels()
    )
    torch.testing.assert_close(found.norms, expected.norm(dim=1), rtol=1e-9, atol=1e-12)
    assert found.vmapped == ("own",)


class Doubled(torch.autograd.Function):
    """A product by a function of the user's own, which PyTorch does not announce."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return 2 * x @ weight

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return 2 * delta @ weight.T, 2 * x.T @ delta


def test_parameters_of_a_function_of_the_users_own() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(draw(0, 6, CLASSES))

        def forward(self, x: Tensor) -> Tensor:
            return Doubled.apply(x, self.weight)

    inputs, targets, net = draw(1, SAMPLES, 6), labels(), Own()
    objective = Objective(net, nn.CrossEntropyLoss(), (inputs, targets))
    found = per_sample_gradient_norms(objective)
    gradients, _ = dense(objective, inputs, targets)
    torch.testing.assert_close(found.norms, gradients.norm(dim=1))
    assert found.vmapped == ("weight",)


def test_batches_hold_other_things_than_tensors() -> None:
    class Flagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Parameter(draw(0, 6, CLASSES))

        def forward(self, x: Tensor, doubled: bool) -> Tensor:
            return x @ self.own * (2 if doubled else 1)

    inputs, targets, loss = draw(1, SAMPLES, 6), labels(), nn.CrossEntropyLoss()
    flagged = Objective(Flagged(), loss, [({"x": inputs, "doubled": True}, targets)])
    plain = nn.Linear(6, CLASSES, bias=False).double()
    plain.weight.data = flagged.model.own.detach().T
    expected = per_sample_gradient_norms(Objective(plain, loss, (2 * inputs, targets))).norms
    found = per_sample_gradient_norms(flagged)
    torch.testing.assert_close(found.norms, expected)
    assert found.vmapped == ("own",)


class Product(nn.Module):
    """A matrix product with a weight of its own."""

    def __init__(self, own: nn.Parameter) -> None:
        super().__init__()
        self.own = own

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.own


def state(net: nn.Module) -> list[Any]:
    return [
        [tensor.clone() for tensor in net.state_dict().values()],
        [module.training for module in net.modules()],
        [p.requires_grad for p in net.parameters()],
        [None if p.grad is None else p.grad.clone() for p in net.parameters()],
    ]


@pytest.mark.parametrize("measure", [per_sample_gradient_norms, gradient_noise, noise_covariance])
@pytest.mark.parametrize("broken", [False, True])
def test_nothing_of_the_model_changes(
    measure: Any, broken: bool, global_rng_untouched: None
) -> None:
    net = network("encoder")
    net.head.weight.grad = torch.ones_like(net.head.weight)
    net.head.bias.requires_grad_(False)
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if broken and calls > 2:
            raise RuntimeError("broken")
        return nn.functional.cross_entropy(outputs, targets)

    before = state(net)
    objective = Objective(net, loss, (NETS["encoder"][1](), labels()), microbatch=4)
    if broken:
        with pytest.raises(RuntimeError, match="broken"):
            measure(objective)
    else:
        measure(objective)
    torch.testing.assert_close(state(net), before, rtol=0, atol=0)
    assert not net.table._forward_hooks
    assert not _get_current_function_mode_stack()


def test_samples_that_share_statistics_have_no_gradient_of_their_own() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False)).double()
    objective = Objective(net, nn.CrossEntropyLoss(), (draw(1, SAMPLES, 6), labels()))
    with pytest.raises(ValueError, match="1 normalises by the batch's statistics"):
        per_sample_gradient_norms(objective)


def test_outputs_without_samples_are_refused() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4).double()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs).mean(0)

    objective = Objective(
        Mean(), lambda outputs, _: outputs.square().mean(), (draw(1, SAMPLES, 6), labels())
    )
    with pytest.raises(ValueError, match="samples influence each other"):
        per_sample_gradient_norms(objective)


def test_errors_of_the_objective_come_through() -> None:
    net, inputs = network("perceptron"), NETS["perceptron"][1]()
    with pytest.raises(ValueError, match="labels must be 0 to 3"):
        per_sample_gradient_norms(Objective(net, nn.CrossEntropyLoss(), (inputs, labels() + 3)))
    ignored = torch.full((SAMPLES,), -100)
    with pytest.raises(ValueError, match="no target counts"):
        per_sample_gradient_norms(Objective(net, nn.CrossEntropyLoss(), (inputs, ignored)))
    detached = Objective(net, lambda outputs, _: outputs.detach().sum(1), (inputs, labels()))
    with pytest.raises(ValueError, match="depends on none of the parameters"):
        per_sample_gradient_norms(detached)
