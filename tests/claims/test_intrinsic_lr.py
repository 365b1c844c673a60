"""The claim intrinsic-lr: its world, and the laws of its runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from contract import Contract

from undertow import claims
from undertow.claims import Records
from undertow.claims.intrinsic_lr import CONTROLS, KINDS, IntrinsicLr, experiments, norms, trials
from undertow.claims.intrinsic_lr.predictions import crossing
from undertow.claims.intrinsic_lr.trials import Circle, Rest
from undertow.data import Images

TINY = IntrinsicLr(
    images=Images(train_size=40),
    width=8,
    product=0.2,
    members=2,
    random_steps=4,
    shown=20,
    horizon=4,
    readings=2,
    steps=4,
    seeds=2,
)
KNOBS = IntrinsicLr(seeds=12)
CLAIM = claims.get("intrinsic-lr")
_SMALL = KNOBS.annealed_lr / trials.SMALLER


def world(
    seeds: int = 12,
    *,
    met: float = 1.05,
    first: float = 8.0,
    other: float = 2.0,
    as_long: float = 3.0,
    power: float = -1.0,
    late: float = 1.0,
    gap: float = 0.4,
    growth: float = 1.4,
    averaged: float = 0.9,
    norm: float = 1.0,
    turn: float = 1.0,
    heavy: float = 0.9,
    rate: float = 1.0,
    twice: float = 1.3,
    clock: float = -4.0,
    bare_clock: float = -3.0,
    longer: float = 0.0,
    shorter: float = -0.1,
    bare: float = 6.0,
    head: float = 20.0,
    undecayed: float = 30.0,
    highest: float = 0.5,
    lowest: float = 1e-9,
    apart: float = 0.5,
    still: float = 0.0,
) -> Records:
    """Records of a world in which every prediction holds, but for what is given otherwise."""
    generator = np.random.default_rng(0)

    def drawn(value: float) -> float:
        return value * generator.normal(1, 0.01)

    frames: dict[str, list[dict[str, Any]]] = {name: [] for name in ("functions", "weights")}
    frames |= {name: [] for name in ("rest", "clock", "schedules", "circle")}
    end = float(KNOBS.horizon)
    for seed, kind in ((seed, kind) for seed in range(seeds) for kind in KINDS):
        own = {"seed": seed, "kind": kind}

        def compared(what: str, product: float, time: float, far: float, own: Any = own) -> None:
            row = {"compared": what, "product": product, "time": time}
            far = {"distance": 0.03 * drawn(far), "null": 0.03, "p_value": 0.5}
            frames["functions"].append(own | row | far)

        for number, product in enumerate(KNOBS.products):
            # Steps until the distance is twice chance, in parts of 1 / product.
            meets = 1.6 * (product / KNOBS.product) ** (power + 1) * late ** (number > 1)
            for time in trials.TIMES:
                far = first if time == trials.TIMES[0] else 2 * math.exp(meets - time)
                compared("starts", product, time, max(far, met))
            compared("starts", product, end, met)
            if number:
                compared("products", product, end, other)
        compared("steps", KNOBS.products[-1], trials.EARLY, as_long)
        for time in range(2, KNOBS.horizon + 1):
            ways = {"moved": drawn(0.3 * (growth if time > 4 else 1.0))}
            cosines = {"within": 0.3 + drawn(gap), "across": 0.3}
            losses = {"loss": 0.5, "averaged_loss": drawn(0.5 * averaged)}
            frames["weights"].append(own | {"time": float(time)} | ways | cosines | losses)
        slow = KNOBS.lr * (1 - KNOBS.momentum)
        cells = [
            (KNOBS.lr * trials.SPLIT, norm, rate, True),
            (KNOBS.lr / trials.SPLIT, norm, 1.0, True),
            (slow, heavy, 1.0, True),
            (KNOBS.lr, 1.0, twice, True),
            (KNOBS.lr, 1.0, 1.0, False),
        ]
        for lr, over, faster, decayed in cells:
            fourth = (lr / (0.02 * faster)) ** 2
            if not decayed:
                fourth = (lr / (0.02 * twice)) ** 2 * undecayed
            laws = {"predicted": fourth / over, "predicted_turn": 0.1 / turn}
            row = {"lr": lr, "decayed": decayed, "layer": 1, "fourth": drawn(fourth), "turned": 0.1}
            laws = laws if decayed else dict.fromkeys(laws)
            frames["rest"].append(own | row | laws)
        for time in trials.CLOCK:
            for lr in (KNOBS.lr, slow):
                ratio = 1 + 1000 * math.exp(drawn(clock) * time)
                frames["clock"].append(own | {"lr": lr, "time": time, "ratio": ratio})
        for lr, steps, more in (
            (KNOBS.annealed_lr, KNOBS.steps, 0.0),
            (_SMALL, KNOBS.steps * trials.LONGER, longer),
            (_SMALL, KNOBS.steps, shorter),
        ):
            accuracy = {"accuracy": 0.95 + more + generator.normal(0, 1e-3)}
            frames["schedules"].append(own | {"lr": lr, "steps": steps} | accuracy)
    for seed in range(seeds):
        for kind, layer, over in (("no norm", 1, bare), ("trained head", 3, head)):
            row = {"seed": seed, "kind": kind, "lr": KNOBS.lr, "decayed": True, "layer": layer}
            numbers = {"fourth": drawn(over), "turned": 0.1, "predicted": 1.0}
            frames["rest"].append(row | numbers | {"predicted_turn": 0.1})
        for time in trials.CLOCK:
            ratio = 1 + 1000 * math.exp(bare_clock * time)
            row = {"seed": seed, "kind": "no norm", "lr": KNOBS.lr, "time": time, "ratio": ratio}
            frames["clock"].append(row)
        for decayed, top in ((True, highest), (False, still)):
            row = {"seed": seed, "decayed": decayed, "highest": top}
            frames["circle"].append(row | {"lowest": lowest, "apart": apart})
    return {
        name: pl.DataFrame([{"trial": str(place)} | row for place, row in enumerate(rows)])
        for name, rows in frames.items()
    }


CONTRACT = Contract(
    claim="intrinsic-lr",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"met": 1.7}, "distance of two starts over chance, at the end, batch norm"),
        ({"power": -3.0}, "power of the product in the steps until they meet, batch norm"),
        ({"growth": 0.9}, "square distance of weights, later over earlier, batch norm"),
        ({"averaged": 1.1}, "test loss of weights averaged over time"),
        ({"gap": -0.1}, "cosine of weights from one start above that from two"),
        ({"norm": 1.7}, "||w||^4 over the law's, lr 0.05 and 0.8, batch norm"),
        ({"turn": 1.7}, "turn of a step over the law's, lr 0.05 and 0.8, batch norm"),
        ({"heavy": 0.4}, "||w||^4 over the law's, momentum 0.9, batch norm"),
        ({"rate": 4.0}, "effective lr, lr 0.8 over lr 0.05, batch norm"),
        ({"clock": -1.0}, "rate at which ||w||^4 comes back over lr x weight_decay, batch norm"),
        ({"longer": -0.1}, "test accuracy, initial lr / 100 and 10 times as long"),
        ({"highest": 0.0}, "full batches with decay: the late loss rises above 0.1"),
        ({"lowest": 0.1}, "full batches with decay: and falls below 1e-6"),
        ({"apart": 0.0}, "full batches with decay: a twin 1e-9 off"),
    ],
    left_open=[
        ({"first": 1.5}, "distance of two starts over chance, at first"),
        ({"other": 1.0}, "distance to half the intrinsic lr over chance, at the end"),
        ({"as_long": 1.0}, "distance of the least product to the largest over chance"),
        ({"late": 2.0}, "steps until they meet over what is exponential in 1 / product"),
        ({"twice": 1.0}, "effective lr at twice the product over it"),
        ({"shorter": 0.0}, "test accuracy, initial lr / 100 and as long"),
        ({"bare": 1.0}, "||w||^4 over the law's, no norm"),
        ({"head": 1.0}, "||w||^4 over the law's, trained last layer"),
        ({"undecayed": 1.0}, "||w||^4 without decay over with, batch norm"),
        ({"bare_clock": -4.0}, "rate at which ||w||^4 comes back over lr x weight_decay, no norm"),
        ({"still": 0.1}, "full batches once decay is off"),
    ],
    bad_knobs=[
        ({"members": 1}, "members must be at least 2"),
        ({"product": 0.5}, "product must be"),
        ({"halvings": 1}, "halvings must be at least 2"),
        ({"horizon": 2}, "horizon must be at least 4"),
    ],
)


def test_when_something_is_first_below_zero() -> None:
    times = np.array([1.0, 2.0, 4.0, 8.0])
    assert crossing(times, np.array([3.0, 1.0, -1.0, 2.0])) == 3.0
    assert math.isnan(crossing(times, np.array([3.0, 1.0, 0.5, 0.1])))
    assert math.isnan(crossing(times, np.array([-1.0, 1.0, 0.5, 0.1])))


def trial(kind: str, **more: Any) -> Rest:
    shape: dict[str, Any] = {
        "width": TINY.width,
        "batch_size": 16,
        "lr": 0.2,
        "horizon": 4,
        "readings": 2,
    }
    return Rest(images=TINY.images, kind=kind, product=0.08, momentum=0.0, seed=0, **shape | more)


@pytest.mark.parametrize("kind", [*KINDS, *CONTROLS])
def test_what_is_trained_is_scale_invariant_and_controls_are_not(kind: str) -> None:
    net = trials.fresh(trial(kind)).train()
    far = trials.fresh(trial(kind), factor=4.0).train()
    inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    same = torch.equal(net(inputs), far(inputs))
    assert same == (kind != "no norm")
    head = net[-1].weight
    assert head.requires_grad == (kind == "trained head")
    assert torch.equal(head, trials.fresh(trial(kind), 1)[-1].weight)
    assert not torch.equal(net[1].weight, trials.fresh(trial(kind), 1)[1].weight)


def test_gradients_of_a_scale_invariant_layer_are_orthogonal_to_it() -> None:
    """By which the square norm after a step is a sum, as the law has it."""
    found = norms.of_rest([trial("batch norm")], 0.0)
    before = trials.trained_weights(found)
    after = trials.trained_weights(found) if found.ensemble.train(1) else {}
    for name, weights in before.items():
        step = after[name] - weights
        along = (step * weights).sum(1).abs() / (step.norm(dim=1) * weights.norm(dim=1))
        assert float(along.max()) < 1e-4


def test_full_batches_settle_once_decay_is_off() -> None:
    wild, still = experiments.descend(Circle(seed=3))
    assert wild["decayed"]
    assert wild["highest"] > 0.1 > 1e-6 > wild["lowest"]
    assert still["highest"] < 1e-12
