"""The claim janus: its world, and the laws of its runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from contract import Contract

from undertow import claims, measure
from undertow.claims import Records
from undertow.claims.janus import Janus, experiments
from undertow.claims.janus.experiments import Deep, OnGaussian, OnImages
from undertow.data import Images
from undertow.train import Member

TINY = Janus(
    images=Images(train_size=60),
    batch_sizes=(1, 10),
    samples=20,
    dimension=50,
    epochs=5,
    weight_decay=(2e-4, 2e-3),
    late_steps=400,
    deep_steps=240,
    deep_weight_decay=(0.0, 2e-2),
    seeds=3,
)
KNOBS = Janus(seeds=12)
STRONGEST = max(KNOBS.deep_weight_decay)


@dataclass(frozen=True)
class Broken:
    """What differs from a world in which every prediction holds."""

    orbit: float = 1.0  # fluctuation in a fixed order over that of the orbit
    ridge: float = 1.0  # and of shuffled epochs over that at the ridge solution
    ordered: float = 1.0  # of the orbit over that at the ridge solution
    descent_noise: float = 1e-16
    undecayed_noise: float = 1e-17
    sgd_stable: float = 1.0  # stable rank, of SGD over descent
    deep_shuffled: float = 1.1  # SGD's fluctuation over what the gradients say
    deep_ordered: float = 0.95
    chatter: float = 1 / 60  # descent's, over what SGD's should be
    smooth: float = 1e-7
    kept: float = 1.0  # of SGD's fluctuation, from half-way to the end
    undecayed_kept: float = 0.5  # the same without decay
    grows: float = 1.0  # power of the decay with which the noise grows
    epoch_rank: float = 1.0  # of descent after few steps, of the width
    undecayed_rank: float = 1.0  # of SGD without decay, of the width
    descent_rank: float = 0.5  # of descent, strongest over no decay
    sgd_rank: float = 1.05  # of SGD over descent

    def linear(self, cell: dict[str, Any], jitter: float) -> dict[str, Any]:
        """The end of a regression."""
        order, decay = cell["order"], cell["weight_decay"]
        ridge = 15 * decay if decay and order != "full" else None
        moved = self.descent_noise if order == "full" else self.undecayed_noise
        orbit = None
        if ridge is not None:
            orbit = ridge * self.ordered * jitter if order == "cyclic" else None
            moved = ridge * self.ridge * jitter if orbit is None else orbit * self.orbit
        return {
            "null_predicted": (1 - KNOBS.lr * decay) ** cell["steps"],
            "null_ratio": (1 - KNOBS.lr * decay) ** cell["steps"],
            "stable_rank": 5.0 * jitter * (1 if order == "full" else self.sgd_stable),
            "fluctuation": moved,
            "ridge": ridge,
            "orbit": orbit,
        }

    def deep(self, cell: dict[str, Any], step: int, jitter: float) -> dict[str, Any]:
        """A reading of a deep network."""
        decay, order, end = cell["weight_decay"], cell["order"], step == KNOBS.deep_steps
        foreseen = 6e-3 * (decay / STRONGEST) ** self.grows if decay else 1e-4
        if order == "full":
            moved = foreseen * self.chatter if cell["activation"] == "relu" else self.smooth
        else:
            moved = foreseen * (self.deep_ordered if order == "cyclic" else self.deep_shuffled)
            left = self.kept if decay else self.undecayed_kept
            moved = moved if end else moved / left
        rank = 32 * (self.descent_rank if decay == STRONGEST else 1)
        if order != "full":
            rank *= self.sgd_rank if decay else self.undecayed_rank
        if order == "full" and step < KNOBS.deep_steps // 2:
            rank = 32 * self.epoch_rank
        return {
            "train_accuracy": 1.0 if step >= KNOBS.deep_steps // 2 else 0.5,
            "rank": round(rank),
            "fluctuation": moved * jitter,
            "predicted": foreseen if order == "full" and end else None,
        }


def world(seeds: int = 12, *, lost: int = 0, **broken: float) -> Records:
    """Records of a world in which every prediction holds, but for what is given otherwise."""
    generator, own = np.random.default_rng(0), Broken(**broken)

    def rows(kind: str) -> list[dict[str, Any]]:
        found = []
        for place, trial in enumerate(
            experiments.experiments(replace(KNOBS, seeds=seeds), 3)[kind].trials
        ):
            cell = {name: value for name, value in vars(trial).items() if name != "images"}
            cell |= {"seed": trial.seed - 30_000, "trial": f"{kind} {place}"}
            cell |= {"diverged": trial.seed - 30_000 < lost}
            epoch = KNOBS.deep_steps // 25
            steps = (
                (epoch, cell["steps"] // 2, cell["steps"]) if kind == "deep" else (cell["steps"],)
            )
            for step in steps:
                jitter = generator.normal(1, 0.01)
                values = (
                    own.deep(cell, step, jitter) if kind == "deep" else own.linear(cell, jitter)
                )
                count = 200 if kind == "deep" else KNOBS.samples
                facts = {"step": step, "epochs": step * trial.batch_size / count}
                found.append(cell | facts | values | {"final": step == cell["steps"]})
        return found

    return {
        kind: pl.DataFrame(rows(kind), infer_schema_length=None)
        for kind in ("deep", "gaussian", "images")
    }


CONTRACT = Contract(
    claim="janus",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"orbit": 1.001}, "fixed order, off its exact periodic orbit"),
        ({"ridge": 2.5}, "fluctuation over the gradients' at the ridge solution, shuffled"),
        ({"ordered": 0.4}, "fluctuation over the gradients' at the ridge solution, fixed"),
        ({"deep_shuffled": 3.0}, "deep: fluctuation over the gradients' where GD rests, shuffled"),
        ({"deep_ordered": 0.1}, "deep: fluctuation over the gradients' where GD rests, fixed"),
        ({"chatter": 2.0}, "deep: fluctuation, SGD over GD"),
        ({"smooth": 1e-2}, "deep: GD's fluctuation, smooth network"),
        ({"kept": 0.3}, "deep: SGD's fluctuation, end over half-way"),
        ({"grows": -1.0}, "deep: SGD's fluctuation, decay 0.02 over 0.01"),
        ({"epoch_rank": 0.4}, "deep: rank, SGD over GD, same epochs"),
        ({"descent_rank": 1.1}, "deep: GD's rank, strongest over no decay"),
    ],
    left_open=[
        ({"descent_noise": 1e-3}, "GD's fluctuation with decay"),
        ({"undecayed_noise": 1e-3}, "SGD's fluctuation without decay"),
        ({"undecayed_kept": 1.0}, "deep: SGD's fluctuation without decay"),
        ({"undecayed_rank": 0.6}, "deep: SGD's rank without decay"),
    ],
    bad_knobs=[
        ({"dimension": 10}, "dimension must exceed samples"),
        ({"batch_sizes": (40,)}, "batch_sizes must lie below samples = 40"),
        ({"batch_sizes": ()}, "batch_sizes must be at least 1 value"),
        ({"weight_decay": (-1.0, 1.0)}, "weight_decay must be at least 0"),
        ({"weight_decay": (0.0,)}, "weight_decay must be values of which one is positive"),
        ({"deep_weight_decay": (0.0,)}, "deep_weight_decay must be values of which one"),
        ({"deep_steps": 200}, "deep_steps must be at least twice an epoch"),
        ({"images": Images()}, "train_size must be above 8"),
    ],
)


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


def test_the_null_space_is_left_alone_without_decay_and_forgotten_per_step_not_per_epoch() -> None:
    """Initial weights drawn from the inputs' stream would lie in their span."""
    (rows,) = experiments.on_gaussian([replace(GAUSSIAN, weight_decay=0.0)])
    assert rows[-1]["null_ratio"] == pytest.approx(1, abs=1e-12)
    sgd, gd = (
        experiments.on_gaussian([replace(GAUSSIAN, batch_size=size, order=order, steps=40)])[0][-1]
        for size, order in ((1, "epochs"), (20, "full"))
    )
    assert sgd["null_ratio"] == pytest.approx(gd["null_ratio"], rel=1e-10)
    assert gd["epochs"] == 20 * sgd["epochs"]


def test_a_fixed_order_ends_on_its_periodic_orbit_whatever_runs_beside_it() -> None:
    late = replace(GAUSSIAN, order="cyclic", steps=3000, batch_size=7)
    other = replace(late, seed=5, weight_decay=2e-2)
    for rows in experiments.on_gaussian([late, other]):
        assert rows[-1]["fluctuation"] == pytest.approx(rows[-1]["orbit"], rel=1e-9)
        assert rows[-1]["fluctuation"] == pytest.approx(rows[-1]["ridge"], rel=0.2)


DEEP = Deep(Images(train_size=60), 16, "relu", 8, "epochs", 0.1, 2e-2, 250, 4)


def test_the_law_holds_in_the_first_layer_of_a_deep_network() -> None:
    ((*_, row),) = experiments.train_deep([DEEP])
    assert row["null_dimension"] > 0
    assert row["null_ratio"] == pytest.approx((1 - 0.1 * 2e-2) ** 250, rel=1e-10)
    assert row["predicted"] is None


def test_where_descent_stands_the_gradients_say_what_sgd_would_do() -> None:
    """The spread of the steps that batches of eight would make from there."""
    trial = replace(DEEP, batch_size=60, order="full")
    ((*_, row),) = experiments.train_deep([trial])
    networks = experiments.perceptrons(
        trial.images,
        (16, 16),
        [Member(4, 0.1, 2e-2, order="full")],
        batch_size=60,
        path="fused",
        dtype=torch.float64,
    )
    networks.ensemble.train(250)
    objective = networks.objective(0)
    singles, whole = (
        sum(
            own.square().mean() for own in measure.batch_gradient_norms(objective, batches).values()
        )
        for batches in (torch.arange(60)[:, None], torch.arange(60)[None])
    )
    spread = float(singles - whole) / 8 * (60 - 8) / 59
    size = float(experiments.weights(networks.ensemble).norm())
    assert row["predicted"] == pytest.approx(0.1 * spread**0.5 / size, rel=1e-6)


def test_a_network_that_diverges_has_no_rank() -> None:
    ((*_, row),) = experiments.train_deep([replace(DEEP, lr=1e200, weight_decay=0.0)])
    assert row["diverged"]
    assert row["rank"] is None


def test_runs_that_diverged_are_left_out_and_counted() -> None:
    verdict = claims.get("janus").judge(world(lost=1), KNOBS)
    assert verdict.outcome == "supported", verdict
    assert verdict.summary.startswith("49 of 588 runs")
    nothing = world(lost=12)
    assert claims.get("janus").judge(nothing, KNOBS).outcome == "inconclusive"
    assert not claims.get("janus").figures(nothing, KNOBS)
