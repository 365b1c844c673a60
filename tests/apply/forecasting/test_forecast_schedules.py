"""Schedules by name, as lists and functions, and the schedulers of PyTorch and Transformers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from undertow import apply, predict

STEPS = 60
RUN: dict[str, Any] = {"weight_decay": 0.1, "steps": STEPS, "batch_size": 8}


def test_one_cycle_is_that_of_torch() -> None:
    for share in (0.3, 0.1, 0.5):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
        own = schedulers.OneCycleLR(optimizer, 1.0, total_steps=STEPS, pct_start=share)
        expected = []
        for step in range(STEPS):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if step < STEPS - 1:
                own.step()
        found = apply.lr_factors(f"onecycle:{share}", STEPS)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_shapes_end_at_their_floor_and_keep_their_stable_part() -> None:
    for name in ("cosine", "linear"):
        found = apply.lr_factors(f"{name}:0.1", 1_000, warmup_steps=100)
        assert found[-1] == pytest.approx(0.1)
        assert found[100] == pytest.approx(1)
        plain = apply.lr_factors(name, 1_000, warmup_steps=100)
        np.testing.assert_allclose(found[100:], 0.1 + 0.9 * plain[100:])
    for spelled, decaying, floor in (
        ("wsd", 100, 0),
        ("wsd:0.2", 200, 0),
        ("wsd:0.2,0.5", 200, 0.5),
    ):
        found = apply.lr_factors(spelled, 1_000, warmup_steps=50)
        assert (found[50 : 1_000 - decaying] == 1).all()
        assert (np.diff(found[1_000 - decaying - 1 :]) < 0).all()
        assert found[-1] == pytest.approx(floor)
    for alias, name in (("warmup-stable-decay", "wsd"), ("constant_with_warmup", "constant")):
        np.testing.assert_array_equal(apply.lr_factors(alias, 50), apply.lr_factors(name, 50))


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("cosine:2", "floor must be from 0 to 1, got 2"),
        ("cosine:0.1,0.2", "does not parse"),
        ("constant:0.1", "does not parse"),
        ("wsd:1.5", "decay share must be from 0 to 1"),
        ("wsd:nan", "decay share must be"),
        ("onecycle:0.3,0.5", "div_factor must be at least 1"),
        ("triangle", "does not parse; give constant, cosine or cosine:FLOOR"),
    ],
)
def test_what_no_schedule_is(schedule: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        apply.lr_factors(schedule, 100)


MADE: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda _: 0.95),
    "StepLR": lambda o: schedulers.StepLR(o, 7),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [5, 20]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, total_iters=9),
    "LinearLR": lambda o: schedulers.LinearLR(o, total_iters=9),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 40, power=2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 25, eta_min=1e-3),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 8, T_mult=2),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=6),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=STEPS),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o,
        [schedulers.LinearLR(o, 0.1, total_iters=10), schedulers.ExponentialLR(o, 0.97)],
        milestones=[10],
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.5, total_iters=4), schedulers.ExponentialLR(o, 0.9)]
    ),
}


def job(make: Callable[[Any], Any], kind: Any = torch.optim.SGD) -> tuple[Any, Any]:
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = kind([param], lr=0.1, **options)
    return optimizer, make(optimizer)


@pytest.mark.parametrize("taken", [0, 5])
@pytest.mark.parametrize("name", MADE)
def test_a_scheduler_gives_the_rates_of_the_run_and_is_left_as_it_was(
    name: str, taken: int
) -> None:
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        optimizer, scheduler = job(MADE[name], kind)
        for _ in range(taken):
            optimizer.step()
            scheduler.step()
        before = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(scheduler.state_dict())
        steps = STEPS - taken
        found = apply.forecast(**RUN | {"steps": steps}, schedule=scheduler)
        assert (optimizer.state_dict(), scheduler.state_dict()) == before
        assert scheduler.optimizer is optimizer
        assert any("goes on from its step" in note for note in found.notes) == bool(
            taken and name != "ChainedScheduler"
        )
        rates = []
        for step in range(steps):
            group = optimizer.param_groups[0]
            rates.append(group["lr"] / (1 - group.get("momentum", 0.0)))  # which some move, too
            optimizer.step()
            if step < steps - 1:
                scheduler.step()
        assert found.decay_exponent == pytest.approx(sum(rates) * 0.1)
        assert found.memory_steps == pytest.approx(1 / (max(rates) * 0.1))


def test_the_optimizer_is_the_one_that_the_scheduler_moves() -> None:
    _, sgd = job(MADE["StepLR"])
    _, adam = job(MADE["StepLR"], torch.optim.Adam)
    found = apply.forecast(**RUN, schedule=sgd)
    assert found.decay_exponent == apply.forecast(**RUN, schedule=sgd, momentum=0.9).decay_exponent
    assert found.effective_lr == pytest.approx(1.0)
    assert not apply.forecast(**RUN, schedule=adam).decays_so
    for schedule, given, said in (
        (adam, {"optimizer": "sgd"}, "the scheduler moves Adam: leave optimizer out"),
        (sgd, {"optimizer": "lion"}, "the scheduler moves SGD: leave optimizer out"),
        (sgd, {"momentum": 0.5}, "momentum is 0.5, and that of the optimizer"),
    ):
        with pytest.raises(ValueError, match=said):
            apply.forecast(**RUN, schedule=schedule, **given)


def test_an_optimizer_may_be_given_as_itself_or_its_class() -> None:
    param = torch.nn.Parameter(torch.zeros(1))
    heavy = torch.optim.SGD([param], lr=0.1, momentum=0.9)
    named = apply.forecast(**RUN, lr=0.1, momentum=0.9)
    assert apply.forecast(**RUN, lr=0.1, optimizer=heavy).decay_exponent == named.decay_exponent
    assert apply.forecast(**RUN, lr=0.1, optimizer=torch.optim.AdamW).decays_so
    nadam = torch.optim.NAdam([param], decoupled_weight_decay=True)
    assert apply.forecast(**RUN, lr=0.1, optimizer=nadam).decays_so
    assert not apply.forecast(**RUN, lr=0.1, optimizer=torch.optim.NAdam([param])).decays_so


def test_a_scheduler_by_epochs_steps_as_often_as_it_is_said() -> None:
    _, scheduler = job(MADE["StepLR"])
    found = apply.forecast(**RUN, schedule=scheduler, scheduler_interval=4)
    rates = [0.1 * 0.1 ** (step // 28) for step in range(STEPS)]
    expected = predict.decay_exponent(rates, 0.1, momentum=0.9)
    assert found.decay_exponent == pytest.approx(expected)
    lightning = {"scheduler": scheduler, "interval": "epoch"}
    with pytest.raises(ValueError, match="scheduler_interval is needed"):
        apply.forecast(**RUN, schedule=lightning)
    same = apply.forecast(**RUN, schedule=lightning, scheduler_interval=4)
    assert same.decay_exponent == found.decay_exponent


def test_schedulers_of_transformers_and_of_accelerate() -> None:
    transformers = pytest.importorskip("transformers")
    for name in ("linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"):
        optimizer, scheduler = job(
            lambda o, name=name: transformers.get_scheduler(
                name, o, num_warmup_steps=6, num_training_steps=STEPS
            ),
            torch.optim.AdamW,
        )
        found = apply.forecast(**RUN, schedule=scheduler, optimizer="adamw")
        rates = []
        for _ in range(STEPS):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert found.decay_exponent == pytest.approx(predict.decay_exponent(rates, 0.1))


def test_what_a_scheduler_cannot_say() -> None:
    optimizer, ending = job(MADE["OneCycleLR"])
    with pytest.raises(ValueError, match="the scheduler ends at step 61 of 100"):
        apply.forecast(**RUN | {"steps": 100}, schedule=ending)
    with pytest.raises(TypeError, match="ReduceLROnPlateau follows a loss"):
        apply.forecast(**RUN, schedule=schedulers.ReduceLROnPlateau(optimizer))
    _, constant = job(MADE["StepLR"])
    with pytest.raises(ValueError, match=r"lr is 0.3, and the scheduler's own peak 0\.1"):
        apply.forecast(**RUN, lr=0.3, schedule=constant)
    apply.forecast(**RUN, lr=0.1, schedule=constant)
    with pytest.raises(ValueError, match="warmup_steps goes with a schedule by name"):
        apply.forecast(**RUN, schedule=constant, warmup_steps=4)


def test_rates_and_factors_are_told_apart() -> None:
    rates = [0.1 * 0.9**step for step in range(STEPS)]
    factors = [0.9**step for step in range(STEPS)]
    found = apply.forecast(**RUN, lr=rates)
    for same in (
        apply.forecast(**RUN, lr=0.1, schedule=factors),
        apply.forecast(**RUN, lr=0.1, schedule=lambda step: 0.9**step),
        apply.forecast(**RUN, lr=np.array(rates)),
        apply.forecast(
            **RUN, schedule=job(lambda o: schedulers.ExponentialLR(o, 0.9), torch.optim.AdamW)[1]
        ),
    ):
        assert same.decay_exponent == pytest.approx(found.decay_exponent)
        assert same.memory_steps == pytest.approx(1 / (0.1 * 0.1))
    with pytest.raises(ValueError, match="these look like rates; give rates as lr"):
        apply.forecast(**RUN, lr=0.1, schedule=rates)
    with pytest.raises(ValueError, match="one rate a step already"):
        apply.forecast(**RUN, lr=rates, schedule="cosine")
    with pytest.raises(ValueError, match="one finite rate >= 0 for each of the 60 steps"):
        apply.forecast(**RUN, lr=rates[:-1])
    with pytest.raises(ValueError, match="lr is needed"):
        apply.forecast(**RUN)
    for wrong in ("1e-3", True, float, [[0.1]]):
        with pytest.raises(ValueError, match=r"lr must be|lr is"):
            apply.forecast(**RUN, lr=wrong)
    assert math.isfinite(apply.forecast(**RUN, lr=0.1, schedule=[0.0] * STEPS).decay_exponent)
