"""`Objective` against plain autograd in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from objective_cases import (
    BATCHINGS,
    CASES,
    CLASSES,
    FEATURES,
    SAMPLES,
    class_weight,
    draw,
    labels,
    labels_with_gaps,
    network,
    per_sample,
)
from torch import Tensor, nn
from torch.nn import functional

from left_as_found import same, snapshot
from undertow.objective import Objective, as_sum_and_count


def reference(
    net: nn.Module, loss: Callable[..., Any], inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    net = copy.deepcopy(net).eval()
    value = loss(net(inputs), targets).mean()
    gradients = torch.autograd.grad(value, list(net.parameters()))
    return value.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("microbatch", [None, 4])
def test_value_and_gradient_are_those_of_autograd_on_the_whole_batch(
    case: str, batching: str, microbatch: int | None
) -> None:
    loss, make_targets = CASES[case]
    inputs, targets, net = draw(1, SAMPLES, FEATURES), make_targets(), network()
    objective = Objective(net, loss, BATCHINGS[batching](inputs, targets), microbatch=microbatch)
    value, gradient = reference(net, loss, inputs, targets)
    before = snapshot(net)
    torch.testing.assert_close(objective.value(), value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(objective.gradient(), gradient, rtol=1e-10, atol=1e-13)
    assert same(snapshot(net), before)
    assert objective.num_samples == SAMPLES
    assert objective.num_params == len(gradient)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_predictions_are_the_outputs_in_eval_mode(batching: str) -> None:
    inputs, net = draw(1, SAMPLES, FEATURES), network()
    objective = Objective(
        net, nn.CrossEntropyLoss(), BATCHINGS[batching](inputs, labels()), microbatch=4
    )
    expected = copy.deepcopy(net).eval()(inputs).detach()
    found = objective.predictions()
    assert not found.requires_grad
    if batching == "shuffled":
        assert not torch.equal(found, expected)
        torch.testing.assert_close(objective.predictions(), found)
        found, expected = found.sort(0).values, expected.sort(0).values
    torch.testing.assert_close(found, expected)


def test_per_position_labels_are_averaged_over_positions_that_count() -> None:
    net = nn.Conv1d(2, CLASSES, 3, padding=1).double()
    inputs = draw(0, 10, 2, 6)
    targets = torch.randint(CLASSES, (10, 6), generator=torch.Generator().manual_seed(0))
    targets[3:5] = -100
    loss = nn.CrossEntropyLoss(weight=class_weight)
    objective = Objective(net, loss, (inputs, targets), microbatch=3)
    value, gradient = reference(net, loss, inputs, targets)
    torch.testing.assert_close(objective.value(), value)
    torch.testing.assert_close(objective.gradient(), gradient)


def test_params_select_a_part_of_the_gradient() -> None:
    inputs, targets, net = draw(1, SAMPLES, FEATURES), labels(), network()
    loss, data = nn.CrossEntropyLoss(), (inputs, targets)
    _, full = reference(net, loss, inputs, targets)
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    parts = dict(zip(sizes, full.split(list(sizes.values())), strict=True))

    by_name = Objective(net, loss, data, params=["4.bias", "0.weight"])
    assert by_name.param_names == ("0.weight", "4.bias")
    torch.testing.assert_close(by_name.gradient(), torch.cat([parts["0.weight"], parts["4.bias"]]))
    by_function = Objective(net, loss, data, params=lambda name, p: p.ndim == 2)
    assert by_function.param_names == ("0.weight", "4.weight")
    net[4].requires_grad_(False)
    assert "4.weight" not in Objective(net, loss, data).param_names
    frozen = Objective(net, loss, data, params=["4.weight"])
    torch.testing.assert_close(frozen.gradient(), parts["4.weight"])
    assert not net[4].weight.requires_grad


def test_parameter_without_influence_has_gradient_zero() -> None:
    net = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 3)})
    net.forward = lambda x: net["used"](x)  # type: ignore[method-assign]
    gradient = Objective(net, nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 2))).gradient()
    assert gradient[:6].abs().sum() > 0
    assert gradient[6:].tolist() == [0.0] * 9


def test_tied_parameters_are_one_parameter() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    net[2].weight = net[0].weight
    inputs, targets = draw(0, 6, 3), draw(1, 6, 3)
    objective = Objective(net, nn.MSELoss(), (inputs, targets), microbatch=4)
    assert objective.num_params == 15
    _, gradient = reference(net, nn.MSELoss(), inputs, targets)
    torch.testing.assert_close(objective.gradient(), gradient)


class Hungry(nn.Linear):
    """Runs out of memory above a number of samples."""

    room = 3
    largest = 0  # the class's: what a module writes to itself in a forward pass is not kept

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.cuda.OutOfMemoryError("out of memory")
        Hungry.largest = max(Hungry.largest, len(x))
        return super().forward(x)


LossChange = Callable[[nn.CrossEntropyLoss], Any]


CHANGES: dict[str, LossChange] = {
    "in place": lambda loss: loss.weight.mul_(torch.arange(4) + 1),  # type: ignore[union-attr]
    "by data": lambda loss: loss.weight.data.mul_(torch.arange(4) + 1),  # type: ignore[union-attr]
    "option": lambda loss: setattr(loss, "label_smoothing", 0.4),
    "ignored": lambda loss: setattr(loss, "ignore_index", 1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", ["hvp", "ggnvp"])
def test_products_follow_the_loss(change: str, method: str) -> None:
    net, loss = network(), nn.CrossEntropyLoss(class_weight.clone())
    data = draw(0, SAMPLES, FEATURES), labels()
    objective = Objective(net, loss, data)
    block = draw(1, 2, objective.num_params)
    before = getattr(objective, method)(block)
    CHANGES[change](loss)
    found = getattr(objective, method)(block)
    assert not torch.allclose(found, before)
    torch.testing.assert_close(found, getattr(Objective(net, loss, data), method)(block))


def test_lists_may_grow_and_shrink() -> None:
    x, y = draw(0, SAMPLES, FEATURES), labels()
    net, batches = network(), list(zip(x.split(6), y.split(6), strict=True))
    objective = Objective(net, nn.CrossEntropyLoss(), batches)
    assert objective.num_samples == SAMPLES
    batches.pop()
    assert objective.num_samples == 18
    found, expected = (
        each.sample_noise(3, batch_size=2, generator=torch.Generator().manual_seed(0))
        for each in (objective, Objective(net, nn.CrossEntropyLoss(), (x[:18], y[:18])))
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "words",
    [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.",
        "CUDA error: out of memory",
        "MPS backend out of memory (MPS allocated: 8 GB)",
        "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
    ],
)
def test_any_word_for_out_of_memory_halves_the_microbatch(words: str) -> None:
    class Narrow(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 3:
                raise RuntimeError(words)
            return super().forward(x)

    inputs, targets = draw(0, SAMPLES, FEATURES), labels_with_gaps()
    net = Narrow(FEATURES, CLASSES).double()
    plain = nn.Linear(FEATURES, CLASSES).double()
    plain.load_state_dict(net.state_dict())
    loss = nn.CrossEntropyLoss(class_weight)
    found, expected = (Objective(each, loss, (inputs, targets)) for each in (net, plain))
    block = draw(1, 2, found.num_params)
    torch.testing.assert_close(found.gradient(), expected.gradient())
    torch.testing.assert_close(found.hvp(block), expected.hvp(block))
    assert found.ggn_trace() == pytest.approx(expected.ggn_trace())


@pytest.mark.parametrize("batching", ["tensors", "list"])
def test_out_of_memory_halves_the_microbatch_and_goes_on(batching: str) -> None:
    inputs, targets = draw(0, SAMPLES, FEATURES), labels()
    net = Hungry(FEATURES, CLASSES).double()
    Hungry.largest = 0
    objective = Objective(net, nn.CrossEntropyLoss(), BATCHINGS[batching](inputs, targets))
    plain = functional.cross_entropy(functional.linear(inputs, net.weight, net.bias), targets)
    torch.testing.assert_close(objective.value(), plain.detach())
    torch.testing.assert_close(
        objective.predictions(), functional.linear(inputs, net.weight, net.bias).detach()
    )
    assert 2 <= Hungry.largest <= 3
    net.room = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        objective.value()


def test_batches_come_in_microbatches_in_order() -> None:
    inputs, targets = draw(0, SAMPLES, FEATURES), labels()
    objective = Objective(network(), nn.CrossEntropyLoss(), (inputs, targets), microbatch=10)
    pieces = list(objective.batches())
    assert [len(x) for x, _ in pieces] == [10, 10, 3]
    assert torch.equal(torch.cat([x for x, _ in pieces]), inputs)
    assert torch.equal(torch.cat([y for _, y in pieces]), targets)


def test_repr_says_what_is_frozen() -> None:
    text = repr(Objective(network(), nn.CrossEntropyLoss(), (draw(0, 3, FEATURES), labels()[:3])))
    assert text.startswith("Objective: the mean of CrossEntropyLoss of Sequential over 3 samples")
    assert "batch-norm statistics frozen, dropout off" in text


def test_sum_and_count_add_up_over_any_split() -> None:
    outputs, targets = draw(0, SAMPLES, CLASSES), labels_with_gaps()
    for loss in (nn.CrossEntropyLoss(weight=class_weight), per_sample, nn.CrossEntropyLoss()):
        chosen = labels() if loss is per_sample else targets
        sum_and_count = as_sum_and_count(loss)
        whole = sum_and_count(outputs, chosen, SAMPLES)
        parts = [
            sum_and_count(o, t, len(o))
            for o, t in zip(outputs.split(5), chosen.split(5), strict=True)
        ]
        for index in range(2):
            torch.testing.assert_close(sum(part[index] for part in parts), whole[index])
