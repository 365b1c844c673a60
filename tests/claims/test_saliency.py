"""The claim saliency: its world, and the laws of its maps and of its blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from contract import Contract

from undertow.claims import Records
from undertow.claims.saliency import Saliency, experiments
from undertow.claims.saliency.experiments import (
    ALIEN,
    BLIND,
    COARSE,
    DEARER,
    DOUBLE,
    FINE,
    FINE_TV,
    NOISE,
    NOISY,
    PLAIN,
    RANDOM,
    SMOOTH,
    UNTAUGHT,
)
from undertow.data import Images

TINY = Saliency(
    images=Images(train_size=100),
    other=None,
    channels=(4,),
    train_steps=12,
    test_size=40,
    explained=3,
    mask_steps=8,
    upsample=2,
    sides=(1, 2),
    seeds=3,
)
KNOBS = replace(TINY, images=Images("fashion-mnist", train_size=4_000), other="mnist-5k", seeds=12)
SOUND = {
    FINE: 0.25,
    PLAIN: 0.5,
    FINE_TV: 0.25,
    COARSE: 0.5,
    DEARER: 0.55,
    DOUBLE: 0.5,
    "gradient x input": 0.15,
    "integrated gradients": 0.14,
    "absolute gradient": 0.95,
    SMOOTH: 0.95,
    UNTAUGHT: 0.92,
    BLIND: 0.98,
    ALIEN: 0.97,
}
COMPLETE = {
    FINE: 0.99,
    PLAIN: 0.93,
    FINE_TV: 0.98,
    COARSE: 0.93,
    DEARER: 0.88,
    DOUBLE: 0.99,
    "gradient x input": 0.99,
    "integrated gradients": 0.99,
    "absolute gradient": 0.85,
    SMOOTH: 0.9,
    UNTAUGHT: 0.6,
    BLIND: 0.93,
    ALIEN: 0.45,
    RANDOM: 0.6,
}
BEYOND = {PLAIN: -0.03, COARSE: -0.03, DEARER: -0.05, DOUBLE: 0.03}


@dataclass(frozen=True)
class Broken:
    """What differs from a world in which every prediction holds: by method, or in blocks."""

    sound: Any = ()
    complete: Any = ()
    beyond: Any = ()
    linear: float = 0.2  # soundness that coarse masks gain in a linear softmax
    linear_beyond: float = -0.03
    error: float = 1.02
    power: float = 0.6  # by which evidence falls with the side

    def maps(self, trial: Any, noise: np.random.Generator) -> list[dict[str, Any]]:
        sound, complete = SOUND | dict(self.sound), COMPLETE | dict(self.complete)
        beyond = BEYOND | dict(self.beyond)
        names = list(SOUND)
        if trial.model == "linear":
            names = [FINE, PLAIN]
            sound = sound | {PLAIN: sound[FINE] + self.linear}
            beyond = beyond | {PLAIN: self.linear_beyond}
        rows = []
        for name in names:
            kept = complete[name] + 0.004 * noise.normal()
            excess = beyond.get(name)
            rows.append(
                {
                    "method": name,
                    "share": None,
                    "completeness": kept,
                    "soundness": sound[name] + 0.01 * noise.normal(),
                    "noisy": None if excess is None else kept - excess + 0.004 * noise.normal(),
                }
            )
        for share in (0.0, *NOISE):
            name = RANDOM if share == 1 else NOISY
            own = {"completeness": complete[RANDOM] + 0.4 * (1 - share), "soundness": 0.2 + share}
            rows.append({"method": name, "share": share, "noisy": None} | own)
        return rows

    def evidence(self, trial: Any, noise: np.random.Generator) -> list[dict[str, Any]]:
        rows = []
        for side in trial.sides:
            known = side**-self.power
            seen = known * (self.error if side > 1 else 1.0) * noise.normal(1, 0.005)
            own = {"side": side, "wrong": 15 * seen, "own": 10 + 15 * seen}
            own |= {"wrong_predicted": 18 * known}
            rows.append(own | {"wrong_left": seen, "wrong_predicted_left": known})
        return rows


def world(seeds: int = 12, **broken: Any) -> Records:
    """Records of a world in which every prediction holds, but for what is given otherwise."""
    own, noise = Broken(**broken), np.random.default_rng(0)
    knobs = replace(KNOBS, seeds=seeds)
    return {
        name: pl.DataFrame(
            [
                {
                    "trial": f"{name} {place}",
                    "seed": trial.seed,
                    "images.data": trial.images.data,
                    **({"model": trial.model} if name == "maps" else {}),
                    "diverged": False,
                    **row,
                }
                for place, trial in enumerate(experiment.trials)
                for row in getattr(own, name)(trial, noise)
            ],
            infer_schema_length=None,
        )
        for name, experiment in experiments.experiments(knobs, 3).items()
    }


CONTRACT = Contract(
    claim="saliency",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"complete": {FINE: 0.7}}, f"{FINE}, completeness"),
        ({"sound": {FINE: 0.95}}, f"{FINE}, soundness"),
        ({"sound": {COARSE: 0.2}}, f"{COARSE}, soundness gained over"),
        ({"sound": {COARSE: 0.32}, "complete": {COARSE: 0.85}}, f"{COARSE}, soundness gained less"),
        ({"sound": {FINE_TV: 0.4}}, "total variation at its published price"),
        ({"sound": {DEARER: 0.2}}, "total variation at a price of 1"),
        ({"sound": {DOUBLE: 0.2}}, "double softmax, soundness"),
        ({"linear": -0.05}, "linear softmax, coarse masks, no TV, soundness"),
        ({"beyond": {COARSE: 0.02}}, f"{COARSE}, completeness beyond noise"),
        ({"beyond": {DEARER: 0.02}}, f"{DEARER}, completeness beyond noise"),
        ({"linear_beyond": 0.02}, "linear softmax, coarse masks, no TV, completeness"),
        ({"beyond": {DOUBLE: -0.02}}, f"{DOUBLE}, completeness beyond noise"),
        ({"sound": {"gradient x input": 0.4}}, "gradient x input"),
        ({"sound": {SMOOTH: 0.4}}, f"{SMOOTH}, soundness"),
        ({"complete": {SMOOTH: 0.5}}, f"{SMOOTH}, completeness"),
        ({"complete": {SMOOTH: 0.5}, "sound": {SMOOTH: 0.3}}, f"{COARSE}, better in both"),
        ({"sound": {BLIND: 0.3}}, BLIND),
        ({"error": 1.8}, "evidence in blocks"),
    ],
    left_open=[
        ({"complete": {RANDOM: 0.9}}, RANDOM),
        ({"complete": {ALIEN: 0.9}}, ALIEN),
        ({"complete": {UNTAUGHT: 0.9}}, UNTAUGHT),
        ({"power": 1.0}, "the same at 2"),
    ],
    bad_knobs=[
        ({"other": "fashion-mnist"}, "other must not be fashion-mnist"),
        ({"channels": ()}, "channels must be at least 1 value"),
        ({"upsample": 1}, "upsample must be at least 2"),
        ({"dearer": 0.01}, "dearer must be above total_variation = 0.01"),
        ({"sides": (2, 4)}, "sides must begin with 1"),
        ({"sides": (1,)}, "sides must be at least 2 values"),
        ({"explained": 1}, "explained must be at least 2"),
        ({"seeds": 1}, "seeds must be at least 2"),
    ],
)


def test_labels_are_the_predicted_one_and_others() -> None:
    predicted = torch.tensor([0, 3, 9])
    labels = experiments.with_wrong(predicted, 10, 9, torch.Generator().manual_seed(0))
    assert torch.equal(labels[:, 0], predicted)
    assert torch.equal(labels.sort(1).values, torch.arange(10).expand(3, -1))


def test_ranks_are_orders() -> None:
    maps = torch.tensor([[[3.0, 1.0], [2.0, 9.0]]])
    assert experiments.ranks(maps).tolist() == [[[2 / 3, 0.0], [1 / 3, 1.0]]]


def test_noise_is_compared_at_equal_soundness() -> None:
    line = [(1.0, 0.2), (0.9, 0.6), (0.5, 1.0)]
    assert experiments.completeness_at(0.4, line) == pytest.approx(0.95)
    assert experiments.completeness_at(0.8, line) == pytest.approx(0.7)
    assert experiments.completeness_at(0.1, line) is None


def test_evidence_for_a_label_and_against_it_differ_by_the_log_odds() -> None:
    (trial, *_) = experiments.experiments(TINY, 3)["evidence"].trials
    (rows,) = experiments.collect((trial,))
    apart = [row["own"] - row["wrong"] for row in rows]
    assert apart[0] == pytest.approx(apart[1])
    assert apart[0] > 0
    assert rows[0]["wrong"] > rows[1]["wrong"]
