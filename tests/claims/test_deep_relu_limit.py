"""The claim deep-relu-limit: its world, and the laws of its runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
import torch
from contract import Contract

from undertow import lab
from undertow.claims import Records
from undertow.claims.deep_relu_limit import CLAIM, DeepReluLimit, experiments
from undertow.claims.deep_relu_limit.experiments import Limit, Training, deepen, matched, nets
from undertow.data import Images

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

KNOBS = DeepReluLimit(seeds=10)
TINY = DeepReluLimit(
    width=6,
    depth=512,
    aligned_powers=(2.0,),
    random_powers=(1.0,),
    bias_powers=(1.0,),
    images=Images(train_size=64),
    net_width=8,
    net_depth=4,
    lrs=(0.01,),
    he_lrs=(0.01,),
    steps=5,
    seeds=2,
    net_seeds=2,
)


def world(
    seeds: int = 10,
    *,
    where: dict[str, Any] | None = None,
    other: dict[str, Any] | None = None,
    **facts: Any,
) -> Records:
    """Records of a world in which every prediction holds, but for facts of the rows `where`.

    `other` are facts of the aligned perturbations n^-1.5.
    """
    made = experiments.experiments(replace(KNOBS, seeds=seeds), 0)
    frames = {
        "networks": pl.DataFrame([trained(trial) for trial in made["networks"].trials]),
        "limits": pl.DataFrame([row for trial in made["limits"].trials for row in ideal(trial)]),
    }
    for given, changes in ((where, facts), ({"kind": "aligned", "power": 1.5}, other or {})):
        for name, frame in frames.items():
            if given is not None and set(given) <= set(frame.columns):
                chosen = pl.when(**given)
                changed = [chosen.then(pl.lit(v)).otherwise(k).alias(k) for k, v in changes.items()]
                frames[name] = frame.with_columns(changed)
    return frames


def trained(trial: Training) -> dict[str, Any]:
    deep = trial.net_depth == KNOBS.net_depth
    failing = deep and (trial.init == "he" or (trial.net_power, trial.net_scale) == (0.0, 0.5))
    accuracy = (0.15 if failing else 0.92) + 1e-3 * math.sin(trial.seed + 1)
    fields = {"trial": str(trial), "init": trial.init, "lr": trial.lr, "seed": trial.seed}
    fields |= {n: getattr(trial, n) for n in ("net_scale", "net_power", "net_depth")}
    found = {"diverged": False, "train_accuracy": accuracy, "test_accuracy": accuracy - 0.02}
    return fields | found


def ideal(trial: Limit) -> list[dict[str, Any]]:
    wobble = 1e-3 * math.sin(trial.seed + 1)
    slope = {
        "aligned": 1 - trial.power if trial.power > 1 else trial.scale,
        "random": 0.5 - trial.power,
        "bias": 0.5 - trial.power,
    }[trial.kind]
    facts = {
        "trial": str(trial),
        "kind": trial.kind,
        "activations": trial.activations,
        "power": trial.power,
        "seed": trial.seed,
        "diverged": False,
        "slope": slope + wobble,
    }
    return [facts | {"layers": n, "doubling": float(n) ** slope} for n in (128, 256, 512)]


def kind(kind: str, power: float, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "power": power} | more


def net(name: str) -> dict[str, Any]:
    return nets(KNOBS)[name]


LEFT_OPEN: list[tuple[dict[str, Any], str]] = [
    ({"where": kind("aligned", 1.0), "slope": -0.1}, "aligned perturbations n^-1,"),
    ({"where": kind("random", 0.0), "slope": -0.2}, "random perturbations n^-0, "),
    ({"where": kind("random", 0.4), "slope": -0.1}, "random perturbations n^-0.4"),
    ({"where": kind("bias", 0.0), "slope": -0.1}, "random biases n^-0, "),
    ({"where": kind("bias", 0.4), "slope": -0.1}, "random biases n^-0.4"),
    ({"where": net("he"), "train_accuracy": 0.8}, "400 layers, He"),
    ({"where": net("constant"), "train_accuracy": 0.8}, "400 layers, I + 0.5 G without"),
    ({"where": net("shallow"), "train_accuracy": 0.2}, "3 layers, He"),
]
CONTRACT = Contract(
    claim="deep-relu-limit",
    tiny=TINY,
    world=world,
    knobs=KNOBS,
    refuted=[
        ({"where": kind("aligned", 1.5), "slope": 0.1}, "aligned perturbations n^-1.5"),
        # Under one sequence of activation matrices alone.
        (
            {"where": kind("aligned", 2.0, activations="switching"), "slope": 0.1},
            "aligned perturbations n^-2",
        ),
        ({"where": kind("random", 1.0), "slope": 0.1}, "random perturbations n^-1,"),
        (
            {"where": kind("random", 2.0, activations="all"), "slope": 0.1},
            "random perturbations n^-2",
        ),
        ({"where": kind("bias", 1.5), "slope": 0.1}, "random biases n^-1.5"),
        (
            {"where": net("decaying"), "train_accuracy": 0.1},
            "400 layers, I + 0.5 n^-1 G, training accuracy",
        ),
        (
            {"where": net("decaying"), "test_accuracy": 0.05},
            "400 layers, I + 0.5 n^-1 G, test accuracy less He's",
        ),
    ],
    left_open=[
        *LEFT_OPEN,
        *((broken | {"other": {"slope": 0.1}}, check) for broken, check in LEFT_OPEN),
        # He's initialisation is judged at its best learning rate.
        ({"where": net("he") | {"lr": 0.03}, "train_accuracy": 0.6}, "400 layers, He"),
    ],
    bad_knobs=[
        ({"depth": 100}, "depth must be at least 512, got 100"),
        ({"aligned_powers": (1.0,)}, "aligned_powers must be above 1"),
        ({"random_powers": (0.5,)}, r"random_powers must be above 0\.5"),
        ({"random_powers": (1.0, 1.0)}, "random_powers must be values without one twice"),
        ({"bias_powers": ()}, "bias_powers must be at least 1 value"),
        ({"lrs": ()}, "lrs must be at least 1 value"),
        ({"lrs": (0.0,)}, "lrs must be above 0"),
        ({"he_lrs": ()}, "he_lrs must be at least 1 value"),
        *(({"scale": scale}, "scale must be above 0") for scale in (0.0, -0.5)),
        ({"scale": math.inf}, "scale must be finite"),
        *(
            ({name: 0}, f"{name} must be at least")
            for name in ("width", "seeds", "net_seeds", "steps", "shallow_depth")
        ),
        ({"net_depth": 3}, "shallow_depth must be below net_depth = 3"),
    ],
)


def failed(records: Records) -> list[str]:
    verdict = CLAIM.judge(records, KNOBS)
    return [check.name for check in verdict.checks if not check.passed]


def test_each_refutation_is_of_one_check_or_of_what_is_compared_with_it() -> None:
    for broken, check in CONTRACT.refuted:
        names = failed(world(**broken))
        assert any(name.startswith(check) for name in names)
        assert len(names) == 1 or check.startswith("400 layers")


@pytest.mark.parametrize("name", ["identity", "matched"])
def test_that_decay_is_not_needed_is_left_open_where_nothing_else_trains(name: str) -> None:
    records = world(where=net(name), train_accuracy=0.3)
    (check,) = failed(records)
    assert check.startswith("400 layers, the exact" if name == "identity" else "400 layers, I + c'")
    assert CLAIM.judge(records, KNOBS).outcome == "inconclusive"


def test_a_slope_off_by_more_than_its_tolerance_is_no_evidence_of_divergence() -> None:
    records = world(where=kind("aligned", 1.5), slope=-0.4)
    assert CLAIM.judge(records, KNOBS).outcome == "inconclusive"


def test_a_rate_is_not_read_off_the_few_that_survived() -> None:
    records = dict(world())
    few = (pl.col("kind") == "random") & (pl.col("power") == 1.0) & (pl.col("seed") > 5)
    died = pl.when(~few).then("slope").alias("slope")
    records["limits"] = records["limits"].with_columns(died)
    assert failed(records) == ["random perturbations n^-1, slope of d(n)"]
    assert CLAIM.judge(records, KNOBS).outcome == "inconclusive"


def test_networks_that_overflowed_are_left_out() -> None:
    records = world(where=kind("random", 0.0), diverged=True, slope=None)
    assert CLAIM.judge(records, KNOBS).outcome == "inconclusive"
    assert failed(records) == ["random perturbations n^-0, slope of d(n)"]


def test_a_learning_rate_that_was_not_run_promises_nothing() -> None:
    """He's initialisation might have trained at it."""
    records = dict(world())
    missing = (pl.col("init") == "he") & (pl.col("net_depth") == 400) & (pl.col("lr") == 0.03)
    records["networks"] = records["networks"].filter(~missing)
    assert failed(records) == []
    assert CLAIM.judge(records, KNOBS).outcome == "inconclusive"


def test_networks_that_died_are_left_out_and_counted() -> None:
    dead = kind("random", 1.0, seed=3, activations="own")
    verdict = CLAIM.judge(world(where=dead, slope=None), KNOBS)
    assert verdict.outcome == "supported"
    assert verdict.summary.startswith("1 of ")


def test_too_few_trainings_promise_nothing() -> None:
    few = replace(KNOBS, net_seeds=2)
    records = dict(world())
    records["networks"] = records["networks"].filter(pl.col("seed") < 2)
    assert CLAIM.judge(records, few).outcome == "inconclusive"


def limit(
    kind: str, power: float, seed: int = 100, activations: str = "own", depth: int = 1024
) -> Limit:
    return Limit(kind, activations, power, 0.5, 6, depth, seed)


@pytest.mark.parametrize("activations", ["own", "all"])
def test_aligned_perturbations_follow_their_closed_form(activations: str) -> None:
    """Where no ReLU cuts and biases vanish the mean grows by the product of 1 + c i^-p."""
    (rows,) = deepen([limit("aligned", 3.0, activations=activations)])
    growth = torch.cumprod(1 + 0.5 * torch.arange(1, 1025, dtype=torch.float64) ** -3.0, 0)
    moved = [float(growth[2 * row["layers"] - 1] - growth[row["layers"] - 1]) for row in rows]
    for row, own in zip(rows, moved, strict=True):
        expected = own / moved[0]
        assert row["doubling"] / rows[0]["doubling"] == pytest.approx(expected, rel=0.05)
    if activations == "all":  # of a unit vector, whose mean is 1/6 in every coordinate
        assert rows[0]["doubling"] == pytest.approx(moved[0] / 6**0.5, rel=1e-3)
    assert rows[0]["slope"] == pytest.approx(-2, abs=0.05)


def test_products_are_those_of_the_activation_and_weight_matrices() -> None:
    trial = limit("random", 1.0, activations="switching", depth=512)
    states = list(experiments._states([trial]))
    push = torch.stack([states[n][0, -1] for n in (0, 1)])
    first, second = states[0][0, :6].mT, states[1][0, :6].mT  # W_1, J_2 W_2 W_1
    step = second @ torch.linalg.inv(first)  # J_2 W_2
    off = (step == 0).all(1) | (second == 0).all(1)
    assert off.sum() == 3
    norms = torch.linalg.matrix_norm(first - torch.eye(6).double(), 2)
    assert float(norms) == pytest.approx(0.5)
    assert push[0].norm() == pytest.approx(1.0)
    assert (push[1][off] == 0).all()
    assert not (states[2][0, :6].mT[off] == 0).all()  # on again in the third layer


@pytest.mark.parametrize("other", ["I/2", "(I + 11'/m)/2"])
def test_outputs_may_settle_though_weights_stay_away_from_the_identity(other: str) -> None:
    """The limit is zero, or the mean of x: the products have no invertible limit."""
    x = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(100))
    mean = x.mean(1, keepdim=True).expand_as(x)
    weight = torch.eye(6).double() / 2
    if other != "I/2":
        weight = weight + 1 / 12
    h = x
    for _ in range(200):
        h = (h @ weight.mT).relu()
    assert torch.linalg.matrix_norm(weight - torch.eye(6).double(), 2) == pytest.approx(0.5)
    torch.testing.assert_close(h, torch.zeros_like(x) if other == "I/2" else mean)
    assert torch.linalg.matrix_rank(torch.linalg.matrix_power(weight, 200), atol=1e-9) < 6


def test_a_network_does_not_depend_on_its_group() -> None:
    crowd = [
        limit("random", 1.0, 101),
        limit("random", 2.0, 100, "switching"),
        limit("random", 1.0, 100),
        limit("random", 0.4, 101, "all"),
    ]
    assert len(list(lab.Experiment(crowd, deepen, ("activations", "power", "seed")).groups())) == 1
    (alone,), together = deepen([crowd[2]]), deepen(crowd)
    for row, other in zip(alone, together[2], strict=True):
        assert row["doubling"] == pytest.approx(other["doubling"], rel=1e-9)


def test_a_network_that_overflows_says_so() -> None:
    """Perturbations that do not fall, of a size at which 1,024 layers leave float64's range."""
    (rows,) = deepen([replace(limit("random", 0.0, activations="all"), scale=50.0)])
    assert all(row["diverged"] for row in rows)
    assert rows[0]["slope"] is None


def test_a_network_whose_square_overflows_is_measured_all_the_same() -> None:
    """Constant perturbations at the depth of the paper preset grow beyond 1e154."""
    (rows,) = deepen([replace(limit("random", 0.0), width=20, scale=4.0)])
    assert 1e154 < rows[-1]["doubling"] < math.inf
    assert not rows[0]["diverged"]
    assert rows[0]["slope"] > 100


def test_a_constant_perturbation_is_matched_by_the_sum_of_squares() -> None:
    assert 400 * matched(0.5, 400) ** 2 == pytest.approx(0.25 * math.pi**2 / 6, rel=2e-3)


def test_a_training_that_blew_up_has_learned_nothing() -> None:
    wild = replace(TINY, lrs=(0.01, 1e30))
    trials = experiments.experiments(wild, 100)["networks"].trials[:4]
    assert len({trial.net_power for trial in trials}) == 1
    found = [rows[0] for rows in experiments.train(trials)]
    assert all(0 <= row["train_accuracy"] <= 1 for row in found)
    assert [row["diverged"] for row in found] == [False, False, True, True]
    assert all(row["train_accuracy"] == 0 for row in found if row["diverged"])


def test_the_table_has_the_predicted_slopes_where_there_is_a_limit() -> None:
    table = CLAIM.table(world(), KNOBS)
    assert set(table.filter(kind="aligned", power=2.0)["predicted"]) == {-1.0}
    assert table.filter(kind="random", power=0.4)["predicted"].item() is None
    names = [figure.name for figure in CLAIM.figures(world(), KNOBS)]
    assert names == ["rates", "training"]
