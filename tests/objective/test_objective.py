"""`Objective` against plain autograd in float64, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from undertow.objective import Objective, as_sum_and_count

SAMPLES, FEATURES, CLASSES = 23, 5, 4


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(outputs: int = CLASSES) -> nn.Sequential:
    """A net with batch norm and dropout in training mode, initialised away from zero."""
    net = nn.Sequential(
        nn.Linear(FEATURES, 6),
        nn.BatchNorm1d(6),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(6, outputs),
    ).double()
    with torch.no_grad():
        for seed, tensor in enumerate(net.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(draw(seed, *tensor.shape).abs() + 0.1)
    return net.train()


def labels() -> Tensor:
    return torch.randint(CLASSES, (SAMPLES,), generator=torch.Generator().manual_seed(9))


def labels_with_gaps() -> Tensor:
    found = labels()
    found[:7] = -100  # whole microbatches of nothing but ignored labels
    return found


def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def probabilities() -> Tensor:
    return draw(8, SAMPLES, CLASSES).softmax(1)


class LogNLL(nn.NLLLoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input.log_softmax(1), target)


class_weight = torch.tensor([0.2, 1.0, 3.0, 0.7], dtype=torch.float64)
CASES: dict[str, tuple[Callable[..., Any], Callable[[], Tensor]]] = {
    "cross_entropy": (nn.CrossEntropyLoss(), labels),
    "function": (functional.cross_entropy, labels_with_gaps),
    "weights": (nn.CrossEntropyLoss(weight=class_weight), labels),
    "ignored": (nn.CrossEntropyLoss(weight=class_weight, label_smoothing=0.1), labels_with_gaps),
    "nll": (LogNLL(weight=class_weight), labels_with_gaps),
    "probabilities": (nn.CrossEntropyLoss(weight=class_weight), probabilities),
    "mse": (nn.MSELoss(), lambda: draw(7, SAMPLES, CLASSES)),
    "per_sample": (per_sample, labels),
    "none": (nn.CrossEntropyLoss(reduction="none"), labels),
}


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(list(zip(self.inputs, self.targets, strict=True)))


BATCHINGS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensors": lambda x, y: (x, y),
    "list": lambda x, y: list(zip(x.split(6), y.split(6), strict=True)),
    "tuple of batches": lambda x, y: ((x[:20], y[:20]), (x[20:], y[20:])),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=5),
    "shuffled": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=9, shuffle=True),
    "dataset": Pairs,
    "stream": Stream,
}


def reference(
    net: nn.Module, loss: Callable[..., Any], inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    net = copy.deepcopy(net).eval()
    value = loss(net(inputs), targets).mean()
    gradients = torch.autograd.grad(value, list(net.parameters()))
    return value.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def snapshot(net: nn.Module) -> list[Any]:
    return [
        [tensor.clone() for tensor in net.state_dict().values()],
        [module.training for module in net.modules()],
        [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        [p.requires_grad for p in net.parameters()],
        [id(p) for p in net.parameters()],
        torch.get_rng_state(),
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


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


class Restless(nn.Module):
    """Draws random numbers, counts its calls in a buffer, and fails when told to."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES).double()
        self.register_buffer("calls", torch.zeros(()))
        self.fail_at = fail_at
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.passes += 1
        if self.passes == self.fail_at:
            raise RuntimeError("midway")
        return self.linear(x) + 0 * torch.randn(1)


@pytest.mark.parametrize("fail_at", [None, 1, 3])
@pytest.mark.parametrize("method", ["value", "gradient", "predictions"])
def test_module_and_random_state_are_left_as_found(method: str, fail_at: int | None) -> None:
    net = Restless(fail_at)
    net.linear.eval()
    net.linear.weight.grad = torch.ones_like(net.linear.weight)
    data = DataLoader(TensorDataset(draw(0, SAMPLES, FEATURES), labels()), 5, shuffle=True)
    objective = Objective(net, nn.CrossEntropyLoss(), data)
    before = snapshot(net)
    if fail_at is None:
        getattr(objective, method)()
    else:
        with pytest.raises(RuntimeError, match="midway"):
            getattr(objective, method)()
    assert same(snapshot(net), before)


def test_state_is_left_as_found_when_the_loss_raises_midway() -> None:
    net = network()
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyError("midway")
        return functional.cross_entropy(outputs, targets)

    objective = Objective(net, loss, (draw(0, SAMPLES, FEATURES), labels()), microbatch=4)
    before = snapshot(net)
    with pytest.raises(KeyError, match="midway"):
        objective.gradient()
    assert same(snapshot(net), before)


class Hungry(nn.Linear):
    """Runs out of memory above a number of samples."""

    room = 3
    largest = 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.cuda.OutOfMemoryError("out of memory")
        self.largest = max(self.largest, len(x))
        return super().forward(x)


def sampled(x: Tensor, y: Tensor, generator: torch.Generator, kind: str) -> DataLoader[Any]:
    pairs = TensorDataset(x, y)
    if kind == "loader":
        return DataLoader(pairs, 5, shuffle=True, generator=generator)
    sampler = RandomSampler(pairs, generator=generator)
    if kind == "sampler":
        return DataLoader(pairs, 5, sampler=sampler)
    return DataLoader(pairs, batch_sampler=BatchSampler(sampler, 5, drop_last=False))


@pytest.mark.parametrize("kind", ["loader", "sampler", "batch sampler"])
def test_loaders_with_a_generator_keep_their_order_and_its_state(kind: str) -> None:
    """Noise weights and counts come from two passes that must agree."""
    x, y = draw(0, SAMPLES, FEATURES), labels_with_gaps()
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    loader = sampled(x, y, generator, kind)
    objective = Objective(network(), nn.CrossEntropyLoss(), loader)
    orders = [torch.cat([inputs for inputs, _ in objective.batches()]) for _ in range(2)]
    assert torch.equal(*orders)
    assert not torch.equal(orders[0], x)
    assert torch.equal(generator.get_state(), before)


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


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_duplicates_stand_alone(duplicate: Callable[[Objective], Objective]) -> None:
    objective = Objective(network(), nn.CrossEntropyLoss(), (draw(0, SAMPLES, FEATURES), labels()))
    block = draw(1, 2, objective.num_params)
    expected = objective.hvp(block), objective.ggn_trace()
    other = duplicate(objective)
    with torch.no_grad():
        for parameter in objective.model.parameters():
            parameter.zero_()
    torch.testing.assert_close((other.hvp(block), other.ggn_trace()), expected)
    assert other.model.training


@pytest.mark.parametrize(
    "context", [torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)]
)
def test_modes_of_the_caller_change_nothing(context: Callable[[], Any]) -> None:
    net = network().float()
    objective = Objective(
        net, nn.CrossEntropyLoss(), (draw(0, SAMPLES, FEATURES).float(), labels())
    )
    block = draw(1, 2, objective.num_params).float()

    def measured() -> list[Tensor]:
        objective.release()
        generator = torch.Generator().manual_seed(0)
        return [
            objective.value(),
            objective.gradient(),
            objective.hvp(block),
            objective.ggnvp(block),
            objective.sample_noise(2, batch_size=3, generator=generator),
        ]

    expected = measured()
    with context():
        found = measured()
        assert torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.clone(), other)


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


def test_a_missing_second_derivative_is_said() -> None:
    net = nn.Sequential(nn.EmbeddingBag(5, CLASSES), nn.Tanh())
    data = torch.arange(SAMPLES)[:, None] % 5, labels()
    objective = Objective(net, nn.CrossEntropyLoss(), data)
    with pytest.raises(ValueError, match=r"has no second derivative: .*embedding_bag"):
        objective.hvp(torch.ones(1, objective.num_params))


@pytest.mark.parametrize("batching", ["tensors", "list"])
def test_out_of_memory_halves_the_microbatch_and_goes_on(batching: str) -> None:
    inputs, targets = draw(0, SAMPLES, FEATURES), labels()
    net = Hungry(FEATURES, CLASSES).double()
    objective = Objective(net, nn.CrossEntropyLoss(), BATCHINGS[batching](inputs, targets))
    plain = functional.cross_entropy(functional.linear(inputs, net.weight, net.bias), targets)
    torch.testing.assert_close(objective.value(), plain.detach())
    torch.testing.assert_close(
        objective.predictions(), functional.linear(inputs, net.weight, net.bias).detach()
    )
    assert 2 <= net.largest <= 3
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


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (iter([(torch.ones(1, FEATURES), torch.zeros(1))]), "spent after one pass"),
        ((pair for pair in [(torch.ones(1, FEATURES), torch.zeros(1))]), "spent after one pass"),
        ({"x": torch.ones(1, FEATURES)}, "tuple of tensors"),
        (torch.ones(1, FEATURES), "tuple of tensors"),
        (3, "tuple of tensors"),
        ((torch.ones(2, FEATURES), [0, 1]), "targets of batch 0"),
    ],
)
def test_data_of_the_wrong_kind_is_a_type_error(data: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Objective(network(), nn.CrossEntropyLoss(), data)


def test_batches_of_the_wrong_kind_are_a_type_error() -> None:
    x, y = draw(0, SAMPLES, FEATURES), labels()
    for data in ([x, y], [(x, y, y)], (x, y, y)):
        with pytest.raises(TypeError, match="inputs, targets"):
            Objective(network(), nn.CrossEntropyLoss(), data).value()


def test_data_that_cannot_be_measured_are_refused() -> None:
    x, y, loss = draw(0, SAMPLES, FEATURES), labels(), nn.CrossEntropyLoss()
    broken = x.clone()
    broken[3, 2] = math.nan
    for data, message in (
        ((broken, y), "inputs of batch 0 hold NaN"),
        ((x, torch.full((SAMPLES, CLASSES), math.inf)), "targets of batch 0 hold NaN or inf"),
        ((x[:0], y[:0]), "at least one"),
        ((x, y[:-1]), "23 inputs and 22 targets"),
    ):
        with pytest.raises(ValueError, match=message):
            Objective(network(), loss, data)
    with pytest.raises(ValueError, match="inputs of batch 1 hold NaN"):
        Objective(network(), loss, [(x, y), (broken, y)]).value()
    with pytest.raises(ValueError, match="data are empty"):
        Objective(network(), loss, []).gradient()
    with pytest.raises(ValueError, match="no target counts"):
        Objective(network(), loss, (x, torch.full_like(y, -100))).value()
    with pytest.raises(ValueError, match="no target counts"):
        Objective(network(), loss, (x, torch.full_like(y, -100))).gradient()


def test_targets_that_do_not_fit_the_outputs_are_refused() -> None:
    x, y = draw(0, SAMPLES, FEATURES), labels()
    for wrong in (CLASSES, -1):
        bad = y.clone()
        bad[5] = wrong
        for loss in (nn.CrossEntropyLoss(), functional.cross_entropy):
            with pytest.raises(ValueError, match=f"label {wrong}.*4 outputs.*0 to 3"):
                Objective(network(), loss, (x, bad)).value()
    with pytest.raises(ValueError, match=r"\(23, 1\) and targets \(23,\)"):
        Objective(network(1), nn.MSELoss(), (x, draw(1, SAMPLES))).value()


def test_losses_of_another_shape_are_refused() -> None:
    x, y = draw(0, SAMPLES, FEATURES), draw(1, SAMPLES, CLASSES)
    with pytest.raises(ValueError, match=r"one value per sample, \[23\]; got \(23, 4\)"):
        Objective(network(), nn.MSELoss(reduction="none"), (x, y)).value()
    with pytest.raises(ValueError, match="got float"):
        Objective(network(), lambda o, t: float(o.sum()), (x, y)).value()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction='sum'"):
        Objective(network(), nn.MSELoss(reduction="sum"), (x, y))
    with pytest.raises(TypeError, match="loss must be"):
        Objective(network(), "mse", (x, y))  # type: ignore[arg-type]


def test_loss_that_does_not_reach_the_parameters_is_refused() -> None:
    x, y = draw(0, SAMPLES, FEATURES), labels()
    detached = Objective(
        network(), lambda o, t: functional.cross_entropy(o.detach(), t), (x, y), microbatch=5
    )
    assert detached.value() > 0
    with pytest.raises(ValueError, match=r"depends on none of the parameters 0\.weight"):
        detached.gradient()


def test_diverged_parameters_are_named() -> None:
    net = network()
    with torch.no_grad():
        net[4].bias[1] = math.nan
    objective = Objective(net, nn.CrossEntropyLoss(), (draw(0, SAMPLES, FEATURES), labels()))
    with pytest.raises(ValueError, match=r"parameter 4\.bias is not finite"):
        objective.value()


def test_bad_arguments_are_named() -> None:
    net, loss, data = network(), nn.CrossEntropyLoss(), (draw(0, SAMPLES, FEATURES), labels())
    with pytest.raises(ValueError, match=r"params names '9\.weight'; the model has 0\.weight"):
        Objective(net, loss, data, params=["9.weight"])
    with pytest.raises(ValueError, match="selects no parameter"):
        Objective(net, loss, data, params=lambda name, p: False)
    with pytest.raises(TypeError, match="list of names"):
        Objective(net, loss, data, params="0.weight")
    with pytest.raises(ValueError, match="microbatch"):
        Objective(net, loss, data, microbatch=0)
    with pytest.raises(ValueError, match="has no values yet"):
        Objective(nn.LazyLinear(3), loss, data)
    with pytest.raises(TypeError, match=r"nn\.Module"):
        Objective(lambda x: x, loss, data)  # type: ignore[arg-type]


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
