"""Curvature products against dense float64 matrices, and what they refuse."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from dense_curvature import dense, draw, fill, product
from hypothesis import given, settings
from hypothesis import strategies as st
from product_cases import (
    CLASSES,
    FEATURES,
    LOSSES,
    MODELS,
    MODES,
    SAMPLES,
    class_weight,
    labels,
    labels_with_gaps,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from left_as_found import same, snapshot
from undertow.objective import Objective, _curvature_products, _linearization

BATCHINGS: dict[str, Callable[[Tensor, Tensor], dict[str, Any]]] = {
    "whole": lambda x, y: {"data": (x, y)},
    "microbatch": lambda x, y: {"data": (x, y), "microbatch": 4},
    "loader": lambda x, y: {"data": DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize("model_name", MODELS)
def test_products_are_those_of_the_dense_matrix(model_name: str, loss_name: str, kind: str) -> None:
    net, (loss, make_targets) = fill(MODELS[model_name]()), LOSSES[loss_name]
    inputs, targets = draw(1, SAMPLES, FEATURES), make_targets()
    matrix = dense(net, loss, inputs, targets, kind)
    block = draw(2, 3, len(matrix))
    for make in BATCHINGS.values():
        objective = Objective(net, loss, **make(inputs, targets))
        for vectors in (block, block[:1], block):  # fresh, other block size, kept graph
            found = product(objective, kind, vectors)
            torch.testing.assert_close(found, vectors @ matrix, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("model_name", MODELS)
def test_every_mode_gives_the_same_product(
    model_name: str, mode: str, keep: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_curvature_products, "fastest_mode", lambda *args, **kwargs: (mode, None))
    monkeypatch.setattr(_curvature_products, "GRAPH_BYTES", 2**30 if keep else 0)
    net, loss = fill(MODELS[model_name]()), nn.CrossEntropyLoss()
    inputs, targets = draw(1, SAMPLES, FEATURES), labels()
    objective = Objective(net, loss, (inputs, targets), microbatch=4)
    matrix = dense(net, loss, inputs, targets, kind)
    block = draw(2, _linearization.BLOCK + 2, len(matrix))
    for vectors in (block, block[:1]):
        found = product(objective, kind, vectors)
        torch.testing.assert_close(found, vectors @ matrix, rtol=1e-8, atol=1e-10)


def test_log_probabilities_count_as_logits() -> None:
    inputs, targets = draw(1, SAMPLES, FEATURES), labels_with_gaps()
    logits = fill(MODELS["batch norm, dropout"]())
    probabilities = nn.Sequential(logits, nn.LogSoftmax(1))
    block = draw(2, 2, Objective(logits, nn.MSELoss(), (inputs, inputs)).num_params)
    expected = Objective(logits, nn.CrossEntropyLoss(class_weight), (inputs, targets))
    found = Objective(probabilities, nn.NLLLoss(class_weight), (inputs, targets))
    torch.testing.assert_close(found.ggnvp(block), expected.ggnvp(block))
    torch.testing.assert_close(found.hvp(block), expected.hvp(block))


def test_positions_are_weighted_by_their_labels() -> None:
    net = nn.Conv1d(2, CLASSES, 3, padding=1).double()
    inputs = draw(0, 7, 2, 4)
    targets = torch.randint(CLASSES, (7, 4), generator=torch.Generator().manual_seed(0))
    targets[3:5, 1:] = -100
    loss = nn.CrossEntropyLoss(weight=class_weight, label_smoothing=0.1)
    objective = Objective(net, loss, (inputs, targets), microbatch=3)
    for kind in ("hessian", "ggn"):
        matrix = dense(net, loss, inputs, targets, kind)
        block = draw(1, 4, len(matrix))
        torch.testing.assert_close(product(objective, kind, block), block @ matrix)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), samples=st.integers(2, 9), size=st.integers(1, 9))
def test_squared_error_of_a_linear_map_has_the_closed_form(
    seed: int, samples: int, size: int
) -> None:
    net = nn.Linear(3, 2, bias=False).double()
    inputs, targets = draw(seed, samples, 3), draw(seed + 1, samples, 2)
    objective = Objective(net, nn.MSELoss(), (inputs, targets), microbatch=size)
    block = draw(seed + 2, 2, 6)
    # L = ||X W^T - Y||^2 / (2 n): the Hessian is I kron X^T X / n.
    expected = (block.view(2, 2, 3) @ (inputs.T @ inputs / samples)).view(2, 6)
    torch.testing.assert_close(objective.hvp(block), expected)
    torch.testing.assert_close(objective.ggnvp(block), expected)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_products_are_linear_and_symmetric(kind: str) -> None:
    net = fill(MODELS["attention"]())
    objective = Objective(net, nn.CrossEntropyLoss(), (draw(0, SAMPLES, FEATURES), labels()))
    one, other = draw(1, 2, objective.num_params)
    images = product(objective, kind, torch.stack([one, other, 2 * one - 3 * other]))
    torch.testing.assert_close(images[2], 2 * images[0] - 3 * images[1])
    torch.testing.assert_close(one @ images[1], other @ images[0])


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_part_of_the_parameters_has_a_block_of_the_matrix(kind: str) -> None:
    net, loss = fill(MODELS["attention"]()), nn.CrossEntropyLoss()
    inputs, targets = draw(1, SAMPLES, FEATURES), labels()
    matrix = dense(net, loss, inputs, targets, kind)
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    for part in (("head.weight", "layer.linear1.bias"), ("embed.weight",), ("head.bias",)):
        objective = Objective(net, loss, (inputs, targets), params=part)
        chosen = torch.cat(
            [torch.full((size,), name in part) for name, size in sizes.items()]
        ).nonzero()[:, 0]
        block = draw(3, 2, len(chosen))
        expected = block @ matrix[chosen][:, chosen]
        torch.testing.assert_close(product(objective, kind, block), expected)
        assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_modules_are_multiplied_in_single(dtype: torch.dtype) -> None:
    net = fill(MODELS["batch norm, dropout"]()).to(dtype)
    inputs = draw(1, SAMPLES, FEATURES).to(dtype)
    loss = nn.CrossEntropyLoss(class_weight.to(dtype))
    objective = Objective(net, loss, (inputs, labels()))
    exact = Objective(
        copy.deepcopy(net).double(),
        nn.CrossEntropyLoss(class_weight.to(dtype).double()),
        (inputs.double(), labels()),
    )
    block = draw(2, 2, objective.num_params)
    for kind in ("hessian", "ggn"):
        found = product(objective, kind, block)
        assert found.dtype == torch.float32
        torch.testing.assert_close(
            found.double(), product(exact, kind, block), rtol=1e-3, atol=1e-5
        )
    assert {p.dtype for p in net.parameters()} == {dtype}


class Restless(nn.Module):
    """Draws random numbers, counts its calls in a buffer, and fails when told to."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES).double()
        self.norm = nn.BatchNorm1d(CLASSES).double()
        self.register_buffer("calls", torch.zeros(()))
        self.fail_at, self.passes = fail_at, count(1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.fail_at and next(self.passes) >= self.fail_at:
            raise KeyError("midway")
        return self.norm(self.linear(x)) + 0 * torch.randn(1)


@pytest.mark.parametrize("fail_at", [None, 1, 3])
@pytest.mark.parametrize("method", ["hvp", "ggnvp", "sample_noise"])
def test_everything_is_left_as_found(method: str, fail_at: int | None) -> None:
    net = Restless(fail_at)
    net.linear.eval()
    net.linear.bias.requires_grad_(False)
    net.linear.weight.grad = torch.ones_like(net.linear.weight)
    data = DataLoader(TensorDataset(draw(0, SAMPLES, FEATURES), labels()), 4, shuffle=True)
    objective = Objective(net, nn.CrossEntropyLoss(), data)
    before = snapshot(net)

    def call() -> None:
        if method == "sample_noise":
            objective.sample_noise(2, batch_size=2, generator=torch.Generator().manual_seed(0))
        else:
            getattr(objective, method)(draw(1, 2, objective.num_params))

    if fail_at is None:
        call()
        call()
    else:
        with pytest.raises(KeyError, match="midway"):
            call()
    assert same(snapshot(net), before)


class Hungry(nn.Linear):
    """Runs out of memory above a number of samples."""

    room = 3

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return super().forward(x)


def test_out_of_memory_halves_the_microbatch() -> None:
    inputs, targets = draw(0, SAMPLES, FEATURES), labels()
    net, loss = Hungry(FEATURES, CLASSES).double(), nn.CrossEntropyLoss()
    plain = nn.Linear(FEATURES, CLASSES).double()
    plain.load_state_dict(net.state_dict())
    objective = Objective(net, loss, (inputs, targets))
    for kind in ("hessian", "ggn"):
        matrix = dense(plain, loss, inputs, targets, kind)
        block = draw(1, 2, len(matrix))
        for _ in range(2):
            torch.testing.assert_close(product(objective, kind, block), block @ matrix)
    noise = [
        o.sample_noise(2, batch_size=3, generator=torch.Generator().manual_seed(0))
        for o in (objective, Objective(plain, loss, (inputs, targets)))
    ]
    torch.testing.assert_close(*noise)


def test_a_loss_without_curvature_has_products_zero() -> None:
    net = nn.Linear(FEATURES, 1).double()
    objective = Objective(
        net, lambda o, t: o.flatten(), (draw(0, SAMPLES, FEATURES), draw(1, SAMPLES))
    )
    block = draw(2, 3, objective.num_params)
    assert torch.equal(objective.hvp(block), torch.zeros_like(block))
    assert torch.equal(objective.ggnvp(block), torch.zeros_like(block))
    assert objective.hvp(block[:0]).shape == (0, objective.num_params)


def test_bad_directions_are_named() -> None:
    net = nn.Linear(FEATURES, CLASSES)
    objective = Objective(net, nn.CrossEntropyLoss(), (draw(0, 4, FEATURES).float(), labels()[:4]))
    for wrong, message in (
        (torch.ones(18), r"block \[k, 18\], got \(18,\); write v\[None\]"),
        (torch.ones(2, 17), r"block \[k, 18\], got \(2, 17\)$"),
        (torch.full((1, 18), math.inf), "NaN or infinities"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.hvp(wrong)
    with pytest.raises(TypeError, match="directions must be a tensor"):
        objective.ggnvp([1.0])  # type: ignore[arg-type]
    found = objective.hvp(torch.ones(1, 18, dtype=torch.float64))
    assert found.dtype == torch.float32


@pytest.mark.parametrize("method", ["hvp", "ggnvp"])
def test_losses_that_cannot_be_differentiated_are_refused(method: str) -> None:
    net, data = fill(nn.Linear(FEATURES, CLASSES)), (draw(0, SAMPLES, FEATURES), labels())
    block = draw(1, 2, 18)
    detached = Objective(net, lambda o, t: functional.cross_entropy(o.detach(), t), data)
    with pytest.raises(ValueError, match=r"depends on none of the parameters weight, bias"):
        getattr(detached, method)(block)
    infinite = Objective(net, lambda o, t: functional.cross_entropy(o / 0, t), data)
    with pytest.raises(ValueError, match="not finite although the data are"):
        getattr(infinite, method)(block)
    ignored = Objective(net, nn.CrossEntropyLoss(), (data[0], torch.full_like(data[1], -100)))
    with pytest.raises(ValueError, match="no target counts"):
        getattr(ignored, method)(block)
    several = Objective(net, lambda o, t: o[0].sum(1), data)
    several.model.forward = lambda x: (functional.linear(x, net.weight, net.bias),)
    if method == "ggnvp":
        with pytest.raises(TypeError, match="Gauss-Newton products need a model that returns a te"):
            several.ggnvp(block)
    else:
        assert torch.equal(several.hvp(block), torch.zeros_like(block))


def test_parameters_that_are_not_real_numbers_are_refused() -> None:
    net = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"weight is torch\.complex64"):
        Objective(net, nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 2)))
