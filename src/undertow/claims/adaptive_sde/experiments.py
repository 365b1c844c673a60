"""Runs at several batch sizes on images and text, SVAG on a network, and the oscillator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from undertow.claims.adaptive_sde import FACTOR, IMAGE_BATCH, SHORT_FACTORS, TEXT_BATCH, AdaptiveSde
from undertow.data import Images, Text
from undertow.lab import Experiment, grid, seeds

if TYPE_CHECKING:
    from torch import Tensor, nn

    from undertow.data import Dataset
    from undertow.train import Ensemble, Member, NoisyOscillator
    from undertow.train.rules import Rule

SCALINGS = ("square root", "learning rate only", "linear", "none")
OPTIMIZERS = {"adam": "Adam", "rmsprop": "RMSprop"}
PROCESSES = {"sgd": "SGD", "rmsprop": "RMSprop", "adam": "Adam"}
LONG = {"lr": 3e-4, "beta1": 0.998, "beta2": 0.9995}
UNJUDGED = {"adam from step 0": "Adam from step 0"}

Rows = list[dict[str, Any]]
Pair = tuple["Tensor", "Tensor"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run at `factor` times the batch of a series; `base` and `other order` are at the batch."""

    series: str
    optimizer: str = "adam"
    lr: float
    beta1: float = 0.99
    beta2: float = 0.999
    batch_size: int
    epochs: int
    factor: int
    scaling: str
    data_seed: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class ImageRun(Run):
    """Of a perceptron on images, of which a share has labels drawn at random."""

    images: Images
    label_noise: float
    lr: float = 1e-4
    batch_size: int = IMAGE_BATCH


@dataclass(frozen=True, kw_only=True)
class TextRun(Run):
    """Of a transformer on text."""

    text: Text
    lr: float = 1e-3
    batch_size: int = TEXT_BATCH


@dataclass(frozen=True)
class Limit:
    """Runs of a network from one start under SVAG, at the same times for every level."""

    images: Images
    optimizer: str
    label_noise: float
    weights: str
    level: int
    limit_steps: int
    replicas: int
    data_seed: int
    seed: int


@dataclass(frozen=True)
class Oscillator:
    """Paths of one rule on x^2 / 2 with noise of two values, under SVAG."""

    process: str
    weights: str
    level: int
    paths: int
    seed: int


def experiments(knobs: AdaptiveSde, seed: int) -> dict[str, Experiment]:
    """Batch sizes first, as they take longest; then SVAG on the network and the oscillator."""
    text = {"series": "text", "epochs": knobs.text_epochs, "data_seed": seed}
    make = partial(grid, TextRun, knobs, cell=[text], seed=seeds(seed, knobs.text_seeds))
    base = make(factor=[1], scaling=["base"])  # which on text is most of the cost
    runs = base + make(factor=knobs.text_factors, scaling=SCALINGS)
    return {
        "text": Experiment(runs, on_text, ("scaling", "seed"), 64),
        "images": Experiment(_image_runs(knobs, seed), on_images, ("scaling", "seed"), 64),
        "limits": Experiment(_limits(knobs, seed), limit_curves, ("seed",), 64),
        "oscillators": Experiment(_oscillators(knobs, seed), oscillate),
    }


def _image_runs(knobs: AdaptiveSde, seed: int) -> list[ImageRun]:
    half = {"epochs": max(knobs.epochs // 2, 1)}
    series: dict[str, tuple[dict[str, Any], Sequence[int], Sequence[str]]] = {
        "noisy labels": ({}, knobs.factors, SCALINGS),
        "clean labels": ({"label_noise": 0.0}, knobs.factors, SCALINGS),
        "RMSprop": ({"optimizer": "rmsprop"}, knobs.factors, SCALINGS),
        "long memory": (half | LONG, (FACTOR,), SCALINGS[:2]),
        "short memory": (half | {"beta1": 0.9}, SHORT_FACTORS, SCALINGS[:2]),
    }
    runs = []
    for name, (own, factors, scalings) in series.items():
        cell = own | {"series": name, "data_seed": seed}
        make = partial(grid, ImageRun, knobs, cell=[cell], seed=seeds(seed, knobs.seeds))
        runs += make(factor=[1], scaling=["base", "other order"])
        runs += make(factor=factors, scaling=scalings)
    return runs


def _limits(knobs: AdaptiveSde, seed: int) -> list[Limit]:
    *_, before, last = levels = knobs.limit_levels
    inits = seeds(seed, knobs.inits)
    make = partial(grid, Limit, knobs, optimizer=OPTIMIZERS, data_seed=[seed], seed=inits)
    clean = make(label_noise=[0.0], weights=["svag"], level=levels[::-1])
    clean += make(label_noise=[0.0], weights=["too weak"], level=[before])
    return clean + make(weights=["svag"], level=[last, levels[0]])


def _oscillators(knobs: AdaptiveSde, seed: int) -> list[Oscillator]:
    made = []
    for process in PROCESSES | UNJUDGED:
        # SGD's moment is taken as it is, not as a small difference, so that it needs more paths.
        cell = {"process": process, "paths": knobs.paths * (8 if process == "sgd" else 1)}
        make = partial(grid, Oscillator, knobs, cell=[cell], seed=seeds(seed, knobs.blocks))
        levels = knobs.levels_of(process)
        made += make(weights=["svag"], level=levels[::-1])
        if process in PROCESSES:
            made += make(weights=["too weak"], level=levels[-1:])
    return made


def noisier(rule: Rule, level: int, weights: str) -> Rule:
    """SVAG; or with noise too weak: its variance is (1 + l) / 2 for SGD's l, and l for l^2."""
    from undertow.train import rules

    amplified = rules.svag(rule, level)
    if weights == "svag" or level == 1:
        return amplified
    spread = math.sqrt(level if rule.name == "sgd" else 2 * level - 1)
    return replace(amplified, batch_weights=((1 + spread) / 2, (1 - spread) / 2))


def oscillator(process: str) -> NoisyOscillator:
    """Coarse, with sigma lr = 1, (1 - beta) / lr^2 = 2 and eps = sigma / 10."""
    from undertow.train import NoisyOscillator, rules

    if process == "sgd":
        return NoisyOscillator(rules.sgd, rules.Hyper(0.5), noise=1.0, start=1.0, end=2.0)
    rule = rules.rmsprop if process == "rmsprop" else rules.adam
    hyper, warm = rules.Hyper(0.5, beta1=0.5, beta2=0.5, eps=0.2), process in PROCESSES
    return NoisyOscillator(rule, hyper, noise=2.0, start=0.0, end=2.0, warm=warm)


def oscillate(trial: Oscillator) -> dict[str, Any]:
    """E x^2 at the end of time, of the paths and of the SDE."""
    import torch

    own = oscillator(trial.process)
    rule = noisier(own.rule, trial.level, trial.weights)
    generator = torch.Generator().manual_seed(trial.seed)
    moment = own.simulated_moment(rule, paths=trial.paths, generator=generator)
    return {"moment": moment, "sde": own.sde_moment()}


def times(setting: AdaptiveSde | Limit) -> list[float]:
    """At which the network's loss is read, in steps of the bare optimizer."""
    return [setting.limit_steps * piece / 8 for piece in range(9)]


def limit_curves(trials: Sequence[Limit]) -> list[Rows]:
    """The log loss of a perceptron, of each start averaged over its replicas; coarse on purpose."""
    from undertow import models
    from undertow.train import Member, rules

    first = trials[0]
    loaded, data = noisy_images(first)
    # RMSprop with its bias corrected: from v = 0 uncorrected, noise over sqrt(v) ~ sqrt(t) has a
    # variance of the integral of dt / t, so that there is no SDE to tend to.
    own = rules.adam if first.optimizer == "adam" else rules.adaptive(mean=False)
    rule = noisier(own, first.level, first.weights)
    # With replacement: batches of one shuffle are not independent, and SVAG would see the same
    # shuffle in a shorter time.
    fixed: dict[str, Any] = {"lr": 1e-2, "beta1": 0.8, "beta2": 0.9, "order": "replacement"}
    members = [
        (trial.seed, Member(trial.seed * 1_000 + copy, **fixed))
        for trial in trials
        for copy in range(first.replicas)
    ]
    make = partial(models.mlp, (data[0].shape[1], 32, loaded.num_classes))
    ensemble = _ensemble(make, data, members, batch_size=4, rule=rule, path="fused")
    records: list[Rows] = [[] for _ in trials]
    for time in times(first):
        ensemble.train(round(time * rule.steps_per_step) - ensemble.steps_taken)
        losses = ensemble.evaluate(*data).loss.double().log().view(len(trials), -1)
        for rows, curve in zip(records, losses, strict=True):
            lost = int(curve.isnan().sum())
            rows.append({"time": time, "log_loss": float(curve.nanmean()), "lost": lost})
    return records


def noisy_images(trial: Limit | ImageRun) -> tuple[Dataset, Pair]:
    """The data, and its training part with a share of the labels drawn at random."""
    import torch

    loaded = trial.images.load(seed=trial.data_seed)
    labels = loaded.train_targets.clone()
    generator = torch.Generator().manual_seed(trial.data_seed)
    chosen = torch.rand(len(labels), generator=generator) < trial.label_noise
    drawn = labels[chosen].shape
    labels[chosen] = torch.randint(loaded.num_classes, drawn, generator=generator)
    return loaded, (loaded.train_inputs.flatten(1), labels)


def _ensemble(
    make: Callable[..., nn.Module], data: Pair, members: Sequence[tuple[int, Member]], **more: Any
) -> Ensemble:
    """Members that start from weights of given seeds, whatever their own are."""
    import torch
    from torch.nn import functional

    from undertow.train import Ensemble

    starts = (make(generator=torch.Generator().manual_seed(seed)) for seed, _ in members)
    own, loss = [member for _, member in members], functional.cross_entropy
    return Ensemble(lambda generator: next(starts), loss, data, own, **more)


@dataclass(frozen=True, eq=False)
class Task:
    """The network and its data, and the part of them that a curve of so many readings shows."""

    make: Callable[..., nn.Module]
    train: Pair
    shown: Pair
    test: Pair
    readings: int
    path: str


def on_images(trials: Sequence[ImageRun]) -> list[Rows]:
    """A perceptron, read once an epoch."""
    from undertow import models

    loaded, train = noisy_images(trials[0])
    test = (loaded.test_inputs.flatten(1), loaded.test_targets)
    make = partial(models.mlp, (train[0].shape[1], 64, loaded.num_classes))
    return at_batch_size(trials, Task(make, train, train, test, trials[0].epochs, "fused"))


def on_text(trials: Sequence[TextRun]) -> list[Rows]:
    """A small causal transformer, read four times an epoch."""
    from undertow import models

    text = trials[0].text.load(test_size=512, seed=trials[0].data_seed)
    train = (text.train_inputs, text.train_targets)
    shown = (text.train_inputs[:512], text.train_targets[:512])  # enough to tell curves apart
    test = (text.test_inputs, text.test_targets)
    sizes = (len(text.characters), train[0].shape[1])
    make = partial(models.transformer, *sizes, width=32, depth=1)
    return at_batch_size(trials, Task(make, train, shown, test, 4 * trials[0].epochs, "vmap"))


def at_batch_size(trials: Sequence[Run], task: Task) -> list[Rows]:
    """The runs of one batch size, from the base runs' weights and in their order of data."""
    from undertow.train import Member, rules

    first = trials[0]
    settings = [hyper(trial) for trial in trials]
    batch_size = first.batch_size * first.factor
    # One shuffle for every batch size: a larger batch is the union of smaller ones.
    members = [
        (trial.seed, Member(trial.seed + 5_000 * (trial.scaling == "other order"), **values))
        for trial, (values, _) in zip(trials, settings, strict=True)
    ]
    rule = {"adam": rules.adam, "rmsprop": rules.rmsprop}[first.optimizer]
    more = {"batch_size": batch_size, "rule": rule, "path": task.path}
    ensemble = _ensemble(task.make, task.train, members, **more)
    steps = len(task.train[0]) * first.epochs // batch_size
    curve, noise = [], {}
    for reading in range(task.readings + 1):
        ensemble.train(steps * reading // task.readings - ensemble.steps_taken)
        if reading == task.readings // 2:
            base = [e for e in ensemble.alive if trials[e].scaling == "base"]
            noise = {e: noise_to_signal(ensemble.module(e), task) / first.batch_size for e in base}
        losses = ensemble.evaluate(*task.shown).loss.double().log()
        curve.append((first.epochs * reading / task.readings, losses.tolist()))
    tested = ensemble.evaluate(*task.test)
    facts = [
        {
            "diverged": e not in ensemble.alive,
            "clipped": clipped,
            "test_log_loss": float(tested.loss[e].log()),
            "accuracy": float(tested.accuracy[e]),
            "noise_to_signal": noise.get(e),
        }
        for e, (_, clipped) in enumerate(settings)
    ]
    return [
        [{"epoch": epoch, "log_loss": losses[e], **own} for epoch, losses in curve]
        for e, own in enumerate(facts)
    ]


def noise_to_signal(network: nn.Module, task: Task) -> float:
    """Tr Sigma / |G|^2 of single samples, G being the training data's own gradient."""
    from torch.nn import functional

    from undertow import measure
    from undertow.objective import Objective

    noise = measure.gradient_noise(Objective(network, functional.cross_entropy, task.train))
    return noise.trace / (noise.gradient_sqnorm + noise.trace / noise.num_samples)


def hyper(trial: Run) -> tuple[dict[str, Any], bool]:
    """The hyperparameters of a run, and whether beta1 had to be cut off at 0."""
    from undertow import predict

    own = {"lr": trial.lr, "beta1": trial.beta1, "beta2": trial.beta2, "eps": 1e-8}
    if trial.scaling in ("base", "other order", "none"):
        return own, False
    if trial.scaling == "learning rate only":
        return own | {"lr": trial.lr * math.sqrt(trial.factor)}, False
    clipped = trial.optimizer == "adam" and trial.factor * (1 - trial.beta1) >= 1
    kind: Any = "rmsprop" if clipped else trial.optimizer  # Adam without a mean is RMSprop
    if kind == "rmsprop":
        del own["beta1"]
    moved = predict.rescale(own, from_batch=1, to_batch=trial.factor, optimizer=kind).hyper
    # Linear is the rule in all but the power of the learning rate.
    linear = {"lr": trial.lr * trial.factor} if trial.scaling == "linear" else {}
    return {"beta1": 0.0, **moved, **linear}, clipped
