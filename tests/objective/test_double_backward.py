"""Functions recorded for a second backward pass, against dense matrices by PyTorch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dense_curvature import dense, draw, fill, product
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from undertow.objective import Objective, _curvature_products, _double_backward, _linearization

SAMPLES, CLASSES = 5, 3
Make = Callable[[], nn.Module]


@pytest.fixture(autouse=True)
def _small_calls_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_double_backward, "_WORTH_BYTES", 0)


def net(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(CLASSES))


class Calls(nn.Module):
    """A convolution, and functions called as functions."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function = nn.Conv2d(2, 4, 3, padding=1), function
        self.last = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)).flatten(1))


class Checkpointed(nn.Module):
    """Parts of it run again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2))
        self.last = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.first, x, use_reentrant=False).flatten(1))


# Each with the shape of a sample.
MODELS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "conv1d": (
        lambda: net(nn.Conv1d(2, 4, 3, dilation=2, padding=1), nn.Tanh(), nn.Conv1d(4, 2, 2)),
        (2, 9),
    ),
    "conv2d": (
        lambda: net(
            nn.Conv2d(2, 4, 3, stride=(2, 1), padding=(1, 2)),
            nn.SiLU(),
            nn.Conv2d(4, 6, 2, groups=2, bias=False),
        ),
        (2, 6, 5),
    ),
    "conv3d": (
        lambda: net(nn.Conv3d(1, 2, 2, padding=1), nn.Tanh(), nn.Conv3d(2, 2, 2, groups=2)),
        (1, 3, 2, 3),
    ),
    "padding by name": (
        lambda: net(
            nn.Conv2d(2, 3, 3, padding="same"), nn.Tanh(), nn.Conv2d(3, 2, 3, padding="valid")
        ),
        (2, 4, 4),
    ),
    "around the edge": (
        lambda: net(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.ReLU()),
        (2, 4, 4),
    ),
    "relu, pooling": (
        lambda: net(
            nn.Conv2d(2, 4, 3),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
            nn.Conv2d(4, 4, 2),
            nn.ReLU(),
        ),
        (2, 7, 7),
    ),
    "dilated pooling": (
        lambda: Calls(lambda x: functional.max_pool2d(torch.relu(x), (2, 1), dilation=2)),
        (2, 6, 4),
    ),
    "places of the maxima": (
        lambda: Calls(lambda x: functional.max_pool2d(x, 2, return_indices=True)[0]),
        (2, 4, 4),
    ),
    "in place": (lambda: Calls(lambda x: functional.relu(x * 1, inplace=True)), (2, 4, 4)),
    "layer norm": (
        lambda: net(
            nn.Linear(6, 6), nn.LayerNorm((4, 6)), nn.GELU(), nn.Linear(6, 4), nn.LayerNorm(4)
        ),
        (4, 6),
    ),
    "bare layer norm": (
        lambda: net(
            nn.Linear(6, 5),
            nn.LayerNorm(5, elementwise_affine=False),
            nn.Tanh(),
            nn.Linear(5, 4),
            nn.LayerNorm(4, bias=False),
        ),
        (4, 6),
    ),
    "batch norm": (
        lambda: net(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 2, 2),
            nn.BatchNorm2d(2, affine=False),
            nn.Tanh(),
        ),
        (2, 5, 5),
    ),
    "batch norm, flat": (
        lambda: net(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)),
        (6,),
    ),
    "statistics of the batch": (
        lambda: net(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.ReLU()),
        (6,),
    ),
    "checkpoints": (Checkpointed, (2, 5, 5)),
}


def case(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    make, shape = MODELS[name]
    inputs = draw(1, SAMPLES, *shape)
    model = make().double()
    model(inputs)  # sizes of the last layer
    targets = torch.randint(CLASSES, (SAMPLES,), generator=torch.Generator().manual_seed(3))
    return fill(model), inputs, targets


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[_double_backward.DoubleBackwardMode]:
    """The modes that products were built under."""
    made: list[_double_backward.DoubleBackwardMode] = []
    begin = _double_backward.DoubleBackwardMode.__init__

    def remember(self: _double_backward.DoubleBackwardMode, **options: Any) -> None:
        begin(self, **options)
        made.append(self)

    monkeypatch.setattr(_double_backward.DoubleBackwardMode, "__init__", remember)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("mode", ["loop", "batched"])
@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_the_dense_matrix(
    name: str,
    mode: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    recorded: list[_double_backward.DoubleBackwardMode],
) -> None:
    monkeypatch.setattr(_curvature_products, "fastest_mode", lambda *args, **kwargs: (mode, None))
    model, inputs, targets = case(name)
    matrix = dense(model, nn.CrossEntropyLoss(), inputs, targets, kind)
    block = draw(2, 3, len(matrix))
    for microbatch in (None, None if name == "statistics of the batch" else 2):
        objective = Objective(
            model, nn.CrossEntropyLoss(), (inputs, targets), microbatch=microbatch
        )
        for vectors in (block, block[:1]):
            found = product(objective, kind, vectors)
            torch.testing.assert_close(found, vectors @ matrix, rtol=1e-8, atol=1e-10)
    if kind == "ggn" or "layer norm" not in name:
        assert any(mode.used for mode in recorded)
    assert not any(mode.linear for mode in recorded)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("part", ["weight", "bias", "0", "1.weight", "3"])
def test_parts_of_the_parameters(part: str, kind: str) -> None:
    model, inputs, targets = case("batch norm")
    chosen = [name for name, _ in model.named_parameters() if part in name]
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs, targets), params=chosen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    matrix = dense(model, nn.CrossEntropyLoss(), inputs, targets, kind)
    block = draw(2, 3, len(matrix))
    torch.testing.assert_close(product(objective, kind, block), block @ matrix)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_losses_of_the_same_functions_keep_their_curvature(kind: str) -> None:
    """Only the model's backward pass is linear in its cotangent, not the loss's."""
    judge = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.LayerNorm(27))
    judge(torch.zeros(1, 2, 4, 4))
    judge = judge.double().requires_grad_(False)
    model = fill(nn.Conv2d(2, 2, 3, padding=1))
    inputs, targets = draw(1, SAMPLES, 2, 4, 4), draw(2, SAMPLES, 2, 4, 4)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (judge(outputs) - judge(targets)).square().flatten(1).sum(1)

    matrix = dense(model, loss, inputs, targets, kind)
    block = draw(3, 2, len(matrix))
    found = product(Objective(model, loss, (inputs, targets)), kind, block)
    torch.testing.assert_close(found, block @ matrix)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_single_precision_is_as_exact_as_pytorchs_own(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs, targets = case("batch norm")
    matrix = dense(model, nn.CrossEntropyLoss(), inputs, targets, kind)
    single = model.float(), nn.CrossEntropyLoss(), (inputs.float(), targets)
    block = draw(2, 8, len(matrix))
    errors = []
    for least in (0, 2**60):
        monkeypatch.setattr(_double_backward, "_WORTH_BYTES", least)
        found = product(Objective(*single), kind, block.float()).double()
        errors.append(float((found - block @ matrix).norm() / (block @ matrix).norm()))
    assert errors[0] < 2 * errors[1] + 1e-7


def test_what_pytorch_refuses_is_recorded_plainly(
    recorded: list[_double_backward.DoubleBackwardMode],
) -> None:
    """Functions of Python's own cannot be mapped by torch.func inside a model."""

    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv1d(1, 2, 2), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.func.vmap(lambda part: torch.relu(self.first(part[None])))(x)
            return self.last(hidden.flatten(1))

    model, inputs = fill(Mapped()), draw(1, SAMPLES, 1, 4)
    targets = torch.zeros(SAMPLES, dtype=torch.long)
    for kind in ("hessian", "ggn"):
        matrix = dense(model, nn.CrossEntropyLoss(), inputs, targets, kind)
        block = draw(2, 2, len(matrix))
        objective = Objective(model, nn.CrossEntropyLoss(), (inputs, targets))
        torch.testing.assert_close(product(objective, kind, block), block @ matrix)


@pytest.mark.parametrize("mode", ["batched", "forward"])
def test_a_mode_that_fails_leaves_the_graph_to_the_loop(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs, targets = case("relu, pooling")
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs, targets))
    block = draw(2, 3, objective.num_params)
    expected = objective.hvp(block)
    (part,) = objective.products._kept["hessian"].parts

    def refuse(*args: Any, batched: bool, **rest: Any) -> Tensor:
        if batched:
            raise RuntimeError("no batching rule")
        return pull_back(*args, batched=batched, **rest)

    pull_back = _linearization.pull_back
    monkeypatch.setattr(_linearization, "pull_back", refuse)
    if mode == "forward":
        monkeypatch.setattr(part, "_forward", lambda *args: refuse(batched=True))
    graph = part._graph
    with pytest.raises(RuntimeError, match="no batching rule"):
        part.product(block, mode)
    assert part._graph is graph
    assert part._double_backward is not None
    torch.testing.assert_close(part.product(block, "loop") / SAMPLES, expected)


def test_errors_of_the_model_stay_its_own() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv1d(1, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.first(x)
            raise RuntimeError("the model's own")

    objective = Objective(Fails(), nn.MSELoss(), (torch.ones(2, 1, 4), torch.ones(2, 1)))
    with pytest.raises(RuntimeError, match="the model's own"):
        objective.hvp(torch.ones(1, objective.num_params))
