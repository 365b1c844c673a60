"""Optimizers inside what holds them, and those that others have written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from undertow import apply


def adamw(lr: float = 1e-3) -> torch.optim.AdamW:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=lr, betas=(0.9, 0.95))
    for _ in range(3):
        weight.grad = torch.ones(3)
        optimizer.step()
    return optimizer


class AcceleratedOptimizer(torch.optim.Optimizer):
    """A holder of the shape of accelerate's."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:
        return self.optimizer.state


class ZeroRedundancyOptimizer:
    """A holder that copies its own groups over those inside at each step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optim = optimizer
        self.param_groups = [dict(group) for group in optimizer.param_groups]

    def step(self) -> None:
        for own, inside in zip(self.param_groups, self.optim.param_groups, strict=True):
            inside.update({name: value for name, value in own.items() if name != "params"})
        self.optim.step()


class DeepSpeedEngine(nn.Module):
    """A holder that has no groups itself, of one that has."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.optimizer = AcceleratedOptimizer(optimizer)


class Mine:
    """A holder of one's own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups


HOLDERS = {
    "accelerate": AcceleratedOptimizer,
    "twice": lambda optimizer: AcceleratedOptimizer(AcceleratedOptimizer(optimizer)),
    "sharded": ZeroRedundancyOptimizer,
    "an engine": DeepSpeedEngine,
    "one's own": Mine,
}


@pytest.mark.parametrize("name", HOLDERS)
def test_the_optimizer_inside_is_moved(name: str) -> None:
    inner, alone = adamw(), adamw()
    found = apply.rescale(HOLDERS[name](inner), from_batch=8, to_batch=32)
    said = found.apply()
    assert said == apply.rescale(alone, from_batch=8, to_batch=32).apply()
    for key in ("lr", "betas", "eps", "weight_decay"):
        assert inner.param_groups[0][key] == alone.param_groups[0][key]
    state, other = (next(iter(one.state.values())) for one in (inner, alone))
    assert torch.equal(state["exp_avg_sq"], other["exp_avg_sq"])
    assert ("mere holder" in " ".join(found.notes)) == (name == "one's own")
    with pytest.raises(ValueError, match="call rescale again"):
        found.apply()


def test_a_holder_with_groups_of_its_own_keeps_the_move() -> None:
    inner = adamw()
    holder = ZeroRedundancyOptimizer(inner)
    apply.rescale(holder, from_batch=8, to_batch=32).apply()
    holder.step()
    assert inner.param_groups[0]["lr"] == pytest.approx(2e-3)


class Lookahead:
    """It keeps slow weights, which count steps of their own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups


class SAM(torch.optim.Optimizer):
    """It takes two gradients a step."""

    def __init__(self, params: Any, **hyper: Any) -> None:
        super().__init__(params, {"rho": 0.05, **hyper})
        self.base_optimizer = torch.optim.SGD(self.param_groups, **hyper)
        self.param_groups = self.base_optimizer.param_groups


def test_what_acts_on_its_own_is_no_mere_holder() -> None:
    with pytest.raises(TypeError, match=r"Lookahead.*around AdamW; give the optimizer inside"):
        apply.rescale(Lookahead(adamw()), from_batch=8, to_batch=32)
    with pytest.raises(TypeError, match=r"SAM.*around SGD"):
        apply.rescale(SAM([nn.Parameter(torch.ones(2))], lr=0.1), from_batch=8, to_batch=32)


class Own(torch.optim.Adam):
    """Somebody's Adam."""


class Strange(torch.optim.Optimizer):
    """Nobody knows what it does."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "weight_decay": 0.1})


def test_a_class_made_from_one_is_of_its_family_and_another_of_none() -> None:
    weights = [nn.Parameter(torch.ones(2))]
    moved = apply.rescale(Own(weights, lr=1e-3), from_batch=8, to_batch=32)
    assert moved.hyper[0]["lr"] == pytest.approx(2e-3)
    strange = Strange(weights)
    found = apply.rescale(strange, from_batch=8, to_batch=32)
    assert "Strange is no optimizer that is known here" in " ".join(found.notes)
    assert "open" in found.text()
    with pytest.raises(ValueError, match="no rule is known for the rate of Strange"):
        found.apply()
    assert strange.param_groups[0]["lr"] == 0.1


def test_a_class_may_be_named() -> None:
    strange = Strange([nn.Parameter(torch.ones(2))])
    apply.rescale(strange, from_batch=8, to_batch=16, optimizer="sgd").apply()
    assert strange.param_groups[0]["lr"] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="'sgd', and the one that is given is AdamW"):
        apply.rescale(adamw(), from_batch=8, to_batch=16, optimizer="sgd")


def test_scales_of_8_bits_stand_for_the_mean_squares() -> None:
    class AdamW8bit(torch.optim.Optimizer):
        """A state of the shape of bitsandbytes'."""

    weight = nn.Parameter(torch.ones(2))
    optimizer = AdamW8bit([weight], {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8})
    optimizer.state[weight] = {
        "step": 10,
        "state1": torch.zeros(2, dtype=torch.uint8),
        "state2": torch.zeros(2, dtype=torch.uint8),
        "absmax1": torch.ones(1),
        "absmax2": torch.ones(1),
    }
    apply.rescale(optimizer, from_batch=8, to_batch=32).apply()
    state = optimizer.state[weight]
    assert float(state["absmax2"]) == pytest.approx(1 / 4)
    assert float(state["absmax1"]) == 1
    assert state["step"] == 3  # a whole number, as its kernels take


@pytest.mark.parametrize("kind", ["NAdam", "RAdam", "Adamax", "Adafactor", "Muon", "RMSprop"])
def test_steps_go_on_after_the_move(kind: str) -> None:
    if not hasattr(torch.optim, kind):
        pytest.skip(f"this torch has no {kind}")
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = getattr(torch.optim, kind)([weight], lr=1e-3)
    for step in range(4):
        weight.grad = torch.ones(3, 2)
        optimizer.step()
        if step == 1:
            found = apply.rescale(optimizer, from_batch=8, to_batch=32)
            found.apply()
            new = found.groups[0].hyper["lr"]
            assert optimizer.param_groups[0]["lr"] == pytest.approx(new)
    assert bool(weight.isfinite().all())


def test_accelerate_itself() -> None:
    accelerate = pytest.importorskip("accelerate")
    inner = adamw()
    holder = accelerate.Accelerator(cpu=True).prepare_optimizer(inner)
    apply.rescale(holder, from_batch=8, to_batch=32).apply()
    assert inner.param_groups[0]["lr"] == pytest.approx(2e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(inner, 0.1, 100)
    held = accelerate.Accelerator(cpu=True).prepare_scheduler(scheduler)
    apply.rescale(holder, from_batch=8, to_batch=16, scheduler=held).apply()
    assert inner.param_groups[0]["initial_lr"] == pytest.approx(0.1 / 25 * 2**0.5)


def test_lightnings_optimizer_itself() -> None:
    optimizers = pytest.importorskip("lightning.pytorch.core.optimizer")
    inner = adamw()
    apply.rescale(optimizers.LightningOptimizer(inner), from_batch=8, to_batch=32).apply()
    assert inner.param_groups[0]["lr"] == pytest.approx(2e-3)


@pytest.fixture
def _one_process() -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", rank=0, world_size=1, store=torch.distributed.HashStore()
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("_one_process")
def test_zero_redundancy_itself() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer as Sharded

    weight = nn.Parameter(torch.ones(3))
    optimizer = Sharded([weight], torch.optim.AdamW, lr=1e-3)
    weight.grad = torch.ones(3)
    optimizer.step()
    apply.rescale(optimizer, from_batch=8, to_batch=32).apply()
    optimizer.step()
    assert optimizer.optim.param_groups[0]["lr"] == pytest.approx(2e-3)
