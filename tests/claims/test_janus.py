"""The claim janus: its world, and the laws of its runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from contract import Contract

from undertow import claims
from undertow.claims import Records
from undertow.claims.janus import DEEP_BATCH, Janus, experiments
from undertow.claims.janus.experiments import Deep, OnGaussian, OnImages
from undertow.data import Images

TINY = Janus(
    images=Images(train_size=60),
    batch_sizes=(1, 10),
    samples=20,
    dimension=50,
    epochs=5,
    weight_decay=(0.0, 2e-4, 2e-3),
    late_steps=400,
    deep_steps=60,
    deep_weight_decay=(0.0, 2e-2),
    seeds=3,
)
KNOBS = Janus(seeds=12)


def world(
    seeds: int = 12,
    *,
    cyclic_rate: float = 1.0,
    short_descent: float = 1.0,
    undecayed: float = 1.0,
    matched_descent: float = 1.0,
    sgd_stable: float = 1.0,
    noise: float = 15.0,
    cyclic_noise: float = 1.0,
    power: float = 1.0,
    descent_noise: float = 1e-16,
    undecayed_noise: float = 1e-17,
    deep_rate: float = 1.0,
    descent_rank: float = 0.5,
    sgd_rank: float = 1.1,
    lost: int = 0,
) -> Records:
    """Records of a world in which every prediction holds, but for what is given otherwise."""
    generator = np.random.default_rng(0)

    def drawn(value: float) -> float:
        return value * generator.normal(1, 0.01)

    def end(cell: dict[str, Any], seed: int) -> dict[str, Any]:
        descent, decay = cell["order"] == "full", cell["weight_decay"]
        cyclic, steps = cell["order"] == "cyclic", cell["steps"]
        rate = cyclic_rate if cyclic else short_descent if steps == KNOBS.epochs else 1.0
        left = (1 - KNOBS.lr * decay) ** steps
        at_rest = descent_noise if descent else undecayed_noise
        moving = noise * (cyclic_noise if cyclic else 1) * decay**power
        moved = at_rest if descent or decay == 0 else moving
        return cell | {
            "trial": f"{cell} {seed}",
            "seed": seed,
            "step": steps,
            "final": True,
            "diverged": seed < lost,
            "epochs": steps * cell["batch_size"] / KNOBS.samples,
            "null_predicted": left,
            "null_ratio": left**rate
            * (undecayed if decay == 0 else matched_descent if descent and steps == 2400 else 1),
            "stable_rank": drawn(5 if descent else 5 * sgd_stable),
            "fluctuation": drawn(moved),
        }

    late = [
        {"weight_decay": decay, "steps": KNOBS.late_steps, "batch_size": size, "order": order}
        for decay in KNOBS.weight_decay
        for size, order in ((1, "epochs"), (1, "cyclic"), (40, "full"))
    ]
    cells = experiments.equal_ends(KNOBS)
    deep = [
        {
            "trial": f"{batch_size} {decay} {seed}",
            "seed": seed,
            "batch_size": batch_size,
            "weight_decay": decay,
            "diverged": seed < lost,
            "train_accuracy": 1.0,
            "deep_rank": round(drawn(3000 * kept)),
            "null_predicted": 0.1 if decay else 1.0,
            "null_ratio": 0.1**deep_rate if decay else 1.0,
        }
        for seed in range(seeds)
        for batch_size, own in ((400, 1.0), (DEEP_BATCH, sgd_rank))
        for decay, kept in ((0.0, 1.0), (2e-2, own * descent_rank))
    ]
    return {
        "gaussian": pl.DataFrame([end(c, seed) for c in cells + late for seed in range(seeds)]),
        "images": pl.DataFrame([end(cell, seed) for cell in cells for seed in range(seeds)]),
        "deep": pl.DataFrame(deep),
    }


CONTRACT = Contract(
    claim="janus",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"cyclic_rate": 1.01}, "null-space decay rate, error"),
        ({"short_descent": 1.01}, "decay per epoch, SGD over GD"),
        ({"sgd_stable": 0.7}, "stable rank, SGD over GD"),
        ({"noise": 1e-3}, "SGD's fluctuation with decay"),
        ({"cyclic_noise": 0.5}, "fluctuation, fixed order over shuffled"),
        ({"power": 0.5}, "fluctuation's power of the decay"),
        ({"deep_rate": 1.01}, "deep net, null-space rate"),
        ({"descent_rank": 1.0}, "deep net, GD's rank"),
        ({"sgd_rank": 0.7}, "deep net, rank, SGD over GD"),
    ],
    left_open=[
        ({"undecayed": 0.99}, "null space lost without decay"),
        ({"matched_descent": 1.01}, "null space, SGD over GD, same steps"),
        ({"descent_noise": 1e-3}, "GD's fluctuation with decay"),
        ({"undecayed_noise": 1e-3}, "SGD's fluctuation without decay"),
    ],
    bad_knobs=[
        ({"dimension": 10}, "dimension must exceed samples"),
        ({"batch_sizes": (40,)}, "batch_sizes must lie below samples = 40"),
        ({"batch_sizes": ()}, "batch_sizes must be at least 1 value"),
        ({"weight_decay": (-1.0, 1.0)}, "weight_decay must be at least 0"),
        ({"weight_decay": (0.0,)}, "weight_decay must be values of which one is positive"),
        ({"deep_weight_decay": (0.0,)}, "deep_weight_decay must be values of which one"),
        ({"images": Images()}, "train_size must be above 8"),
    ],
)


def test_the_order_must_show_at_no_decay_in_either_direction() -> None:
    weakest, *_, strongest = sorted(filter(None, KNOBS.weight_decay))
    cyclic, decay = pl.col("order") == "cyclic", pl.col("weight_decay")
    factor = pl.when(cyclic & (decay == weakest)).then(0.78)
    factor = factor.when(cyclic & (decay == strongest)).then(1.23).otherwise(1.0)
    records = dict(world())
    gaussian = records["gaussian"].with_columns(pl.col("fluctuation") * factor)
    verdict = claims.get("janus").judge(records | {"gaussian": gaussian}, KNOBS)
    (check,) = [c for c in verdict.checks if c.name.startswith("fluctuation, fixed order")]
    assert check.value == pytest.approx(0.78, abs=0.01)
    assert check.refuted


GAUSSIAN = OnGaussian(7, "epochs", 2.0, 2e-3, 40, 1, 20, 50)


@pytest.mark.parametrize("order", ["epochs", "cyclic", "replacement", "full"])
@pytest.mark.parametrize("kind", ["gaussian", "images"])
def test_the_null_space_decays_at_the_predicted_rate(order: Any, kind: str) -> None:
    common = {"batch_size": 20 if order == "full" else 7, "order": order}
    if kind == "gaussian":
        (rows,) = experiments.on_gaussian([replace(GAUSSIAN, **common)])
    else:
        real = OnImages(7, order, 2.0, 2e-3, 40, 1, Images(train_size=20))
        (rows,) = experiments.on_images([replace(real, **common)])
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    for row in rows:
        assert row["null_dimension"] >= 30
        assert row["null_ratio"] == pytest.approx(row["null_predicted"], rel=1e-10)
    assert rows[-1]["null_predicted"] == pytest.approx((1 - 2.0 * 2e-3) ** 40)


def test_initial_weights_and_inputs_come_from_different_streams() -> None:
    """From one stream the weights would lie in the inputs' span, and nothing could be forgotten."""
    (rows,) = experiments.on_gaussian([replace(GAUSSIAN, weight_decay=0.0)])
    assert rows[-1]["null_ratio"] == pytest.approx(1, abs=1e-12)


def test_the_law_holds_in_the_first_layer_of_a_deep_network() -> None:
    trial = Deep(Images(train_size=60), 16, 8, 0.1, 2e-2, 50, 4)
    ((row,),) = experiments.train_deep([trial])
    assert row["null_dimension"] > 0
    assert row["null_ratio"] == pytest.approx((1 - 0.1 * 2e-2) ** 50, rel=1e-10)


def test_a_network_that_diverges_has_no_rank() -> None:
    trial = Deep(Images(train_size=60), 16, 8, 1e200, 0.0, 50, 4)
    ((row,),) = experiments.train_deep([trial])
    assert row["diverged"]
    assert row["deep_rank"] is None


def test_runs_that_diverged_are_left_out_and_counted() -> None:
    verdict = claims.get("janus").judge(world(lost=1), KNOBS)
    assert verdict.outcome == "supported", verdict
    assert verdict.summary.startswith("73 of 876 runs")
    nothing = world(lost=12)
    assert claims.get("janus").judge(nothing, KNOBS).outcome == "inconclusive"
    assert not claims.get("janus").figures(nothing, KNOBS)
