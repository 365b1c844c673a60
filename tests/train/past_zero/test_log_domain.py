"""Losses below any float against plain ones, descent against the rules, and the scheduler."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from undertow import train
from undertow.measure import margins
from undertow.models import mlp
from undertow.objective import Objective

DOUBLE = torch.float64
LOSSES: tuple[Any, ...] = ("logistic", "exponential", "cubic")


def separated(seed: int, samples: int = 12) -> tuple[Tensor, Tensor]:
    """Two classes on either side of a plane."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 4, generator=generator, dtype=DOUBLE)
    labels = (inputs[:, 0] > 0).long()
    inputs[:, 0] += labels * 2.0 - 1
    return inputs, labels


def networks(seeds: tuple[int, ...] = (3, 4), loss: Any = "logistic") -> train.LogDomain:
    inputs, labels = (torch.stack(each) for each in zip(*map(separated, seeds), strict=True))
    made = [
        mlp((4, 8, 2), bias=False, generator=torch.Generator().manual_seed(seed)) for seed in seeds
    ]
    return train.LogDomain(made, inputs, labels, loss=loss)


def test_the_cross_entropy_and_its_gradient_where_floats_have_it() -> None:
    scores = torch.randn(6, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    scores.requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    found = train.log_losses(scores, labels)
    plain = functional.cross_entropy(scores, labels, reduction="none").log()
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)
    (one,) = torch.autograd.grad(found.sum(), scores, retain_graph=True)
    (other,) = torch.autograd.grad(plain.sum(), scores)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_below_any_float_the_log_goes_on_and_so_does_its_gradient(loss: Any) -> None:
    scores = torch.tensor([[0.0, 5000.0]], dtype=DOUBLE, requires_grad=True)
    found = train.log_losses(scores, torch.tensor([1]), loss=loss)
    power = 3 if loss == "cubic" else 1
    assert float(found.detach()) == pytest.approx(-(5000.0**power), rel=1e-12)
    (slope,) = torch.autograd.grad(found.sum(), scores)
    assert float(slope[0, 1]) == pytest.approx(-power * 5000.0 ** (power - 1), rel=1e-12)
    assert float(slope.sum()) == pytest.approx(0, abs=1e-6)


def test_losses_outside_the_family_and_single_columns_are_refused() -> None:
    square: Any = "square"
    with pytest.raises(ValueError, match="only losses with an exponential tail"):
        train.log_losses(torch.zeros(2, 2), torch.zeros(2).long(), loss=square)
    with pytest.raises(ValueError, match="at least two classes"):
        train.log_losses(torch.zeros(2, 1), torch.zeros(2).long())
    with pytest.raises(ValueError, match="leave normalisation out"):
        train.LogDomain([nn.BatchNorm1d(4)], torch.zeros(1, 3, 4), torch.zeros(1, 3).long())
    with pytest.raises(ValueError, match="must be of the 1 models"):
        train.LogDomain([nn.Linear(4, 2)], torch.zeros(2, 3, 4), torch.zeros(2, 3).long())


def test_margins_are_those_of_measure() -> None:
    stack = networks()
    found = stack.normalized_margins(2)
    for member in range(2):
        data = stack.inputs[member], stack.labels[member]
        own = margins(Objective(stack.module(member), functional.cross_entropy, data), degree=2)
        assert float(found["normalized"][member]) == pytest.approx(own.normalized, rel=1e-12)
        assert float(found["smoothed"][member]) == pytest.approx(own.smoothed, rel=1e-12)
        assert float(stack.log_loss()[member]) == pytest.approx(own.log_loss, rel=1e-12)


def test_a_small_step_lowers_log_loss_by_its_drop() -> None:
    stack = networks()
    before = stack.log_loss()
    train.descend_log_loss(stack, 1, drop=1e-6, degree=2)
    torch.testing.assert_close(
        before - stack.log_loss(), torch.full((2,), 1e-6, dtype=DOUBLE), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_small_steps_never_lower_the_smoothed_margin_and_large_ones_do(loss: Any) -> None:
    stack = networks(loss="logistic")
    train.past_zero_loss(stack, -3.0, period=5)
    stack.loss = loss
    kept = copy.deepcopy(stack)
    dips = train.descend_log_loss(stack, 200, drop=0.01, degree=2)
    assert dips.steps.tolist() == [200, 200]
    assert dips.falls.tolist() == [0, 0]
    assert (stack.normalized_margins(2)["smoothed"] > kept.normalized_margins(2)["smoothed"]).all()
    assert "fell in 0 of 400 steps" in repr(dips)
    assert dips.as_dict()["falls"] == [0, 0]
    wild = train.descend_log_loss(kept, 200, drop=500.0 if loss == "cubic" else 5.0, degree=2)
    assert int(wild.falls.sum()) > 0


def test_far_past_zero_a_member_does_not_depend_on_the_others() -> None:
    both, alone = networks(), networks((3,))
    train.past_zero_loss(both, -1200.0)
    train.past_zero_loss(alone, -1200.0)
    assert (both.log_loss() <= -1200).all()
    torch.testing.assert_close(both.log_loss()[:1], alone.log_loss(), rtol=1e-6, atol=0)


def test_a_member_that_does_not_arrive_is_marked_and_leaves_the_others_alone() -> None:
    both, alone = networks(), networks((3,))
    both.inputs[1, 1] = both.inputs[1, 0]
    both.labels[1, 1] = 1 - both.labels[1, 0]
    found = train.past_zero_loss(both, -20.0, max_steps=2000)
    (expected,) = train.past_zero_loss(alone, -20.0).tolist()
    assert found[0] == expected
    assert found[1].isnan()
    torch.testing.assert_close(both.log_loss()[:1], alone.log_loss(), rtol=1e-6, atol=0)
    assert both.log_loss()[1] > math.log(math.log(2))


def test_loss_based_epochs_lower_the_loss_and_a_constant_rate_is_plain_sgd() -> None:
    stack = networks()
    before = stack.log_loss()
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    train.loss_based_epochs(stack, 30, batch_size=4, generators=generators)
    assert (stack.log_loss() < before - 2).all()
    plain, torched = networks((3,)), networks((3,)).module(0)
    train.loss_based_epochs(
        plain, 2, batch_size=12, generators=[torch.Generator()], alpha=0.3, constant=True
    )
    optimizer = torch.optim.SGD(torched.parameters(), lr=0.3)
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(torched(plain.inputs[0]), plain.labels[0]).backward()
        optimizer.step()
    for one, other in zip(plain.module(0).parameters(), torched.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


# ---- the scheduler


def log_mean(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        losses = train.log_losses(model(data[0]), data[1])
    return float(losses.logsumexp(0)) - math.log(len(losses))


def run(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: train.LossBasedLR,
    data: tuple[Tensor, Tensor],
    epochs: int,
) -> None:
    for _ in range(epochs):
        optimizer.zero_grad()
        losses = train.log_losses(model(data[0]), data[1])
        if scheduler.is_relative:
            scheduler.relative(losses).backward()
        else:
            losses.exp().mean().backward()
        optimizer.step()
        scheduler.step(log_mean(model, data))


def started(relative: bool = True) -> tuple[Any, ...]:
    data = separated(3)
    model = networks((3,)).module(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
    scheduler = train.LossBasedLR(optimizer, log_loss=log_mean(model, data), relative=relative)
    return model, optimizer, scheduler, data


def test_the_relative_frame_is_the_rule_of_the_paper() -> None:
    ends = []
    for relative in (True, False):
        model, optimizer, scheduler, data = started(relative)
        run(model, optimizer, scheduler, data, 1)
        ends.append(log_mean(model, data))
    assert ends[0] == pytest.approx(ends[1], rel=1e-10)


def test_it_trains_below_any_float_with_every_loss_lower_than_the_last() -> None:
    model, optimizer, scheduler, data = started()
    last = scheduler.log_loss
    for _ in range(400):
        run(model, optimizer, scheduler, data, 1)
        assert scheduler.log_loss <= last
        last = scheduler.log_loss
    assert scheduler.kept + scheduler.taken_back == 400
    assert scheduler.get_last_lr() == [scheduler.alpha]
    assert last < -20


@pytest.mark.parametrize("loss", [5.0, math.nan])
def test_an_epoch_that_raised_the_loss_is_taken_back_with_the_optimizer(loss: float) -> None:
    model, optimizer, scheduler, data = started()
    run(model, optimizer, scheduler, data, 2)
    kept = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    alpha = scheduler.alpha
    with torch.no_grad():
        for each in model.parameters():
            each.add_(7.0)
    assert not scheduler.step(loss)
    assert scheduler.alpha == pytest.approx(alpha * 2**-0.1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[0][name])
    for key, value in optimizer.state_dict()["state"].items():
        assert torch.equal(value["momentum_buffer"], kept[1][key]["momentum_buffer"])


def test_a_run_that_is_resumed_ends_as_one_that_was_not() -> None:
    whole = started()
    run(*whole, 12)
    first = started()
    run(*first, 6)
    saved = copy.deepcopy([each.state_dict() for each in first[:3]])
    again = started()
    for each, state in zip(again[:3], saved, strict=True):
        each.load_state_dict(state)
    run(*again, 6)
    assert again[2].log_loss == whole[2].log_loss
    assert again[2].alpha == whole[2].alpha


def test_what_makes_no_scheduler_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    wrong: Any = "sgd"
    with pytest.raises(TypeError, match="optimizer must be"):
        train.LossBasedLR(wrong, log_loss=0.0)
    with pytest.raises(ValueError, match="alpha must be positive"):
        train.LossBasedLR(optimizer, log_loss=0.0, alpha=0.0)
    with pytest.raises(ValueError, match="shrink must be between"):
        train.LossBasedLR(optimizer, log_loss=0.0, shrink=1.5)
    with pytest.raises(ValueError, match="log_loss must be finite"):
        train.LossBasedLR(optimizer, log_loss=-math.inf)
    with pytest.raises(ValueError, match="use relative=True"):
        train.LossBasedLR(optimizer, log_loss=-900.0)
    scheduler = train.LossBasedLR(optimizer, log_loss=0.0)
    with pytest.raises(ValueError, match="made with relative=True"):
        scheduler.relative(torch.zeros(2))
    with pytest.raises(ValueError, match="rounded to zero"):
        scheduler.step(-math.inf)
