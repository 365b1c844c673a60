"""Curvature products and noise draws against dense float64 matrices, and what they refuse."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dense_curvature import dense, draw, fill, flat_loss, product
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from undertow.objective import Objective, _autotuning, _curvature_products, _linearization

SAMPLES, FEATURES, CLASSES = 11, 5, 3
MODES = ("loop", "batched", "forward")


class Tied(nn.Module):
    """One matrix used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, FEATURES)
        self.outer = nn.Linear(FEATURES, FEATURES)
        self.outer.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)))[:, :CLASSES]


class Attention(nn.Module):
    """An encoder layer over the features as a sequence, then fused attention by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.3, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(self.embed(x[:, :, None]))
        mixed = functional.scaled_dot_product_attention(hidden, hidden, hidden)
        return self.head(mixed.mean(1))


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(1, 3, 2), nn.GroupNorm(1, 3), nn.SiLU(), nn.Flatten())
        self.head = nn.Linear(3 * (FEATURES - 1), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x[:, None]))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(FEATURES, CLASSES),
    "batch norm, dropout": lambda: nn.Sequential(
        nn.Linear(FEATURES, 4),
        nn.BatchNorm1d(4),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(4, CLASSES),
    ),
    "tied": Tied,
    "attention": Attention,
    "convolution": Convolution,
}


def labels() -> Tensor:
    return torch.randint(CLASSES, (SAMPLES,), generator=torch.Generator().manual_seed(9))


def labels_with_gaps() -> Tensor:
    found = labels()
    found[:5] = -100  # whole microbatches of nothing but ignored labels
    return found


def generic(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.cosh(outputs - targets[:, None]).sum(1)


class LogNLL(nn.NLLLoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input.log_softmax(1), target)


class_weight = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[[], Tensor]]] = {
    "cross_entropy": (functional.cross_entropy, labels),
    "weights": (nn.CrossEntropyLoss(weight=class_weight), labels_with_gaps),
    "smoothing": (nn.CrossEntropyLoss(class_weight, label_smoothing=0.2), labels_with_gaps),
    "probabilities": (
        nn.CrossEntropyLoss(class_weight, label_smoothing=0.1),
        lambda: draw(8, SAMPLES, CLASSES).softmax(1),
    ),
    "mse": (nn.MSELoss(), lambda: draw(7, SAMPLES, CLASSES)),
    "huber": (nn.HuberLoss(), lambda: draw(7, SAMPLES, CLASSES)),
    "generic": (generic, labels),
    "mean": (lambda o, t: generic(o, t).mean(), labels),
}
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


def test_kept_graphs_follow_parameters_buffers_and_data() -> None:
    net, loss = fill(MODELS["batch norm, dropout"]()), nn.MSELoss()
    inputs, targets = draw(1, SAMPLES, FEATURES), draw(2, SAMPLES, CLASSES)
    objective = Objective(net, loss, (inputs, targets), microbatch=4)
    block = draw(3, 2, objective.num_params)

    def check() -> None:
        for kind in ("hessian", "ggn"):
            expected = block @ dense(net, loss, inputs, targets, kind)
            torch.testing.assert_close(product(objective, kind, block), expected)

    check()
    with torch.no_grad():
        net[0].weight += 0.3
    check()
    net[4].weight.data.mul_(1.5)  # moves no version counter
    check()
    net[0].weight.data = draw(7, 4, FEATURES)
    check()
    net[1].running_var += 1.0
    check()
    inputs += 0.5
    check()
    net[0].weight = nn.Parameter(draw(8, 4, FEATURES))
    check()


def test_fixed_parameters_are_compared_once_and_no_longer_than_that() -> None:
    net, loss = fill(MODELS["batch norm, dropout"]()), nn.MSELoss()
    inputs, targets = draw(1, SAMPLES, FEATURES), draw(2, SAMPLES, CLASSES)
    objective = Objective(net, loss, (inputs, targets), microbatch=4)
    block = draw(3, 2, objective.num_params)
    objective.hvp(block)
    for _ in range(2):
        with torch.no_grad():
            net[0].weight += 0.3
        with objective.fixed(), objective.fixed():  # may be nested
            for kind in ("hessian", "ggn", "hessian"):
                expected = block @ dense(net, loss, inputs, targets, kind)
                torch.testing.assert_close(product(objective, kind, block), expected)
            objective.release()
            torch.testing.assert_close(
                objective.ggnvp(block[:1]), product(objective, "ggn", block)[:1]
            )
    with pytest.raises(KeyError), objective.fixed():
        raise KeyError
    net[0].weight.data.mul_(2.0)
    expected = block @ dense(net, loss, inputs, targets, "hessian")
    torch.testing.assert_close(objective.hvp(block), expected)


def test_holding_still_leaves_everything_as_found(global_rng_untouched: None) -> None:
    with torch.random.fork_rng():
        net = fill(MODELS["batch norm, dropout"]())
    objective = Objective(net, nn.CrossEntropyLoss(), (draw(1, SAMPLES, FEATURES), labels()))
    block = draw(2, 2, objective.num_params)
    expected = product(objective, "hessian", block)
    fused = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    with objective.fixed(), objective.fixed():
        for _ in range(2):
            torch.testing.assert_close(objective.hvp(block), expected)
    with pytest.raises(KeyError), objective.fixed():
        raise KeyError
    assert all(module.training for module in net.modules())
    assert fused == (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
    )
    torch.testing.assert_close(objective.hvp(block), expected)


def test_a_faster_way_that_is_wrong_in_any_direction_is_not_taken() -> None:
    class Wrong:
        kind, build_seconds = "hessian", 0.0

        def free(self) -> None: ...

        def product(self, vectors: Tensor, mode: str) -> Tensor:
            if mode == "loop":
                return sum((vectors * 1.0 for _ in range(2000)), torch.zeros_like(vectors)) / 2000
            found = vectors.clone()
            found[-1] += mode == "batched"
            return found

    for kept in (True, False):
        mode, _ = _autotuning.fastest_mode(Wrong(), draw(0, 6, 50), kept=kept)  # type: ignore[arg-type]
        assert mode == "forward"


@pytest.mark.parametrize("build_seconds", [1e9, 0.0])
def test_forward_mode_is_tried_only_where_it_may_be_faster(build_seconds: float) -> None:
    tried: list[str] = []

    class Kept:
        kind = "hessian"

        def product(self, vectors: Tensor, mode: str) -> Tensor:
            tried.append(mode)
            return vectors * 1.0

    part = Kept()
    part.build_seconds = build_seconds  # type: ignore[attr-defined]
    block = draw(0, 1, 50)
    _, found = _autotuning.fastest_mode(part, block, kept=True)  # type: ignore[arg-type]
    assert ("forward" in tried) == (build_seconds == 0.0)
    assert found is not None
    assert torch.equal(found, block)  # need not be computed again


@pytest.mark.parametrize("kept", [True, False])
def test_large_products_are_not_tried_in_other_ways(
    kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: set[str] = set()

    class Large:
        kind, build_seconds = "hessian", 0.0

        def free(self) -> None: ...

        def product(self, vectors: Tensor, mode: str) -> Tensor:
            tried.add(mode)
            return vectors * 1.0

    monkeypatch.setattr(_autotuning, "_LARGE_SECONDS", 0.0)
    _autotuning.fastest_mode(Large(), draw(0, 6, 50), kept=kept)  # type: ignore[arg-type]
    assert tried == ({"loop"} if kept else set(MODES))


def test_graphs_are_kept_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return super().forward(x)

    monkeypatch.setattr(_curvature_products, "fastest_mode", lambda *args, **kwargs: ("loop", None))
    net = Counting(FEATURES, CLASSES).double()
    objective = Objective(net, nn.MSELoss(), (draw(0, 8, FEATURES), draw(1, 8, CLASSES)))
    block = draw(2, 2, objective.num_params)
    expected = objective.hvp(block)
    calls = 0
    assert torch.equal(objective.hvp(block), expected)
    assert calls == 0
    duplicate = copy.deepcopy(objective)  # graphs stay behind
    assert torch.equal(duplicate.hvp(block), expected)
    objective.release()
    calls = 0
    assert torch.equal(objective.hvp(block), expected)
    assert calls == 1
    monkeypatch.setattr(_curvature_products, "GRAPH_BYTES", 0)
    objective = Objective(net, nn.MSELoss(), (draw(0, 8, FEATURES), draw(1, 8, CLASSES)))
    calls = 0
    for _ in range(3):
        assert torch.equal(objective.hvp(block), expected)
    assert calls >= 3


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


class Named(nn.Module):
    """A Hugging Face-style model: keyword arguments in, an object with .logits and .loss out."""

    def __init__(self, shift: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)
        self.shift, self.scale = shift, scale

    def forward(
        self, input_ids: Tensor, mask: Tensor, labels: Tensor | None = None
    ) -> SimpleNamespace:
        hidden = torch.tanh(self.embedding(input_ids)) * mask[..., None]
        logits = self.head(hidden.cumsum(1))
        loss = None
        if labels is not None:
            kept, wanted = logits[:, : logits.shape[1] - self.shift], labels[:, self.shift :]
            loss = self.scale * functional.cross_entropy(kept.flatten(0, 1), wanted.flatten())
        return SimpleNamespace(logits=logits, loss=loss)


def tokens(samples: int = 9, length: int = 5) -> dict[str, Tensor]:
    ids = torch.randint(7, (samples, length), generator=torch.Generator().manual_seed(3))
    targets = ids.clone()
    targets[:4, 2:] = -100
    return {"input_ids": ids, "mask": (ids > 0).double(), "labels": targets}


def sliced(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    total = len(batch["labels"])
    return [
        {name: part[start : start + size] for name, part in batch.items()}
        for start in range(0, total, size)
    ]


@pytest.mark.parametrize("shift", [0, 1])
def test_dictionary_batches_with_the_models_own_loss_are_averaged_exactly(shift: int) -> None:
    net = fill(Named(shift))
    batch = tokens()
    whole = Objective(net, None, [batch])
    split = Objective(net, None, sliced(batch, 2), microbatch=1)
    torch.testing.assert_close(whole.value(), net(**batch).loss.detach())
    torch.testing.assert_close(split.value(), whole.value())
    torch.testing.assert_close(split.gradient(), whole.gradient())
    block = draw(1, 2, whole.num_params)

    def own(theta: Tensor) -> Tensor:
        named = dict(net.named_parameters())
        parts = theta.split([p.numel() for p in named.values()])
        shaped = {n: t.view_as(p) for (n, p), t in zip(named.items(), parts, strict=True)}
        return functional_call(net, shaped, (), batch).loss

    theta = torch.cat([p.detach().flatten() for p in net.parameters()])
    matrix = torch.autograd.functional.hessian(own, theta)
    for objective in (whole, split):
        torch.testing.assert_close(objective.hvp(block), block @ matrix)
    torch.testing.assert_close(split.ggnvp(block), whole.ggnvp(block))
    assert whole.num_samples == split.num_samples == 9
    assert "its own loss" in repr(whole)


def test_dictionary_batches_with_a_loss_of_the_logits() -> None:
    net, batch = fill(Named()), tokens()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        values = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return values.mean(1)

    given_loss = Objective(net, loss, sliced(batch, 4))
    objective = Objective(Named(), None, [batch])
    assert given_loss.predictions().shape == (9, 5, 7)
    assert given_loss.hvp(draw(0, 1, objective.num_params)).shape == (1, objective.num_params)
    with pytest.raises(TypeError, match="under 'labels'"):
        Objective(net, loss, [{"input_ids": batch["input_ids"]}]).value()
    with pytest.raises(TypeError, match=r"no 0-d \.loss"):
        Objective(nn.Linear(2, 2), None, [(torch.ones(1, 2), torch.ones(1, 2))]).value()
    with pytest.raises(ValueError, match="its denominator is unknown"):
        Objective(fill(Named(scale=2.0)), None, [batch]).value()


# Gradient noise.


def per_sample_gradients(
    net: nn.Module, loss: Callable[..., Tensor], inputs: Tensor, targets: Tensor
) -> Tensor:
    rows = []
    for index in range(len(inputs)):
        piece = slice(index, index + 1)
        theta, _, whole = flat_loss(net, loss, inputs[piece], targets[piece])
        rows.append(torch.autograd.functional.jacobian(whole, theta))
    return torch.stack(rows)


@pytest.mark.parametrize("loss_name", ["cross_entropy", "mse", "huber", "generic", "mean"])
def test_noise_is_the_centred_combination_of_sample_gradients(loss_name: str) -> None:
    loss, make_targets = LOSSES[loss_name]
    net = fill(MODELS["batch norm, dropout"]())
    inputs, targets = draw(1, SAMPLES, FEATURES), make_targets()
    gradients = per_sample_gradients(net, loss, inputs, targets)
    centred = gradients - gradients.mean(0)
    for microbatch in (None, 4):
        objective = Objective(net, loss, (inputs, targets), microbatch=microbatch)
        generator = torch.Generator().manual_seed(5)
        found = objective.sample_noise(20, batch_size=4, generator=generator)
        normal = torch.randn(
            20, SAMPLES, generator=torch.Generator().manual_seed(5), dtype=torch.float64
        )
        torch.testing.assert_close(found, normal @ centred / math.sqrt(SAMPLES * 4))


@pytest.mark.slow
def test_noise_has_the_covariance_of_a_mini_batch_gradient() -> None:
    net, loss = nn.Linear(2, 1).double(), nn.MSELoss()
    inputs, targets = draw(1, 9, 2), draw(2, 9, 1)
    gradients = per_sample_gradients(net, loss, inputs, targets)
    covariance = torch.cov(gradients.T, correction=0) / 5
    objective = Objective(net, loss, (inputs, targets))
    found = objective.sample_noise(40_000, batch_size=5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.cov(found.T), covariance, rtol=0.05, atol=0.02)
    assert found.mean(0).abs().max() < 4 * covariance.max().sqrt() / 200


def test_noise_of_weighted_samples_is_that_of_the_ratio_of_sums() -> None:
    net, loss = fill(nn.Linear(FEATURES, CLASSES)), nn.CrossEntropyLoss(weight=class_weight)
    inputs, targets = draw(1, SAMPLES, FEATURES), labels_with_gaps()
    objective = Objective(net, loss, (inputs, targets), microbatch=3)
    counted = targets >= 0
    counts = class_weight[targets.clamp(min=0)] * counted
    gradients = torch.zeros(SAMPLES, objective.num_params, dtype=torch.float64)
    gradients[counted] = per_sample_gradients(net, loss, inputs[counted], targets[counted])
    full = counts @ gradients / counts.sum()
    torch.testing.assert_close(objective.gradient(), full)
    centred = (gradients - full) * (counts / counts.mean())[:, None]
    found = objective.sample_noise(6, batch_size=2, generator=torch.Generator().manual_seed(1))
    normal = torch.randn(
        6, SAMPLES, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    torch.testing.assert_close(found, normal @ centred / math.sqrt(2 * SAMPLES))


def test_noise_of_a_models_own_loss() -> None:
    batch = tokens()
    objective = Objective(fill(Named(1)), None, sliced(batch, 2))
    whole = Objective(fill(Named(1)), None, [batch])
    found, expected = (
        o.sample_noise(3, batch_size=4, generator=torch.Generator().manual_seed(1))
        for o in (objective, whole)
    )
    torch.testing.assert_close(found, expected)


# Leaving no trace, and refusing.


class Restless(nn.Module):
    """Draws random numbers, counts its calls in a buffer, and fails when told to."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES).double()
        self.norm = nn.BatchNorm1d(CLASSES).double()
        self.register_buffer("calls", torch.zeros(()))
        self.fail_at, self.passes = fail_at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.passes += 1
        if self.passes == self.fail_at:
            raise KeyError("midway")
        return self.norm(self.linear(x)) + 0 * torch.randn(1)


def snapshot(net: nn.Module) -> list[Any]:
    return [
        [tensor.clone() for tensor in net.state_dict().values()],
        [module.training for module in net.modules()],
        [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        [p.requires_grad for p in net.parameters()],
        [id(p) for p in net.parameters()],
        torch.get_rng_state(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.is_grad_enabled(),
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


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
        (torch.ones(18), r"block \[k, 18\]; got \(18,\); write v\[None\]"),
        (torch.ones(2, 17), r"block \[k, 18\]; got \(2, 17\)$"),
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


def test_bad_noise_arguments_are_named() -> None:
    net, loss = nn.Linear(FEATURES, CLASSES).double(), nn.CrossEntropyLoss()
    objective = Objective(net, loss, (draw(0, 4, FEATURES), labels()[:4]))
    generator = torch.Generator()
    with pytest.raises(ValueError, match="draws must be a whole number above 0; got 0"):
        objective.sample_noise(0, batch_size=1, generator=generator)
    with pytest.raises(ValueError, match="batch_size must be a whole number above 0"):
        objective.sample_noise(1, batch_size=1.5, generator=generator)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be a torch\.Generator; got 0"):
        objective.sample_noise(1, batch_size=1, generator=0)  # type: ignore[arg-type]
    single = Objective(net, loss, (draw(0, 1, FEATURES), labels()[:1]))
    with pytest.raises(ValueError, match="one sample"):
        single.sample_noise(1, batch_size=1, generator=generator)


def test_parameters_that_are_not_real_numbers_are_refused() -> None:
    net = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"weight is torch\.complex64"):
        Objective(net, nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 2)))
