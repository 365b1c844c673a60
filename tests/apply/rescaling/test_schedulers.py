"""Moved schedulers: at the same samples, the rule's factor times the old schedule."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

from undertow import apply

Made = tuple[torch.optim.Optimizer, Any]
STEPS = 60


def sgd(lr: float = 0.1) -> torch.optim.Optimizer:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], "lr": lr / 4}]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=1e-3)


def adam(lr: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=lr, betas=(0.9, 0.99))


def halves(step: int) -> float:
    return 0.5 ** (step // 7)


class Warming:
    """A schedule that is a callable object, as some keep it."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / self.steps)


KINDS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "StepLR": lambda o: schedulers.StepLR(o, 7, 0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [5, 11, 23], 0.3),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.25, 9),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.1, 1.0, 13),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.93),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 40, eta_min=1e-3),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 6, 2, 1e-4),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 1e-3, 0.1, 8, mode="triangular2"),
    "CyclicLR of a gamma": lambda o: schedulers.CyclicLR(
        o, 1e-3, 0.1, 8, mode="exp_range", gamma=0.9
    ),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, STEPS + 9),
    "OneCycleLR in three": lambda o: schedulers.OneCycleLR(
        o, 0.1, STEPS + 9, three_phase=True, cycle_momentum=False
    ),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 50, 2.0),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, halves),
    "LambdaLR of an object": lambda o: schedulers.LambdaLR(o, Warming(17)),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda step: 0.97),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o,
        [
            schedulers.LinearLR(o, 0.1, 1.0, 10),
            schedulers.CosineAnnealingLR(o, 30),
            schedulers.ConstantLR(o, 0.1, 100),
        ],
        [10, 40],
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.1, 8), schedulers.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: SWALR(o, swa_lr=0.02, anneal_epochs=15),
}
MAKERS = {"sgd": sgd, "adam": adam}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def made(kind: str, maker: str = "sgd") -> Made:
    optimizer = MAKERS[maker]()
    return optimizer, KINDS[kind](optimizer)


def advance(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.step()
        scheduler.step()


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def momenta(optimizer: torch.optim.Optimizer) -> list[float]:
    return [
        group["betas"][0] if "betas" in group else group["momentum"]
        for group in optimizer.param_groups
    ]


def path(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[Any]:
    """Rates and momenta from here on."""
    found = [(rates(optimizer), momenta(optimizer))]
    for _ in range(steps):
        advance(optimizer, scheduler, 1)
        found.append((rates(optimizer), momenta(optimizer)))
    return found


def same(one: list[Any], other: list[Any]) -> bool:
    return torch.allclose(
        torch.tensor(one, dtype=torch.double), torch.tensor(other, dtype=torch.double)
    )


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [2, 4])
def test_the_old_path_is_followed_at_the_same_samples(kind: str, maker: str, factor: int) -> None:
    for taken in (0, 9):
        optimizer, scheduler = made(kind, maker)
        advance(optimizer, scheduler, taken)
        other = made(kind, maker)
        advance(*other, taken)
        old = path(*other, STEPS - taken)
        apply.rescale(optimizer, from_batch=8, to_batch=8 * factor, scheduler=scheduler).apply()
        new = path(optimizer, scheduler, (STEPS - taken) // factor)
        ratio = factor if maker == "sgd" else factor**0.5
        for index, (now, averages) in enumerate(new):
            before, momentum = old[index * factor]
            assert now == pytest.approx([ratio * rate for rate in before])
            power = 1 if maker == "sgd" else factor
            assert averages == pytest.approx([one**power for one in momentum])
        assert scheduler.get_last_lr() == pytest.approx(new[-1][0])


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    batches=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    taken=st.integers(0, 20),
)
def test_any_pace_holds_the_rate_of_the_last_old_step(
    kind: str, batches: tuple[int, int], taken: int
) -> None:
    start, end = batches
    optimizer, scheduler = made(kind)
    advance(optimizer, scheduler, taken)
    other = made(kind)
    advance(*other, taken)
    old = path(*other, STEPS - taken)
    apply.rescale(optimizer, from_batch=start, to_batch=end, scheduler=scheduler).apply()
    last = (STEPS - taken) * start // end
    for index, (now, _) in enumerate(path(optimizer, scheduler, min(last, 50))):
        before, _ = old[index * end // start]
        assert now == pytest.approx([end / start * rate for rate in before])


@pytest.mark.parametrize("kind", KINDS)
def test_its_state_goes_on_in_another_that_was_moved(kind: str) -> None:
    optimizer, scheduler = made(kind)
    advance(optimizer, scheduler, 5)
    apply.rescale(optimizer, from_batch=8, to_batch=16, scheduler=scheduler).apply()
    advance(optimizer, scheduler, 3)
    kept = io.BytesIO()
    torch.save({"scheduler": scheduler.state_dict(), "optimizer": optimizer.state_dict()}, kept)
    kept.seek(0)
    # Up to torch 2.9 the state of SWALR holds a function.
    loaded = torch.load(kept, weights_only=kind != "SWALR")
    expected = path(optimizer, scheduler, 15)

    again, other = made(kind)
    apply.rescale(again, from_batch=8, to_batch=16, scheduler=other).apply()
    again.load_state_dict(loaded["optimizer"])
    other.load_state_dict(loaded["scheduler"])
    assert same(path(again, other, 15), expected)


@pytest.mark.parametrize("kind", ["StepLR", "OneCycleLR", "SequentialLR", "LambdaLR of an object"])
def test_it_is_still_of_its_kind_and_can_be_copied(kind: str) -> None:
    optimizer, scheduler = made(kind)
    before = type(scheduler)
    advance(optimizer, scheduler, 2)
    found = apply.rescale(optimizer, from_batch=8, to_batch=16, scheduler=scheduler)
    found.apply()
    assert isinstance(scheduler, before)
    assert found.scheduler is scheduler
    twin_optimizer, twin = copy.deepcopy((optimizer, scheduler))
    expected = path(optimizer, scheduler, 10)
    assert same(path(twin_optimizer, twin, 10), expected)
    if kind == "StepLR":
        assert isinstance(pickle.loads(pickle.dumps(scheduler)), before)


def test_there_and_back_is_the_old_schedule() -> None:
    optimizer, scheduler = made("CosineAnnealingLR")
    other = made("CosineAnnealingLR")
    old = path(*other, 40)
    apply.rescale(optimizer, from_batch=8, to_batch=32, scheduler=scheduler).apply()
    advance(optimizer, scheduler, 3)
    apply.rescale(optimizer, from_batch=32, to_batch=8, scheduler=scheduler).apply()
    for index, (now, _) in enumerate(path(optimizer, scheduler, 20)):
        assert now == pytest.approx(old[12 + index // 4 * 4][0])


def test_a_schedule_of_epochs_keeps_its_pace() -> None:
    for argument in ("told", "counted"):
        optimizer = adam()
        scheduler = schedulers.StepLR(optimizer, 3, 0.1)
        weight = optimizer.param_groups[0]["params"][0]
        for _ in range(2):
            for _ in range(10):
                weight.grad = torch.ones(2)
                optimizer.step()
            scheduler.step()
        told: Any = {"scheduler": scheduler, "interval": "epoch"}
        given_ = told if argument == "told" else scheduler
        found = apply.rescale(optimizer, from_batch=8, to_batch=32, scheduler=given_)
        found.apply()
        scheduler.step()
        assert rates(optimizer) == pytest.approx([0.01 * 2 * 0.1])
        assert ("by epochs" in " ".join(found.notes)) == (argument == "counted")


def test_what_lightning_configures_is_an_optimizer_with_its_scheduler() -> None:
    optimizer, scheduler = made("StepLR")
    configured = {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 1},
    }
    apply.rescale(configured, from_batch=8, to_batch=16).apply()
    advance(optimizer, scheduler, 4)  # eight old steps, of which the seventh halves the rate
    assert rates(optimizer)[0] == pytest.approx(0.1)


def test_a_fraction_of_an_epoch_is_the_same_at_any_batch() -> None:
    optimizer, scheduler = made("CosineAnnealingWarmRestarts")
    other = made("CosineAnnealingWarmRestarts")
    apply.rescale(optimizer, from_batch=8, to_batch=32, scheduler=scheduler).apply()
    for epoch in (0.5, 2.25, 7.75, 20.0):
        scheduler.step(epoch)
        other[1].step(epoch)
        assert rates(optimizer) == pytest.approx([4 * rate for rate in rates(other[0])])


def test_a_plateau_keeps_its_patience_and_moves_its_floor() -> None:
    for min_lr in (1e-3, [1e-3, 1e-4]):
        optimizer, other = sgd(), sgd()
        scheduler = schedulers.ReduceLROnPlateau(optimizer, patience=2, min_lr=min_lr)
        reference = schedulers.ReduceLROnPlateau(other, patience=2, min_lr=min_lr)
        for metric in (1.0, 1.0):
            scheduler.step(metric)
            reference.step(metric)
        apply.rescale(optimizer, from_batch=8, to_batch=32, scheduler=scheduler).apply()
        for metric in (1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
            scheduler.step(metric)
            reference.step(metric)
            assert rates(optimizer) == pytest.approx([4 * rate for rate in rates(other)])


def test_two_schedulers_of_one_optimizer_move_together() -> None:
    def both() -> tuple[torch.optim.Optimizer, list[Any]]:
        optimizer = sgd()
        return optimizer, [
            schedulers.ExponentialLR(optimizer, 0.9),
            schedulers.StepLR(optimizer, 5, 0.5),
        ]

    (optimizer, pair), (other, reference) = both(), both()
    apply.rescale(optimizer, from_batch=8, to_batch=16, scheduler=pair).apply()
    for _ in range(8):
        for scheduler in pair:
            scheduler.step()
        for _ in range(2):
            for scheduler in reference:
                scheduler.step()
        assert rates(optimizer) == pytest.approx([2 * rate for rate in rates(other)])


class Trainer:
    """Somebody whose method is a schedule, and who must not be copied with it."""

    def __init__(self) -> None:
        self.scale = 1.0

    def __deepcopy__(self, memo: dict[int, Any]) -> Trainer:
        raise AssertionError("it was copied")

    def factor(self, step: int) -> float:
        return self.scale / (step + 1)


def test_an_object_whose_method_is_the_schedule_is_not_copied() -> None:
    optimizer, trainer = sgd(), Trainer()
    scheduler = schedulers.LambdaLR(optimizer, trainer.factor)
    apply.rescale(optimizer, from_batch=8, to_batch=16, scheduler=scheduler).apply()
    trainer.scale = 3.0
    advance(optimizer, scheduler, 1)
    assert rates(optimizer)[0] == pytest.approx(0.1 * 2 * 3.0 / 3)


def test_the_end_of_a_schedule_is_its_end() -> None:
    optimizer = sgd()
    scheduler = schedulers.OneCycleLR(optimizer, 0.1, 10)
    apply.rescale(optimizer, from_batch=8, to_batch=24, scheduler=scheduler).apply()
    advance(optimizer, scheduler, 4)  # twelve old steps: the last new one goes across the end
    with pytest.raises(ValueError, match="Tried to step"):
        advance(optimizer, scheduler, 1)


def test_rates_kept_in_tensors_stay_those_tensors() -> None:
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=rate)
    scheduler = schedulers.ExponentialLR(optimizer, 0.5)
    apply.rescale(optimizer, from_batch=8, to_batch=32, scheduler=scheduler).apply()
    advance(optimizer, scheduler, 1)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.2 * 0.5**4)


def test_the_rule_reads_the_schedules_peak() -> None:
    for steps in (0, 3, 30):
        optimizer, scheduler = made("OneCycleLR", "adam")
        advance(optimizer, scheduler, steps)
        found = apply.rescale(optimizer, from_batch=8, to_batch=16, scheduler=scheduler)
        changes = {change.name: change.old for change in found.groups[0].changes}
        assert changes["lr"] == pytest.approx(0.1)
        assert changes["betas"] == pytest.approx((0.85, 0.99))  # the momentum at that rate


def test_what_was_applied_is_not_applied_again() -> None:
    optimizer, scheduler = made("OneCycleLR")
    found = apply.rescale(optimizer, from_batch=8, to_batch=16, scheduler=scheduler)
    found.apply()
    once = rates(optimizer)
    with pytest.raises(ValueError, match="call rescale again"):
        found.apply()
    assert rates(optimizer) == once


def test_a_scheduler_that_is_not_given_is_not_left_behind() -> None:
    optimizer, scheduler = made("StepLR")
    before = rates(optimizer)
    found = apply.rescale(optimizer, from_batch=8, to_batch=16)
    assert "under a scheduler" in " ".join(found.notes)
    with pytest.raises(ValueError, match="give it as scheduler="):
        found.apply()
    assert rates(optimizer) == before
    apply.rescale(optimizer, from_batch=8, to_batch=16, scheduler=False).apply()
    assert rates(optimizer) == pytest.approx([2 * rate for rate in before])
    initial = [float(group["initial_lr"]) for group in optimizer.param_groups]
    assert initial == pytest.approx([2 * rate for rate in before])
    assert scheduler.last_epoch == 0


def test_what_is_no_scheduler_of_this_optimizer_is_refused() -> None:
    optimizer, _ = made("StepLR")
    _, foreign = made("StepLR")
    moved: dict[str, Any] = {"from_batch": 8, "to_batch": 16}
    with pytest.raises(ValueError, match="got another's"):
        apply.rescale(optimizer, **moved, scheduler=foreign)
    with pytest.raises(TypeError, match=r"one of torch\.optim\.lr_scheduler.*got object"):
        apply.rescale(optimizer, **moved, scheduler=object())
    with pytest.raises(ValueError, match="interval must be"):
        apply.rescale(
            optimizer, **moved, scheduler={"scheduler": KINDS["StepLR"](optimizer), "interval": "b"}
        )
    with pytest.raises(TypeError, match="goes with an optimizer"):
        apply.rescale({"lr": 0.1, "optimizer": "sgd"}, **moved, scheduler=foreign)
    fresh, scheduler = made("StepLR")
    state = scheduler.state_dict()
    apply.rescale(fresh, **moved, scheduler=scheduler).apply()
    with pytest.raises(ValueError, match="before it was moved"):
        scheduler.load_state_dict(state)


def test_betas_out_of_the_rules_reach_are_refused_before_anything_moves() -> None:
    optimizer, scheduler = made("OneCycleLR", "adam")  # its first beta goes down to 0.85
    with pytest.raises(ValueError, match="largest k"):
        apply.rescale(optimizer, from_batch=8, to_batch=64, scheduler=scheduler, betas="sde")
    assert rates(optimizer) == pytest.approx([0.004])
