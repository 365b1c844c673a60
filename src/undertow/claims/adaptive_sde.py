"""On the SDEs and scaling rules for adaptive gradient algorithms (Malladi et al., 2205.10287).

RMSprop and Adam where noise dominates: the SDE that SVAG (2102.12470) tends to, at which order, and
the square-root rule that keeps it at another batch size, against the linear rule and none. On an
oscillator whose second moment is known, on handwritten digits, and on text with a transformer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import altair as alt
import numpy as np
import polars as pl

from undertow import lab
from undertow.claims._claim import (
    Check,
    Claim,
    Figure,
    Verdict,
    check_above,
    check_below,
    check_within,
    decide,
    over_seeds,
    ratio_over_seeds,
)
from undertow.claims._noisy_oscillator import (
    PROCESSES,
    Process,
    Weights,
    noisier,
    sde_moment,
    simulated_moment,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


Scaling = Literal["base", "other order", "square root", "learning rate only", "linear", "none"]

# SVAG on a network: coarse on purpose, so that the error of the discretisation can be seen.
_LIMIT_LR, _LIMIT_BETA1, _LIMIT_BETA2 = 1e-2, 0.8, 0.9
_LIMIT_BATCH = 4


@dataclass(frozen=True)
class Config:
    """Knobs.

    Attributes:
        levels: the l of SVAG on the oscillator; twice as far for SGD, where a step is cheap.
        paths: of the oscillator, in each of its blocks; eight times as many for SGD.
        blocks: independent repetitions of the oscillator.
        limit_levels: the l of SVAG on the network; the last stands for the SDE.
        limit_steps: Adam's own steps there.
        replicas: runs from the same initial weights, whose mean curve is taken.
        inits: initial weights.
        label_noise: the share of digits' labels drawn at random, where noise is to dominate.
        samples: training images.
        epochs: of the runs at several batch sizes.
        factors: by which the batch grows.
        text: python-docs or austen; see `data.load_text`.
        text_root: the folder of a text that you have.
        text_samples: training windows.
        context: characters in a window.
        text_epochs: of the transformer.
        text_factors: by which its batch grows.
        seeds: independent repetitions on digits.
        text_seeds: and on text.
    """

    levels: tuple[int, ...] = (1, 2, 4, 8)
    paths: int = 2**16
    blocks: int = 10
    limit_levels: tuple[int, ...] = (1, 2, 4, 8)
    limit_steps: int = 64
    replicas: int = 48
    inits: int = 8
    label_noise: float = 0.6
    samples: int = 1280
    epochs: int = 20
    factors: tuple[int, ...] = (4, 8, 16)
    text: str = "python-docs"
    text_root: str | None = None
    text_samples: int = 2048
    context: int = 8
    text_epochs: int = 4
    text_factors: tuple[int, ...] = (4, 16)
    seeds: int = 10
    text_seeds: int = 10

    def __post_init__(self) -> None:
        for name in ("levels", "limit_levels"):
            levels = getattr(self, name)
            if len(levels) < 3 or levels[0] != 1 or list(levels) != sorted(set(levels)):
                raise ValueError(
                    f"{name} must rise from 1 and have at least three values, got {levels}"
                )
        for name in ("factors", "text_factors"):
            if 4 not in getattr(self, name) or min(getattr(self, name)) < 2:
                raise ValueError(
                    f"{name} must hold 4, where the verdict looks, and nothing below 2, got "
                    f"{getattr(self, name)}"
                )
        for name, least in (("blocks", 1), ("inits", 1), ("replicas", 1), ("paths", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("epochs", "text_epochs", "limit_steps", "seeds", "text_seeds"):
            least = 2 if name.endswith("seeds") else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.label_noise < 1:
            raise ValueError(f"label_noise must lie between 0 and 1, got {self.label_noise}")
        for series in _series(self):
            batches = [series.batch_size * factor for factor in series.factors]
            if series.samples < 1 or any(series.samples % batch for batch in batches):
                raise ValueError(
                    f"{'text_samples' if series.task == 'text' else 'samples'} must be a multiple "
                    f"of every batch, {', '.join(map(str, batches))}, so that equal epochs are "
                    f"equal times; got {series.samples}"
                )


# ---- trials


@dataclass(frozen=True)
class Oscillator:
    """Paths of one rule on x^2 / 2 with noise of two values, under SVAG(l)."""

    process: Process
    weights: Weights
    l: int  # noqa: E741 - the paper's letter
    paths: int
    seed: int


@dataclass(frozen=True)
class Limit:
    """Runs of a network from one start under SVAG(l), at the same times for every l."""

    optimizer: str
    label_noise: float
    weights: Weights
    l: int  # noqa: E741 - the paper's letter
    steps: int
    replicas: int
    samples: int
    base_seed: int
    seed: int


@dataclass(frozen=True)
class Series:
    """One task with an optimizer's hyperparameters, at a range of batch sizes."""

    series: str
    task: Literal["digits", "text"]
    optimizer: str
    label_noise: float
    lr: float
    beta1: float
    beta2: float
    batch_size: int
    samples: int
    epochs: int
    readings: int
    factors: tuple[int, ...]
    scalings: tuple[Scaling, ...]
    seeds: int


@dataclass(frozen=True)
class Run:
    """One training run of a series, at `factor` times its batch size."""

    series: str
    task: str
    optimizer: str
    label_noise: float
    lr: float
    beta1: float
    beta2: float
    batch_size: int
    samples: int
    epochs: int
    readings: int
    factor: int
    scaling: Scaling
    source: str
    source_root: str | None
    context: int
    base_seed: int
    seed: int


def _series(config: Config) -> list[Series]:
    rivals: tuple[Scaling, ...] = ("square root", "learning rate only", "linear", "none")
    pair: tuple[Scaling, ...] = ("square root", "learning rate only")
    digits = Series(
        "noisy labels",
        "digits",
        "adam",
        config.label_noise,
        1e-4,
        0.99,
        0.999,
        4,
        config.samples,
        config.epochs,
        config.epochs,
        config.factors,
        rivals,
        config.seeds,
    )
    half = max(config.epochs // 2, 1)
    brief = replace(digits, epochs=half, readings=half, scalings=pair, factors=(4,))
    return [
        Series(
            "text",
            "text",
            "adam",
            0.0,
            1e-3,
            0.99,
            0.999,
            2,
            config.text_samples,
            config.text_epochs,
            4 * config.text_epochs,
            config.text_factors,
            rivals,
            config.text_seeds,
        ),
        digits,
        replace(digits, series="clean labels", label_noise=0.0),
        replace(digits, series="RMSprop", optimizer="rmsprop"),
        replace(brief, series="long memory", lr=3e-4, beta1=0.998, beta2=0.9995),
        replace(brief, series="short memory", beta1=0.9, factors=(4, 8, 16, 32, 64)),
    ]


def trials(config: Config, seed: int) -> list[Oscillator | Limit | Run]:
    """Batch sizes first, as they take longest; then SVAG on the network and the oscillator."""
    return [*_runs(config, seed), *_limits(config, seed), *_oscillators(config, seed)]


def _runs(config: Config, seed: int) -> list[Run]:
    runs = []
    for series in _series(config):
        shared = {
            key: value
            for key, value in vars(series).items()
            if key not in ("factors", "scalings", "seeds")
        }
        shared |= {"source": config.text if series.task == "text" else "digits"}
        shared |= {"source_root": config.text_root if series.task == "text" else None}
        shared |= {"context": config.context, "base_seed": seed}
        points: list[tuple[int, Scaling]] = [(1, "base")]
        if series.task == "digits":  # on text the base run is most of the cost
            points.append((1, "other order"))
        points += itertools.product(series.factors, series.scalings)
        runs += [
            Run(**shared, factor=factor, scaling=scaling, seed=seed * 10_000 + index)
            for factor, scaling in points
            for index in range(series.seeds)
        ]
    return runs


def _limits(config: Config, seed: int) -> list[Limit]:
    first, last = config.limit_levels[0], config.limit_levels[-1]
    points: list[tuple[str, float, Weights, int]] = []
    for optimizer in ("adam", "rmsprop"):
        points += [(optimizer, 0.0, "svag", level) for level in reversed(config.limit_levels)]
        points.append((optimizer, 0.0, "too weak", config.limit_levels[-2]))
        points += [(optimizer, config.label_noise, "svag", level) for level in (last, first)]
    return [
        Limit(
            *point,
            config.limit_steps,
            config.replicas,
            config.samples,
            seed,
            seed * 10_000 + index,
        )
        for point in points
        for index in range(config.inits)
    ]


def _oscillators(config: Config, seed: int) -> list[Oscillator]:
    points: list[tuple[Process, Weights, int]] = []
    for process in PROCESSES:
        levels = list(config.levels)
        if process == "sgd":  # of which a time costs l steps instead of l^2
            levels += [2 * levels[-1], 4 * levels[-1]]
        points += [(process, "svag", level) for level in reversed(levels)]
        if process != "adam from step 0":
            points.append((process, "too weak", levels[-1]))
    # SGD's moment is taken as it is, without a companion, so that it needs more paths.
    return [
        Oscillator(*point, config.paths * (8 if point[0] == "sgd" else 1), seed * 10_000 + index)
        for point in points
        for index in range(config.blocks)
    ]


def group(trial: Oscillator | Limit | Run) -> Hashable:
    """Runs of one batch size and series are one ensemble, starts under one SVAG another."""
    if isinstance(trial, Run):
        return replace(trial, scaling="base", seed=0)
    if isinstance(trial, Limit):
        return replace(trial, seed=0)
    return trial


def run(group_trials: Sequence[Oscillator | Limit | Run]) -> list[list[dict[str, Any]]]:
    """Run one group and return the records of each trial."""
    if isinstance(group_trials[0], Run):
        return _run_batch_size([trial for trial in group_trials if isinstance(trial, Run)])
    if isinstance(group_trials[0], Limit):
        return _run_limit([trial for trial in group_trials if isinstance(trial, Limit)])
    return [[_oscillate(trial)] for trial in group_trials if isinstance(trial, Oscillator)]


def _oscillate(trial: Oscillator) -> dict[str, Any]:
    moment = simulated_moment(
        trial.process, trial.weights, trial.l, paths=trial.paths, seed=trial.seed
    )
    return {"moment": moment, "sde": sde_moment(trial.process)}


# ---- networks


def _digits(samples: int, label_noise: float, base_seed: int) -> tuple[Tensor, Tensor, Any]:
    """Training images, labels of which a share is drawn at random, and the loaded dataset."""
    import torch

    from undertow import data

    loaded = data.load("digits", train_size=samples, seed=base_seed)
    labels = loaded.train_targets.clone()
    generator = torch.Generator().manual_seed(base_seed)
    chosen = torch.rand(len(labels), generator=generator) < label_noise
    labels[chosen] = torch.randint(10, (int(chosen.sum()),), generator=generator)
    return loaded.train_inputs.flatten(1), labels, loaded


def _made_in_turn(
    make: Callable[[torch.Generator], nn.Module], seeds: Sequence[int]
) -> Callable[[torch.Generator], nn.Module]:
    """A model function whose members start from weights of these seeds, whatever their own are."""
    import torch

    networks = (make(torch.Generator().manual_seed(seed)) for seed in seeds)
    return lambda generator: next(networks)


def _run_limit(group_trials: Sequence[Limit]) -> list[list[dict[str, Any]]]:
    from torch.nn import functional

    from undertow import models
    from undertow.train import Ensemble, Member, rules

    first = group_trials[0]
    inputs, labels, _ = _digits(first.samples, first.label_noise, first.base_seed)
    # RMSprop with its bias corrected: from v = 0 uncorrected, noise over sqrt(v) ~ sqrt(t) has a
    # variance of the integral of dt / t, so that there is no SDE to tend to.
    own_rule = {"adam": rules.adam, "rmsprop": rules.adaptive(mean=False)}[first.optimizer]
    rule = noisier(own_rule, first.l, first.weights)
    starts = [trial.seed for trial in group_trials for _ in range(first.replicas)]
    hyper: dict[str, Any] = {"beta1": _LIMIT_BETA1, "beta2": _LIMIT_BETA2}
    ensemble = Ensemble(
        _made_in_turn(lambda own: models.mlp((64, 32, 10), generator=own), starts),
        functional.cross_entropy,
        (inputs, labels),
        [
            # With replacement: batches of one shuffle are not independent, and SVAG would see the
            # same shuffle in a shorter time.
            Member(trial.seed * 1_000 + copy, _LIMIT_LR, order="replacement", **hyper)
            for trial in group_trials
            for copy in range(first.replicas)
        ],
        batch_size=_LIMIT_BATCH,
        rule=rule,
        path="fused",
    )
    records: list[list[dict[str, Any]]] = [[] for _ in group_trials]
    for reading in range(9):
        time = first.steps * reading / 8
        ensemble.train(round(time * rule.steps_per_step) - ensemble.steps_taken)
        losses = ensemble.evaluate(inputs, labels).loss.double().log()
        for rows, own in zip(records, losses.view(len(group_trials), -1), strict=True):
            rows.append(
                {
                    "time": time,
                    "log_loss": float(own.nanmean()),
                    "lost": int(own.isnan().sum()),
                }
            )
    return records


@dataclass(frozen=True, eq=False)
class _Task:
    """What a run trains: the network and its data, and the part of them that its curve shows."""

    make: Callable[[torch.Generator], nn.Module]
    train: tuple[Tensor, Tensor]
    shown: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def _task(trial: Run) -> _Task:
    from undertow import data, models

    if trial.task == "digits":
        inputs, labels, loaded = _digits(trial.samples, trial.label_noise, trial.base_seed)
        test = (loaded.test_inputs.flatten(1), loaded.test_targets)
        return _Task(
            lambda own: models.mlp((64, 64, 10), generator=own),
            (inputs, labels),
            (inputs, labels),
            test,
        )
    text = data.load_text(
        trial.source,
        context=trial.context,
        root=trial.source_root,
        train_size=trial.samples,
        test_size=512,
        seed=trial.base_seed,
    )
    vocabulary, context = len(text.characters), trial.context
    return _Task(
        lambda own: models.transformer(vocabulary, context, width=32, depth=1, generator=own),
        (text.train_inputs, text.train_targets),
        (text.train_inputs[:512], text.train_targets[:512]),  # enough to tell curves apart
        (text.test_inputs, text.test_targets),
    )


def _run_batch_size(group_trials: Sequence[Run]) -> list[list[dict[str, Any]]]:
    from torch.nn import functional

    from undertow.train import Ensemble, Member, rules

    first = group_trials[0]
    task = _task(first)
    ensemble = Ensemble(
        _made_in_turn(task.make, [trial.seed for trial in group_trials]),
        functional.cross_entropy,
        task.train,
        # One shuffle for every batch size: a larger batch is the union of smaller ones.
        [
            Member(trial.seed + 5_000 * (trial.scaling == "other order"), **_scaled(trial)[0])
            for trial in group_trials
        ],
        batch_size=first.batch_size * first.factor,
        rule={"adam": rules.adam, "rmsprop": rules.rmsprop}[first.optimizer],
        path="vmap" if first.task == "text" else "fused",
    )
    steps = first.samples * first.epochs // (first.batch_size * first.factor)
    records: list[list[dict[str, Any]]] = [[] for _ in group_trials]
    noise: dict[int, float] = {}
    for reading in range(first.readings + 1):
        ensemble.train(steps * reading // first.readings - ensemble.steps_taken)
        if reading == first.readings // 2:
            noise = {
                e: _noise_to_signal(ensemble.module(e), task.train) / first.batch_size
                for e, trial in enumerate(group_trials)
                if trial.scaling == "base" and ensemble.diverged_at[e] is None
            }
        losses = ensemble.evaluate(*task.shown).loss.double().log()
        for rows, own in zip(records, losses.tolist(), strict=True):
            rows.append({"epoch": first.epochs * reading / first.readings, "log_loss": own})
    tested = ensemble.evaluate(*task.test)
    for e, (trial, rows) in enumerate(zip(group_trials, records, strict=True)):
        facts = {
            "diverged": ensemble.diverged_at[e] is not None,
            "clipped": _scaled(trial)[1],
            "test_log_loss": float(tested.loss[e].log()),
            "accuracy": float(tested.accuracy[e]),
            "noise_to_signal": noise.get(e),
        }
        for row in rows:
            row |= facts
    return records


def _noise_to_signal(network: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Tr Sigma / |G|^2 of single samples, G being the training data's own gradient."""
    from torch.nn import functional

    from undertow import measure
    from undertow.objective import Objective

    noise = measure.gradient_noise(Objective(network, functional.cross_entropy, data))
    return noise.trace / (noise.gradient_sqnorm + noise.trace / noise.num_samples)


def _scaled(trial: Run) -> tuple[dict[str, Any], bool]:
    """The hyperparameters of a run, and whether beta1 had to be cut off at 0."""
    from undertow import predict

    given = {"lr": trial.lr, "beta2": trial.beta2, "eps": 1e-8}
    own = {**given, "beta1": trial.beta1}
    if trial.scaling in ("base", "other order", "none"):
        return own, False
    factor = trial.factor
    if trial.scaling == "learning rate only":
        return {**own, "lr": trial.lr * math.sqrt(factor)}, False
    sizes = {"from_batch": trial.batch_size, "to_batch": trial.batch_size * factor}
    clipped = trial.optimizer == "adam" and factor * (1 - trial.beta1) >= 1
    if trial.optimizer == "adam" and not clipped:
        moved = predict.rescale(own, optimizer="adam", **sizes).hyper
    else:  # Adam without a mean is RMSprop
        moved = {"beta1": 0.0, **predict.rescale(given, optimizer="rmsprop", **sizes).hyper}
    values = {name: float(moved[name]) for name in ("lr", "beta1", "beta2", "eps")}  # type: ignore[arg-type]
    if trial.scaling == "linear":  # the rule in all but the power of the learning rate
        values["lr"] = trial.lr * factor
    return values, clipped


# ---- the verdict rule

_RIVALS = ("linear", "none")


def judge(records: pl.DataFrame, config: Config) -> Verdict:
    """Every check of the claim; the thresholds were fixed before the verdict seeds ran."""
    runs = _deviations(records)
    diverged = records.filter(pl.col("diverged").fill_null(False))["trial"].n_unique()
    lost = records.select(pl.col("lost").max()).item()
    summary = (
        f"{diverged} training runs diverged, and at most {lost} of a start's replicas. Deviation "
        "is the mean |difference of log training loss| from the run at the base batch with the "
        "same seed, at equal epochs."
    )
    checks = [
        *_oscillator_checks(records, config),
        *_limit_checks(records, config),
        *_rule_checks(runs, _predicted(records), config),
        *_edge_checks(runs, config),
        *_beta_checks(runs),
    ]
    return decide(checks, summary, promises_verdict=config.seeds >= 10 and config.text_seeds >= 5)


def _over_blocks(count: int, statistic: Callable[[np.ndarray], float]) -> lab.Effect:
    """A statistic of all blocks together, given which to use, with its bootstrap interval."""
    if count < 4:
        value = statistic(np.arange(count)) if count else math.nan
        return lab.Effect(value, (math.nan, math.nan), None, count, "too few runs for an interval")
    return lab.bootstrap_interval(
        np.arange(count), lambda chosen: statistic(chosen.astype(int)), resamples=1000
    )


def _weak_errors(
    records: pl.DataFrame, process: str, weights: str
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The levels l, and for each the errors of E x^2 in every block."""
    own = records.filter(pl.col("process") == process, pl.col("weights") == weights).sort("l")
    errors = {
        int(level): part.sort("seed")
        .select(pl.col("moment") - pl.col("sde"))
        .to_series()
        .to_numpy()
        for (level,), part in own.group_by("l", maintain_order=True)
    }
    return np.array(list(errors), dtype=float), errors


def _order(records: pl.DataFrame, process: str, *, least: int) -> lab.Effect:
    """The slope of log |error of E x^2| on log l, over levels of at least `least`."""
    levels, errors = _weak_errors(records, process, "svag")
    kept = [int(level) for level in levels if level >= least]
    if not kept:
        return _over_blocks(0, lambda chosen: math.nan)

    def slope(chosen: np.ndarray) -> float:
        means = [abs(errors[level][chosen].mean()) for level in kept]
        return float(np.polyfit(np.log(kept), np.log(means), 1)[0])

    return _over_blocks(min(len(errors[level]) for level in kept), slope)


def _kept_error(records: pl.DataFrame, process: str) -> lab.Effect:
    """|Error| at the finest level with noise that is too weak, over that of the bare rule."""
    _, right = _weak_errors(records, process, "svag")
    _, weak = _weak_errors(records, process, "too weak")
    if not weak or 1 not in right:
        return _over_blocks(0, lambda chosen: math.nan)
    (last,) = weak.values()
    return _over_blocks(
        min(len(last), len(right[1])),
        lambda chosen: float(abs(last[chosen].mean()) / abs(right[1][chosen].mean())),
    )


def _oscillator_checks(records: pl.DataFrame, config: Config) -> list[Check]:
    checks = [
        check_within(
            "weak order of SVAG, SGD",
            _order(records, "sgd", least=1),
            -1.25,
            -0.85,
            "the slope of log error on log l is -1.25 to -0.85: order 1/l",
        )
    ]
    for process in ("rmsprop", "adam"):
        checks.append(
            check_within(
                f"weak order of SVAG, {_NAMES[process]}",
                _order(records, process, least=2),
                -2.6,
                -1.6,
                "-2.6 to -1.6 over l of at least 2: order 1/l^2",
            )
        )
    for process in ("sgd", "rmsprop", "adam"):
        checks.append(
            check_above(
                f"error kept with weaker noise, {_NAMES[process]}",
                _kept_error(records, process),
                bound=0.5,
                rule="at least half of the bare rule's error at the finest l: it must not vanish",
                control=True,
            )
        )
    return checks


_NAMES = {
    "sgd": "SGD",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "adam from step 0": "Adam from step 0",
}


def _mean_curves(
    records: pl.DataFrame, optimizer: str, noise: float, *points: tuple[str, int]
) -> list[np.ndarray]:
    """Mean log loss of each start's replicas, `[starts, times]`, without time 0.

    One array for each of `points`, weights and l, of the starts that all of them have: row by row
    they are comparable, also where a run failed or all its replicas diverged.
    """
    found = []
    for weights, level in points:
        own = records.filter(
            pl.col("replicas").is_not_null(),
            pl.col("optimizer") == optimizer,
            pl.col("label_noise") == noise,
            pl.col("weights") == weights,
            pl.col("l") == level,
            pl.col("time") > 0,
        ).sort("seed", "time")
        by_seed = own.partition_by("seed", as_dict=True)
        curves = {seed: part["log_loss"].to_numpy() for (seed,), part in by_seed.items()}
        found.append({seed: curve for seed, curve in curves.items() if np.isfinite(curve).all()})
    shared = sorted(set.intersection(*(set(curves) for curves in found)))
    return [np.array([curves[seed] for seed in shared]) for curves in found]


def _distance(curves: np.ndarray, limit: np.ndarray, chosen: np.ndarray) -> float:
    """Mean over time of |difference| of curves that are averaged over starts."""
    return float(np.abs(curves[chosen].mean(0) - limit[chosen].mean(0)).mean())


def _limit_ratio(records: pl.DataFrame, optimizer: str, config: Config, weights: str) -> lab.Effect:
    """Distance from SVAG(l_max) at the level before it, over that of the bare optimizer."""
    *_, before, last = config.limit_levels
    limit, bare, fine = _mean_curves(
        records, optimizer, 0.0, ("svag", last), ("svag", 1), (weights, before)
    )
    return _over_blocks(
        len(limit),
        lambda chosen: _distance(fine, limit, chosen) / _distance(bare, limit, chosen),
    )


def _limit_share(records: pl.DataFrame, optimizer: str, config: Config) -> lab.Effect:
    """The bare optimizer's distance from its SDE where noise dominates, over the drop in loss."""
    last = config.limit_levels[-1]
    limit, bare = _mean_curves(records, optimizer, config.label_noise, ("svag", last), ("svag", 1))
    start = records.filter(
        pl.col("replicas").is_not_null(),
        pl.col("label_noise") == config.label_noise,
        pl.col("time") == 0,
    )["log_loss"].mean()
    return _over_blocks(
        len(limit),
        lambda chosen: _distance(bare, limit, chosen) / float(start - limit[chosen, -1].mean()),
    )


def _limit_checks(records: pl.DataFrame, config: Config) -> list[Check]:
    *_, before, last = config.limit_levels
    checks = []
    for optimizer in ("adam", "rmsprop"):
        name = _NAMES[optimizer]
        checks += [
            check_below(
                f"{name}, SVAG({before}) over SVAG(1): distance from SVAG({last})",
                _limit_ratio(records, optimizer, config, "svag"),
                bound=0.4,
                rule="at most 0.4 on digits: the trajectories converge",
            ),
            check_above(
                f"{name} with weaker noise: the same",
                _limit_ratio(records, optimizer, config, "too weak"),
                bound=1.0,
                rule="at least 1: noise whose sd grows as sqrt(l) has another limit",
                control=True,
            ),
            check_below(
                f"{name}'s own distance from its SDE, noisy labels",
                _limit_share(records, optimizer, config),
                bound=0.1,
                rule="at most 0.1 of the drop in log loss",
            ),
        ]
    return checks


def _deviations(records: pl.DataFrame) -> pl.DataFrame:
    """One row a run: its deviation from the base run of its seed, and that over the base's drop."""
    rows = records.filter(pl.col("scaling").is_not_null(), ~pl.col("diverged"))
    base = rows.filter(pl.col("scaling") == "base")
    facts = base.sort("epoch").group_by("series", "seed", maintain_order=True)
    bases = facts.agg(
        (pl.col("log_loss").first() - pl.col("log_loss").last()).alias("drop"),
        pl.col("accuracy").first().alias("base_accuracy"),
        pl.col("test_log_loss").first().alias("base_test"),
    )
    keys = ["series", "seed", "epoch"]
    paired = rows.join(base.select(*keys, pl.col("log_loss").alias("base_log_loss")), on=keys)
    return (
        paired.filter(pl.col("epoch") > 0, pl.col("scaling") != "base")
        .group_by("series", "factor", "scaling", "seed", "clipped")
        .agg(
            (pl.col("log_loss") - pl.col("base_log_loss")).abs().mean().alias("deviation"),
            pl.col("accuracy").first(),
            pl.col("test_log_loss").first(),
        )
        .join(bases, on=["series", "seed"])
        .with_columns(
            (pl.col("deviation") / pl.col("drop")).alias("share"),
            (pl.col("accuracy") - pl.col("base_accuracy")).abs().alias("accuracy_change"),
            (pl.col("test_log_loss") - pl.col("base_test")).abs().alias("test_change"),
        )
        .sort("series", "factor", "scaling", "seed")
    )


def _by_seed(
    runs: pl.DataFrame, series: str, factor: int, scaling: str, column: str = "deviation"
) -> dict[int, float]:
    own = runs.filter(series=series, factor=factor, scaling=scaling)
    return dict(own.select("seed", column).iter_rows())


def _against_rival(runs: pl.DataFrame, series: str, factor: int, rival: str) -> Check:
    """The rule's deviation over a rival's: below a half, by interval and by Wilcoxon's test."""
    from scipy.stats import wilcoxon

    own = _by_seed(runs, series, factor, "square root")
    others = _by_seed(runs, series, factor, rival)
    effect = ratio_over_seeds(own, others)
    name = f"{series}, k = {factor}: square root over {_RIVAL_NAMES[rival]}"
    seeds = sorted(own.keys() & others.keys())
    if len(seeds) < 10:
        return check_below(name, effect, bound=0.5, rule="deviation at most half")
    margin = np.array([own[seed] - others[seed] / 2 for seed in seeds])
    p_value = float(wilcoxon(margin, alternative="less").pvalue)
    check = check_below(
        name, effect, bound=0.5, rule=f"at most half, and Wilcoxon's p < 0.01 (here {p_value:.1g})"
    )
    return replace(check, passed=check.passed and p_value < 0.01)


_RIVAL_NAMES = {"linear": "linear", "none": "no scaling"}


def _rule_checks(runs: pl.DataFrame, predicted: pl.DataFrame, config: Config) -> list[Check]:
    largest, text_largest = max(config.factors), max(config.text_factors)
    checks = [
        _against_rival(runs, series, factor, rival)
        for series in ("noisy labels", "RMSprop")
        for factor in dict.fromkeys((4, largest))
        for rival in _RIVALS
    ]
    # At k = 4 text's linear runs lie within what the order of the data alone does to a curve.
    checks.append(_against_rival(runs, "text", 4, "none"))
    checks += [
        _against_rival(runs, "text", text_largest, rival)
        for rival in _RIVALS
        if (text_largest, rival) != (4, "none")
    ]
    slower = _by_seed(predicted, "noisy labels", 4, "none", "predicted")
    kept = _by_seed(runs, "noisy labels", largest, "square root", "accuracy_change")
    lost = _by_seed(runs, "noisy labels", largest, "none", "accuracy_change")
    return [
        *checks,
        check_within(
            "no scaling, k = 4: predicted over measured deviation",
            ratio_over_seeds(slower, _by_seed(runs, "noisy labels", 4, "none")),
            0.8,
            1.25,
            "0.8 to 1.25: it is the base curve, sqrt(k) times slower",
        ),
        check_below(
            f"change of test accuracy, square root, k = {largest}",
            _mean(kept),
            bound=0.02,
            rule="at most 0.02 on noisy labels",
        ),
        check_above(
            f"change of test accuracy, no scaling, k = {largest}",
            _mean(lost),
            bound=0.05,
            rule="at least 0.05",
            control=True,
        ),
    ]


def _mean(values: dict[int, float]) -> lab.Effect:
    return over_seeds([values[seed] for seed in sorted(values)])


def _edge_checks(runs: pl.DataFrame, config: Config) -> list[Check]:
    """Where the rule must break: signal in the gradients, and more than beta1 can follow."""
    clean = _by_seed(runs, "clean labels", 4, "square root", "share")
    noisy = _by_seed(runs, "noisy labels", 4, "square root", "share")
    near = _by_seed(runs, "short memory", 4, "square root")
    far = _by_seed(runs, "short memory", 64, "square root")
    return [
        check_above(
            "clean over noisy labels: the rule's deviation over the drop in loss, k = 4",
            ratio_over_seeds(clean, noisy),
            bound=2.0,
            rule="at least 2: it needs noise to dominate",
            control=True,
        ),
        check_above(
            "beta1 = 0.9 at k = 64 over k = 4: the rule's deviation",
            ratio_over_seeds(far, near),
            bound=4.0,
            rule="at least 4: beyond k = 1 / (1 - beta1) = 10 beta1 cannot follow",
            control=True,
        ),
    ]


_BETA_TESTS = {"long memory": "betas of 0.998 and 0.9995", "RMSprop": "RMSprop", "text": "text"}


def _beta_checks(runs: pl.DataFrame) -> list[Check]:
    checks = []
    for series, name in _BETA_TESTS.items():
        effect = ratio_over_seeds(
            _by_seed(runs, series, 4, "learning rate only"),
            _by_seed(runs, series, 4, "square root"),
        )
        checks.append(
            check_above(
                f"{name}, k = 4: learning rate only over the whole rule",
                effect,
                bound=1.5,
                rule="deviation at least 1.5 times: the betas must scale, too",
            )
        )
    return checks


# ---- what a reader sees


def table(records: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Deviations at every batch size, scaling and series, with what theory says of no scaling."""
    keys = ["series", "factor", "scaling"]
    predicted = _predicted(records).group_by(keys).agg(pl.col("predicted").mean())
    noise = records.group_by("series").agg(pl.col("noise_to_signal").mean())
    return (
        _deviations(records)
        .group_by(keys)
        .agg(
            pl.col("deviation").mean(),
            pl.col("share").mean().alias("over drop in loss"),
            pl.col("accuracy_change").mean().fill_nan(None).alias("test accuracy off by"),
            pl.col("test_change").mean().alias("test log loss off by"),
            pl.col("clipped").any().alias("beta1 cut off"),
        )
        .join(predicted, on=keys, how="left")
        .join(noise, on="series")
        .with_columns((pl.col("noise_to_signal") / pl.col("factor")).alias("noise over signal"))
        .drop("noise_to_signal")
        .sort(keys)
    )


def _predicted(records: pl.DataFrame) -> pl.DataFrame:
    """What the SDE says of runs without scaling: the base curve, sqrt(k) times as slow.

    At k times the batch an unchanged learning rate is the square-root rule's over sqrt(k); where
    noise is averaged out over the path, only the speed of the drift matters.
    """
    rows = []
    kept = records.filter(pl.col("scaling").is_not_null(), ~pl.col("diverged"))
    factors = dict(
        kept.filter(pl.col("scaling") == "none")
        .group_by("series")
        .agg(pl.col("factor").unique())
        .iter_rows()
    )
    base = kept.filter(pl.col("scaling") == "base").sort("epoch")
    for (series, seed), own in base.group_by("series", "seed"):
        epochs, losses = own["epoch"].to_numpy(), own["log_loss"].to_numpy()
        for factor in factors.get(series, ()):
            slow = np.interp(epochs / math.sqrt(factor), epochs, losses)
            deviation = float(np.abs(slow - losses)[1:].mean())
            share = deviation / (losses[0] - losses[-1])
            rows.append((series, factor, "none", seed, deviation, share))
    columns = ["series", "factor", "scaling", "seed", "predicted", "predicted share"]
    return pl.DataFrame(rows, schema=columns, orient="row").sort("series", "factor", "seed")


def figures(records: pl.DataFrame, config: Config) -> list[Figure]:
    """The charts of the report."""
    return [
        _order_figure(records),
        _limit_figure(records, config),
        _rule_figure(records),
        _curve_figure(records, config),
    ]


def _log(name: str, title: str) -> dict[str, Any]:
    scale = alt.Scale(type="log", nice=False, padding=8)
    return {"shorthand": f"{name}:Q", "scale": scale, "title": title}


def _order_figure(records: pl.DataFrame) -> Figure:
    rows = []
    for process, name in _NAMES.items():
        levels, errors = _weak_errors(records, process, "svag")
        if not len(levels):
            continue
        means = [abs(errors[int(level)].mean()) for level in levels]
        power = 1 if process == "sgd" else 2
        last = means[-1] * levels[-1] ** power
        for level, mean in zip(levels, means, strict=True):
            rows.append((name, level, "measured", mean))
            rows.append(
                (name, level, f"predicted: 1/l{'²' if power == 2 else ''}", last / level**power)
            )
        _, weak = _weak_errors(records, process, "too weak")
        for level, own in weak.items():
            rows.append((name, float(level), "weaker noise (control)", abs(own.mean())))
    frame = pl.DataFrame(rows, schema=["process", "l", "what", "error"], orient="row")
    chart = (
        alt.Chart(frame)
        .mark_line(point=True)
        .encode(
            x=alt.X(**_log("l", "SVAG's l")),
            y=alt.Y(**_log("error", "|error of E x²|")),
            color=alt.Color("what:N", legend=alt.Legend(orient="top", title=None, labelLimit=0)),
        )
        .properties(width=150, height=200)
        .facet(column=alt.Column("process:N", title=None, sort=list(_NAMES.values())))
    )
    return Figure(
        "order",
        "SVAG tends to the SDE: as 1/l for SGD, as 1/l² for RMSprop and Adam",
        "An oscillator with noise of two values. The predicted line passes through the finest "
        "level. Adam from step 0 is not judged: its bias correction diverges there.",
        chart,
    )


def _limit_figure(records: pl.DataFrame, config: Config) -> Figure:
    rows = []
    *levels, last = config.limit_levels
    for optimizer in ("adam", "rmsprop"):
        points = [*(("svag", level) for level in levels), ("too weak", levels[-1])]
        distances = {}
        for point in points:
            curves, limit = _mean_curves(records, optimizer, 0.0, point, ("svag", last))
            if len(limit):
                distances[point] = _distance(curves, limit, np.arange(len(limit)))
        for (weights, level), distance in distances.items():
            what = "measured" if weights == "svag" else "weaker noise (control)"
            rows.append((_NAMES[optimizer], level, what, distance))
        scale = distances.get(("svag", 1), math.nan) / (1 - 1 / last**2)
        for level in levels:
            predicted = scale * (1 / level**2 - 1 / last**2)
            rows.append((_NAMES[optimizer], level, "predicted from l = 1", predicted))
    frame = pl.DataFrame(rows, schema=["optimizer", "l", "what", "distance"], orient="row")
    chart = (
        alt.Chart(frame)
        .mark_line(point=True)
        .encode(
            x=alt.X(**_log("l", "SVAG's l")),
            y=alt.Y(**_log("distance", f"distance from SVAG({last})")),
            color=alt.Color("what:N", legend=alt.Legend(orient="top", title=None, labelLimit=0)),
        )
        .properties(width=260, height=220)
        .facet(column=alt.Column("optimizer:N", title=None))
    )
    return Figure(
        "limit",
        "On a network, too, trajectories converge as the noise takes over",
        "Distance of mean log-loss curves on clean digits, where plain Adam is far from its SDE. "
        "Averages over replicas leave a floor of sampling noise under the last point.",
        chart,
    )


_SCALINGS = ("square root", "learning rate only", "linear", "none")


def _rule_figure(records: pl.DataFrame) -> Figure:
    measured = (
        _deviations(records)
        .filter(pl.col("scaling").is_in(_SCALINGS))
        .group_by("series", "factor", "scaling")
        .agg(pl.col("share").mean())
    )
    predicted = (
        _predicted(records)
        .group_by("series", "factor")
        .agg(
            pl.lit("none, predicted").first().alias("scaling"),
            share=pl.col("predicted share").mean(),
        )
    )
    frame = pl.concat([measured, predicted.select(measured.columns)]).sort("series", "factor")
    chart = (
        alt.Chart(frame)
        .mark_line(point=True)
        .encode(
            x=alt.X(**_log("factor", "k")),
            y=alt.Y(**_log("share", "deviation / drop in log loss")),
            color=alt.Color(
                "scaling:N",
                sort=[*_SCALINGS, "none, predicted"],
                legend=alt.Legend(orient="top", title=None, labelLimit=0),
            ),
            strokeDash=alt.StrokeDash(
                "scaling:N", sort=[*_SCALINGS, "none, predicted"], legend=None
            ),
        )
        .properties(width=200, height=170)
        .facet(facet=alt.Facet("series:N", title=None), columns=3)
    )
    return Figure(
        "rule",
        "The square-root rule keeps the path; neither linear scaling nor none does",
        "Deviation from the run at the base batch, at k times the batch. Without scaling the SDE "
        "predicts the base curve run sqrt(k) times slower, from no free number. The rule is worst "
        "where labels are clean, as signal then dominates.",
        chart,
    )


def _curve_figure(records: pl.DataFrame, config: Config) -> Figure:
    shown = {
        "noisy labels": max(config.factors),
        "clean labels": max(config.factors),
        "text": max(config.text_factors),
    }
    rows = records.filter(
        pl.col("scaling").is_in(["base", *_SCALINGS]),
        pl.col("series").is_in(list(shown)),
        ~pl.col("diverged"),
    ).filter(
        (pl.col("scaling") == "base")
        | (pl.col("factor") == pl.col("series").replace_strict(shown, return_dtype=pl.Int64))
    )
    frame = (
        rows.group_by("series", "scaling", "epoch")
        .agg(pl.col("log_loss").mean().exp().alias("loss"))
        .with_columns(
            pl.when(pl.col("scaling") == "base")
            .then(pl.lit("base batch"))
            .otherwise(pl.col("scaling"))
            .alias("scaling")
        )
        .sort("series", "scaling", "epoch")
    )
    chart = (
        alt.Chart(frame)
        .mark_line()
        .encode(
            x=alt.X("epoch:Q", title="epoch"),
            y=alt.Y("loss:Q", scale=alt.Scale(type="log", nice=False), title="training loss"),
            color=alt.Color(
                "scaling:N",
                sort=["base batch", *_SCALINGS],
                legend=alt.Legend(orient="top", title=None, labelLimit=0),
            ),
        )
        .properties(width=210, height=210)
        .facet(column=alt.Column("series:N", title=None))
        .resolve_scale(x="independent", y="independent")
    )
    return Figure(
        "curves",
        f"The curves behind it, at {max(config.factors)} times the batch",
        "Geometric means over seeds.",
        chart,
    )


CLAIM = Claim(
    name="adaptive-sde",
    title="Adam and RMSprop follow an SDE, and the square-root rule keeps it",
    paper="Malladi, Lyu, Panigrahi and Arora, On the SDEs and Scaling Rules for Adaptive Gradient "
    "Algorithms (2022), arXiv:2205.10287; SVAG: Li, Malladi and Arora, On the Validity of Modeling "
    "SGD with Stochastic Differential Equations (2021), arXiv:2102.12470",
    statement="Where gradient noise dominates, Adam and RMSprop follow stochastic differential "
    "equations in the time steps x lr^2, to which SVAG converges weakly. They stay the same when "
    "the batch grows k times if lr grows by sqrt(k), 1 - beta by k and eps by 1 / sqrt(k): the "
    "square-root rule, where SGD has the linear one.",
    corrections=(
        "Order 1/l^2 is that of Adam whose averages are warm. From step 0 the factor sqrt(g2) / g1 "
        "of the bias correction diverges as 1 / sqrt(t), and already the second moments of the "
        "linear recursion have an error of order log(l) / l^2.",
        "RMSprop from v = 0 without bias correction has no SDE to tend to: noise over sqrt(v), "
        "which grows as sqrt(t), has a variance of the integral of dt / t. Each doubling of l adds "
        "to it. The network's limit is therefore tested with the bias corrected.",
        "k = 1 / (1 - beta1) ends what the rule can be written down for, but is no cliff: with "
        "beta1 cut off at 0 beyond it, the deviation goes on growing as it did before.",
    ),
    config=Config,
    presets={
        "smoke": Config(
            levels=(1, 2, 4),
            paths=2**12,
            blocks=2,
            limit_levels=(1, 2, 3),
            limit_steps=16,
            replicas=2,
            inits=2,
            samples=256,
            epochs=2,
            factors=(4,),
            text_samples=64,
            text_epochs=1,
            text_factors=(4,),
            seeds=2,
            text_seeds=2,
        ),
        "small": Config(),
        "paper": Config(
            levels=(1, 2, 4, 8, 16),
            paths=2**20,
            limit_levels=(1, 2, 4, 8, 16),
            replicas=256,
            inits=16,
            epochs=100,
            text="austen",
            text_samples=16_384,
            context=64,
            text_epochs=10,
            text_factors=(2, 4, 8, 16, 32),
            seeds=50,
            text_seeds=20,
        ),
    },
    costs={"smoke": "10 s", "small": "3 min on two cores", "paper": "days on two cores"},
    trials=trials,
    group=group,
    group_size=64,
    run=run,
    judge=judge,
    figures=figures,
    table=table,
)
