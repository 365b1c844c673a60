"""Samples that influence each other: one batch has a loss, and nothing finer is made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from coupled_cases import (
    COUPLED_LOSSES,
    COUPLED_MODELS,
    INDEPENDENT,
    Balanced,
    Case,
    filled,
    inputs,
    labels,
    mlp,
    numbers,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from odd_twins import Net
from undertow.objective import Objective

COUPLED = {f"model {n}": c for n, c in COUPLED_MODELS.items()} | {
    f"loss {n}": c for n, c in COUPLED_LOSSES.items()
}
EVERY = {f"independent {n}": c for n, c in INDEPENDENT.items()} | COUPLED


def objective(case: Case, microbatch: int | None = None, dtype: Any = None) -> Objective:
    make, loss, make_targets = case
    return Objective(make().eval(), loss, (inputs(), make_targets()), microbatch=microbatch)


def value_of(net: nn.Module, loss: Any, targets: Tensor) -> Any:
    names = [name for name, _ in net.named_parameters()]

    def value(*leaves: Tensor) -> Tensor:
        outputs = functional_call(net, dict(zip(names, leaves, strict=True)), (inputs(),))
        return loss(outputs, targets).mean()

    return value


def drawn(case: Case, microbatch: int | None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return objective(case, microbatch).sample_noise(2, batch_size=4, generator=generator)


@pytest.mark.parametrize("name", EVERY)
def test_one_batch_is_what_autograd_makes_of_it(name: str) -> None:
    make, loss, make_targets = EVERY[name]
    found, net = objective(EVERY[name]), make().eval()
    leaves = tuple(p.detach().clone().requires_grad_() for p in net.parameters())
    expected = value_of(net, loss, make_targets())(*leaves)
    if name == "independent class weights":  # sum over weights, as PyTorch's mean is
        assert expected.ndim == 0
    torch.testing.assert_close(found.value(), expected.detach())
    slopes = torch.autograd.grad(expected, leaves)
    torch.testing.assert_close(found.gradient(), torch.cat([s.flatten() for s in slopes]))


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(INDEPENDENT)), size=st.integers(1, 9))
def test_independent_samples_are_never_refused(name: str, size: int) -> None:
    case = INDEPENDENT[name]
    whole, split = objective(case), objective(case, size)
    torch.testing.assert_close(split.value(), whole.value())
    torch.testing.assert_close(split.gradient(), whole.gradient())
    torch.testing.assert_close(drawn(case, size), drawn(case, None))


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(COUPLED)), size=st.integers(2, 8))
def test_batches_that_do_not_add_up_are_refused(name: str, size: int) -> None:
    split = objective(COUPLED[name], size)
    block = torch.ones(1, split.num_params, dtype=torch.float64)
    for measured in (split.value, split.gradient, lambda: split.hvp(block)):
        # Nine neighbours are not to be had among fewer samples, which PyTorch says.
        error = (ValueError, RuntimeError) if "neighbours" in name else ValueError
        with pytest.raises(error, match=r"influence each other|out of range"):
            measured()


@pytest.mark.parametrize("name", COUPLED)
def test_there_is_nothing_per_sample_where_samples_mix(name: str) -> None:
    with pytest.raises(ValueError, match="samples influence each other"):
        drawn(COUPLED[name], None)
    assert objective(COUPLED[name]).ggn_trace() is None


def test_half_precision_does_not_count_as_mixing() -> None:
    targets = labels()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for make, loss, chosen in (
            (mlp, lambda o, t: functional.cross_entropy(o, t), targets),
            (lambda: mlp(1), lambda o, t: (o - t).square().mean(), numbers().to(dtype)),
        ):
            found = Objective(make().to(dtype), loss, (inputs().to(dtype), chosen), microbatch=3)
            assert found.value().isfinite()
            assert found.sample_noise(1, batch_size=2, generator=torch.Generator()).any()


def test_what_is_random_is_refused_as_that() -> None:
    def noisy(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(functional.dropout(outputs, 0.5), targets)

    data = inputs(), labels()
    with pytest.raises(ValueError, match="loss is random"):
        Objective(mlp(), noisy, data).value()
    dropping = filled(
        Net(lambda s, x: functional.dropout(s.linear(x), 0.5), linear=nn.Linear(5, 3))
    )
    with pytest.raises(ValueError, match="random in eval mode"):
        Objective(dropping, nn.CrossEntropyLoss(), data, microbatch=4).value()


def test_a_batch_of_one_has_nothing_to_mix() -> None:
    """The average of singles is defined whatever a model does with more."""
    make, loss, make_targets = COUPLED_MODELS["centred"]
    singles = list(zip(inputs().split(1), make_targets().split(1), strict=True))
    expected = [Objective(make(), loss, [single]).value() for single in singles]
    found = Objective(make(), loss, singles).value()
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_models_that_take_batches_of_one_size_are_tried_on_these() -> None:
    def fixed(mix: bool) -> nn.Module:
        def function(self: Any, x: Tensor) -> Tensor:
            hidden = self.linear(x.view(5, -1))
            return hidden - hidden.mean(0) if mix else hidden

        return filled(Net(function, linear=nn.Linear(5, 3)))

    data = inputs(), labels()
    batches = list(zip(inputs().split(5), labels().split(5), strict=True))
    expected = [Objective(fixed(False), functional.cross_entropy, [b]).value() for b in batches]
    found = Objective(fixed(False), functional.cross_entropy, data, microbatch=5).value()
    torch.testing.assert_close(found, torch.stack(expected).mean())
    with pytest.raises(ValueError, match="influence each other"):
        Objective(fixed(True), functional.cross_entropy, data, microbatch=5).value()


def test_labels_that_turn_up_later_are_tried_too() -> None:
    """None is ignored in the first batch, and the denominators of later ones differ."""
    targets = labels()
    targets[7] = -100
    found = Objective(
        mlp(), lambda o, t: functional.cross_entropy(o, t), (inputs(), targets), microbatch=5
    )
    with pytest.raises(ValueError, match="no average over samples"):
        found.value()


@pytest.mark.parametrize("scale", [3.0, 1e-3])
@pytest.mark.parametrize("of_batch", [True, False])
def test_a_term_beside_the_logits_is_seen(scale: float, of_batch: bool) -> None:
    net, data = Balanced(scale, of_batch=of_batch), {"x": inputs(), "labels": labels()}
    whole = Objective(net, None, [data])
    block = torch.ones(1, whole.num_params, dtype=torch.float64)
    torch.testing.assert_close(whole.value(), net(**data).loss.detach())
    assert whole.hvp(block).any()
    with pytest.raises(ValueError, match="term beside its logits"):
        whole.ggnvp(block)
    with pytest.raises(ValueError, match=r"beside its logits|influence each other"):
        whole.sample_noise(1, batch_size=2, generator=torch.Generator())
    halves = [
        {name: part[half] for name, part in data.items()} for half in (slice(5), slice(5, 10))
    ]
    for split in (Objective(net, None, halves), Objective(net, None, [data], microbatch=1)):
        if of_batch:
            with pytest.raises(ValueError, match="batches do not add up"):
                split.value()
        else:
            torch.testing.assert_close(split.value(), whole.value())
