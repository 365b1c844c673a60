"""Recursions, paths, least squares, two layers, networks and language models, with and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from undertow.claims import Networks, language_models, perceptrons
from undertow.claims.momentum import BATCH, Momentum
from undertow.data import Images, Text
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from undertow.train import Member
    from undertow.train.rules import Rule

ORDERS = {0.0: 0.5, 0.5: 2.0, 1.0: 8.0}  # 1 - momentum = scale x lr^alpha: the scale by alpha
TUNING_TEXT = "python-code"  # on a few windows of which the language model is tuned
COUNTED = 800  # steps of the stationary runs that are counted
CURVATURES = (0.1, 0.5, 1.0, 1.5)  # lr x sharpness of the stationary runs
PAIR = ("sgd", "momentum")
# Along minima under label noise: from u^2 - v^2 = 4 at u v = 1, over 1 / lr^2 steps.
ALONG_MINIMA: dict[str, Any] = {"noise": 1.0, "product": 1.0, "imbalance": 4.0}
TUNING_BATCH, TUNING_EPOCHS = 8, 8  # of the language models
TIMES = 4  # equal parts of the horizon at which moments of paths are compared

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Paths:
    """Simulated paths on a loss that is not quadratic, under the same two-point noise."""

    replicas: int
    path_exponents: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Stationary:
    """Minibatch SGD on least squares: the variance along the top eigenvector of the Hessian.

    Batches are independent, as in the theory, or those of shuffled epochs.
    """

    images: Images
    momentum: float
    order: Literal["replacement", "epochs"]
    seed: int


@dataclass(frozen=True)
class Long:
    """Two layers under label noise for 1 / lr^2 steps; by both methods, and at the same raw lr."""

    momentum: float
    long_exponents: tuple[int, ...]
    long_replicas: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network trained by sgd, by momentum at lr x (1 - beta), or by raw: momentum at lr."""

    images: Images
    width: int
    batch_size: int
    momentum: float
    lr: float
    method: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Network(Trained):
    """At a constant rate; with l times as many steps of lr / l, those of svag, or full batches."""

    steps: int
    kind: str = "plain"
    level: int = 1


@dataclass(frozen=True, kw_only=True)
class Tuned(Trained):
    """To the end, at a rate that falls to zero."""

    epochs: int
    label_noise: float


@dataclass(frozen=True)
class LanguageModel:
    """A transformer trained on one text, and from there on a few windows of another."""

    text: Text
    tuning_text: Text
    pretrain_steps: int
    tuning_lrs: tuple[float, ...]
    momentum: float
    seed: int


def experiments(knobs: Momentum, seed: int) -> dict[str, Experiment]:
    """The longest first: language models and networks; and for every seed what is small."""
    own = seeds(seed, knobs.seeds)
    finer = [
        {"lr": knobs.large_lr, "level": level, "kind": kind}
        for kind in ("svag", "plain")
        for level in sorted(knobs.levels)[::-1]
    ]
    finer += [{"lr": knobs.large_lr, "kind": "full batch"}]
    networks = grid(Network, knobs, cell=finer, method=PAIR, seed=own)
    networks += grid(Network, knobs, lr=knobs.lrs, method=(*PAIR, "raw"), seed=own)
    noisy = [{"batch_size": size} for size in knobs.tuned_batches]
    cells = [*noisy, noisy[-1] | {"label_noise": 0.0}]
    more = seeds(seed, knobs.tuned_seeds)
    tuned = grid(Tuned, knobs, cell=cells, lr=knobs.tuned_lrs, method=PAIR, seed=more)
    size = knobs.regression_size or knobs.images.train_size
    fewer = replace(knobs.images, train_size=size)
    stationary = grid(Stationary, knobs, images=[fewer], order=("replacement", "epochs"), seed=own)
    # As long windows as the first text's, or the model could not read them.
    other = Text(TUNING_TEXT, windows=knobs.tuning_windows, context=knobs.text.context)
    models = grid(LanguageModel, knobs, tuning_text=[other], seed=seeds(seed, knobs.text_seeds))
    return {
        "language": Experiment(models, fine_tune, ("seed",), 6),
        "networks": Experiment(networks, train, ("seed",)),
        "tuned": Experiment(tuned, train_to_the_end, ("seed",)),
        "paths": Experiment(grid(Paths, knobs, seed=own), simulate),
        "long": Experiment(grid(Long, knobs, seed=own), along_minima),
        "stationary": Experiment(stationary, stationary_variances),
    }


def momenta(lr: float) -> dict[float, float]:
    """The momentum at a learning rate, by alpha."""
    return {alpha: 1 - scale * lr**alpha for alpha, scale in ORDERS.items()}


def simulate(trial: Paths) -> Rows:
    """Both methods on L = x^2 / 2 - cos(2x) / 4 from x = 1 to time 1, for all orders at once."""
    import torch

    from undertow.train import momentum_paths

    generator = torch.Generator().manual_seed(trial.seed)
    rows = []
    for exponent in trial.path_exponents:
        steps = 2**exponent
        read = momentum_paths(
            lambda x: x + torch.sin(2 * x) / 2,
            lambda x: (1 + torch.sin(x) ** 2 / 2).sqrt(),
            (0.0, *momenta(1 / steps).values()),
            lr=1 / steps,
            read_at=[steps // TIMES * time for time in range(1, TIMES + 1)],
            generator=generator,
            replicas=trial.replicas,
        )
        squares = torch.stack([place.square().mean(1) for place in read], dim=1)
        gaps = squares[1:] - squares[0]
        rows += rows_of({"path_gaps": gaps, "exponent": exponent, "alpha": list(ORDERS)})
    return rows


def stationary_variances(trial: Stationary) -> Rows:
    """Ridge regression of the label's parity, the same batches for all settings."""
    import torch

    from undertow import train

    loaded = trial.images.load(seed=trial.seed)
    inputs, labels = loaded.train_inputs.flatten(1).double(), loaded.train_targets
    data = (
        torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1),
        1.0 - 2.0 * (labels % 2).double(),
        (trial.momentum, 0.0),
    )
    shared: dict[str, Any] = {"curvatures": CURVATURES, "batch_size": BATCH}
    generator = torch.Generator().manual_seed(trial.seed)
    measured = train.stationary_variance(
        *data, **shared, order=trial.order, generator=generator, steps=COUNTED
    )
    exact = train.exact_stationary_variance(*data, **shared)
    return rows_of(
        {
            "curvature": CURVATURES,
            "measured_ratio": measured[:, 0] / measured[:, 1],
            "predicted_ratio": exact[:, 0] / exact[:, 1],
        }
    )


def variance_ratio(curvature: float, momentum: float) -> float:
    """The closed form of the ratio of stationary variances, by lr x sharpness."""
    from undertow import predict

    equal = predict.momentum_equivalent(curvature, momentum, form="ema", sharpness=1.0)
    assert equal.variance_ratio is not None  # there is a sharpness
    return equal.variance_ratio


def along_minima(trial: Long) -> Rows:
    """How much of u^2 - v^2 is left, as the mean log over replicas, and what theory leaves."""
    import torch

    from undertow import predict
    from undertow.train import label_noise_imbalances

    generator = torch.Generator().manual_seed(trial.seed)
    settings: dict[str, Any] = {"generator": generator, "replicas": trial.long_replicas}
    kept, rows = {"sgd": 0.0, "momentum": trial.momentum, "raw": trial.momentum}, []
    for exponent, (method, beta) in product(trial.long_exponents, kept.items()):
        lr = 2.0**-exponent
        own = lr / (1 - beta) if method == "raw" else lr
        ends = label_noise_imbalances(
            (beta,), lr=own, steps=4**exponent, **settings, **ALONG_MINIMA
        )
        # What is balanced has no logarithm; a thousandth of the start stands for it.
        left = (ends[0] / ALONG_MINIMA["imbalance"]).clamp_min(1e-3).log().mean()
        law = predict.label_noise_drift(lr, beta, time=1.0, **ALONG_MINIMA)
        rows.append({"method": method, "lr": lr, "log_left": float(left), "predicted": law})
    return rows


def train(trials: Sequence[Network]) -> list[Rows]:
    """One cell: all seeds, with lr x sharpness a quarter of the way."""
    from undertow import measure
    from undertow.train import rules

    first = trials[0]
    # Independent batches, as the theory has them: over shuffled epochs noise cancels.
    order = "full" if first.kind == "full batch" else "replacement"
    finer = first.level if first.kind == "plain" else 1
    rule, members = by_method(trials, first.method, first.lr / finer, order=order)
    if first.kind == "svag":
        rule = rules.svag(rule, first.level)
    networks = _perceptrons(first, members, rule=rule)
    facts: dict[str, Any] = {}
    networks.ensemble.train(first.steps // 4)
    if (first.kind, first.level) == ("plain", 1):
        facts["edge"] = networks.measured(
            lambda own: first.lr * float(measure.sharpness(own, rtol=0.05).eigenvalues[0])
        )
    networks.ensemble.train(first.steps * first.level - first.steps // 4)
    return [[row] for row in rows_of(facts | networks.results())]


def train_to_the_end(trials: Sequence[Tuned]) -> list[Rows]:
    """One cell, with the batches of one shuffle an epoch, as is usual, and half a cosine."""
    from undertow.train import schedules

    first = trials[0]
    size = first.images.train_size or len(first.images.load().train_targets)
    steps = max(first.epochs * size // first.batch_size, 1)
    rule, members = by_method(trials, first.method, first.lr, schedule=schedules.Cosine(steps))
    networks = _perceptrons(first, members, rule=rule, label_noise=first.label_noise)
    networks.ensemble.train(steps)
    return [[row] for row in rows_of(networks.results())]


def _perceptrons(trial: Trained, members: Sequence[Member], **options: Any) -> Networks:
    shown: dict[str, Any] = {"batch_size": trial.batch_size, "path": "fused"} | options
    return perceptrons(trial.images, (trial.width,), members, **shown)


def by_method(
    trials: Sequence[Network | Tuned | LanguageModel], method: str, lr: float, **options: Any
) -> tuple[Rule, list[Member]]:
    """A method's rule, and members with this effective learning rate."""
    from undertow.train import Member, rules

    kept = 0.0 if method == "sgd" else trials[0].momentum
    own = lr if method == "raw" else (1 - kept) * lr
    rule = rules.sgd if method == "sgd" else rules.momentum
    return rule, [Member(trial.seed, own, momentum=kept, **options) for trial in trials]


def fine_tune(trials: Sequence[LanguageModel]) -> list[Rows]:
    """Each model is trained on a text by Adam, and tuned on the same windows at every rate."""
    from undertow.train import Member, rules, schedules

    first = trials[0]
    learning: dict[str, Any] = {"data_seeds": [0] * len(trials), "rule": rules.adam}
    adam = [Member(trial.seed, 3e-3) for trial in trials]
    known = language_models(first.text, adam, batch_size=16, **learning)
    known.ensemble.train(first.pretrain_steps)
    shown = first.tuning_text.windows or len(first.tuning_text.load().train_inputs)
    falling = schedules.Cosine(shown * TUNING_EPOCHS // TUNING_BATCH)
    cells = [*product(first.tuning_lrs, PAIR), (first.tuning_lrs[0], "raw")]
    rows: list[Rows] = [[] for _ in trials]
    for lr, method in cells:
        rule, members = by_method(trials, method, lr, schedule=falling)
        tuning: dict[str, Any] = {"batch_size": TUNING_BATCH, "rule": rule, "after": known}
        networks = language_models(first.tuning_text, members, **tuning)
        networks.ensemble.train(falling.total)
        facts = networks.results() | {"method": method, "lr": lr}
        for found, row in zip(rows, rows_of(facts), strict=True):
            found.append(row)
    return rows
