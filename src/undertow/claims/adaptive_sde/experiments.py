"""Runs at several batch sizes on images and text, SVAG on a network, and the oscillator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from undertow.claims import Networks, convolutional, language_models, perceptrons
from undertow.claims.adaptive_sde import (
    FACTOR,
    IMAGE_BATCH,
    SHORT_FACTORS,
    TEXT_BATCH,
    AdaptiveSde,
)
from undertow.data import Images, Text
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from undertow.train import NoisyOscillator
    from undertow.train.rules import Rule

# Three that scale the learning rate alike and the betas each in its own way, and two other rules.
AVERAGES = ("square root", "half-life", "learning rate only")
SCALINGS = (*AVERAGES, "linear", "none")
# What `predict.rescale` is asked for; linear is the rule in all but the learning rate.
RESCALED: dict[str, dict[str, Any]] = {
    "square root": {"betas": "sde"},
    "half-life": {"betas": "half-life"},
    "linear": {"betas": "sde", "rule": "linear"},
}
OPTIMIZERS = {"adam": "Adam", "rmsprop": "RMSprop"}
JUDGED = ("square root", "linear", "none")
# From v = 0 uncorrected, RMSprop has no SDE; with its bias corrected it is what the rule is for.
CORRECTED = {"optimizer": "corrected rmsprop"}
TEXTS: dict[str, dict[str, Any]] = {"text": {}, "text, RMSprop": CORRECTED}
LONG = {"lr": 3e-4, "beta1": 0.998, "beta2": 0.9995}
CNN = {"network": "CNN", "label_noise": 0.3, "lr": 3e-4}  # half as noisy as the perceptron's labels
UNJUDGED = {"adam from step 0": "Adam from step 0"}

Rows = list[dict[str, Any]]


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
    seed: int


@dataclass(frozen=True, kw_only=True)
class ImageRun(Run):
    """Of a network on images, of which a share has labels drawn at random."""

    images: Images
    label_noise: float
    network: str = "perceptron"
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
    text = []
    for name, own in TEXTS.items():
        cell = own | {"series": name, "epochs": knobs.text_epochs}
        make = partial(grid, TextRun, knobs, cell=[cell], seed=seeds(seed, knobs.text_seeds))
        # Base runs first, which are most of the cost.
        text += make(factor=[1], scaling=["base"])
        text += make(factor=knobs.text_factors, scaling=JUDGED if own else SCALINGS)
    return {
        "text": Experiment(text, on_text, ("scaling", "seed"), 64),
        "images": Experiment(_image_runs(knobs, seed), on_images, ("scaling", "seed"), 64),
        "limits": Experiment(_limits(knobs, seed), limit_curves, ("seed",), 64),
        "oscillators": Experiment(_oscillators(knobs, seed), oscillate),
    }


def _image_runs(knobs: AdaptiveSde, seed: int) -> list[ImageRun]:
    half = {"epochs": max(knobs.epochs // 2, 1)}
    clean, cnn = {"label_noise": 0.0}, CNN | {"epochs": max(knobs.epochs // 4, 1)}
    one = (FACTOR,)
    series: dict[str, tuple[dict[str, Any], Sequence[int], Sequence[str]]] = {
        "noisy labels": ({}, knobs.factors, SCALINGS),
        "clean labels": (clean, knobs.factors, SCALINGS),
        "RMSprop": ({"optimizer": "rmsprop"}, knobs.factors, SCALINGS),
        "clean labels, RMSprop": (clean | CORRECTED, one, JUDGED),
        "CNN": (cnn, one, JUDGED),
        "CNN, RMSprop": (cnn | CORRECTED, one, JUDGED),
        "long memory": (half | LONG, knobs.factors, AVERAGES),
        "short memory": (half | {"beta1": 0.9}, SHORT_FACTORS, AVERAGES),
    }
    runs = []
    for name, (own, factors, scalings) in series.items():
        cell = own | {"series": name}
        make = partial(grid, ImageRun, knobs, cell=[cell], seed=seeds(seed, knobs.seeds))
        runs += make(factor=[1], scaling=["base", "other order"])
        runs += make(factor=factors, scaling=scalings)
    return runs


def _limits(knobs: AdaptiveSde, seed: int) -> list[Limit]:
    *_, before, last = levels = knobs.limit_levels
    make = partial(grid, Limit, knobs, seed=seeds(seed, knobs.inits))
    clean = {"optimizer": OPTIMIZERS, "label_noise": [0.0]}
    found = make(**clean, weights=["svag"], level=levels[::-1])
    found += make(**clean, weights=["too weak"], level=[before])
    return found + make(optimizer=["adam"], weights=["svag"], level=[last, levels[0]])


def _oscillators(knobs: AdaptiveSde, seed: int) -> list[Oscillator]:
    make = partial(grid, Oscillator, knobs, seed=seeds(seed, knobs.blocks))
    # The finer, the smaller is the error; the orders are those of the three finest.
    finer = [{"level": level, "paths": knobs.paths * level} for level in knobs.levels[::-1]]
    made = make(process=OPTIMIZERS, weights=["svag"], cell=finer)
    made += make(process=UNJUDGED, weights=["svag"], level=knobs.levels[::-1])
    return made + make(process=OPTIMIZERS, weights=["too weak"], level=knobs.levels[-1:])


def rule_of(optimizer: str) -> Rule:
    """Adam, PyTorch's RMSprop, or RMSprop with its bias corrected.

    From v = 0 uncorrected, noise over sqrt(v) ~ sqrt(t) has a variance of the integral of dt / t.
    """
    from undertow.train import rules

    known = {"adam": rules.adam, "rmsprop": rules.rmsprop}
    return known.get(optimizer, rules.adaptive(mean=False))


def noisier(rule: Rule, level: int, weights: str) -> Rule:
    """SVAG; or with noise too weak, whose variance is l instead of l^2."""
    from undertow.train import rules

    return rules.svag(rule, level, variance=level if weights == "too weak" else None)


def oscillator(process: str) -> NoisyOscillator:
    """Coarse, with sigma lr = 1, (1 - beta) / lr^2 = 2 and eps = sigma / 10."""
    from undertow.train import NoisyOscillator, rules

    rule = rules.rmsprop if process == "rmsprop" else rules.adam
    hyper, warm = rules.Hyper(0.5, beta1=0.5, beta2=0.5, eps=0.2), process in OPTIMIZERS
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
    from undertow.train import Member

    first = trials[0]
    own = rule_of("adam" if first.optimizer == "adam" else "corrected rmsprop")
    rule = noisier(own, first.level, first.weights)
    # With replacement: batches of one shuffle are not independent, and SVAG would see the same
    # shuffle in a shorter time.
    fixed: dict[str, Any] = {"lr": 1e-2, "beta1": 0.8, "beta2": 0.9, "order": "replacement"}
    starts = [trial.seed for trial in trials for _ in range(first.replicas)]
    members = [
        Member(seed * 1_000 + place % first.replicas, **fixed) for place, seed in enumerate(starts)
    ]
    own_seeds: dict[str, Any] = {"init_seeds": starts, "data_seeds": starts}
    found = of_images(first, 32)(members, batch_size=4, rule=rule, **own_seeds)
    losses = found.losses_at([round(time * rule.steps_per_step) for time in times(first)])
    curves = losses.double().log().unflatten(1, (len(trials), -1)).unbind(1)
    return [
        rows_of({"time": times(first), "log_loss": own.nanmean(1), "lost": own.isnan().sum(1)})
        for own in curves
    ]


def of_images(trial: Limit | ImageRun, hidden: int) -> Callable[..., Networks]:
    """Perceptrons on images, of which a share has labels drawn at random."""
    noisy: dict[str, Any] = {"label_noise": trial.label_noise, "path": "fused"}
    return partial(perceptrons, trial.images, (hidden,), **noisy)


def on_images(trials: Sequence[ImageRun]) -> list[Rows]:
    """A perceptron, or a convolutional network of 2,000 weights, read once an epoch."""
    first = trials[0]
    kind = of_images(first, 64)
    if first.network == "CNN":
        kind = partial(convolutional, first.images, (8, 16), label_noise=first.label_noise)
    return at_batch_size(trials, kind, first.epochs)


def on_text(trials: Sequence[TextRun]) -> list[Rows]:
    """A small causal transformer, read four times an epoch."""
    # 512 windows are enough to tell curves apart.
    kind = partial(language_models, trials[0].text)
    return at_batch_size(trials, kind, 4 * trials[0].epochs, shown=512)


def at_batch_size(
    trials: Sequence[Run],
    kind: Callable[..., Networks],
    readings: int,
    shown: int | None = None,
) -> list[Rows]:
    """The runs of one batch size, from the base runs' weights and in their order of data.

    A curve has so many readings after the first, on so many samples.
    """
    import torch

    from undertow import measure
    from undertow.train import Member

    first = trials[0]
    batch_size, rule = first.batch_size * first.factor, rule_of(first.optimizer)
    settings, clipped = zip(*map(hyper, trials), strict=True)
    # One shuffle for every batch size: a larger batch is the union of smaller ones.
    members = [
        Member(trial.seed + 5_000 * (trial.scaling == "other order"), **values)
        for trial, values in zip(trials, settings, strict=True)
    ]
    starts = [trial.seed for trial in trials]
    own_seeds: dict[str, Any] = {"init_seeds": starts, "data_seeds": starts}
    found = kind(members, batch_size=batch_size, rule=rule, **own_seeds)
    epochs = [first.epochs * reading / readings for reading in range(readings + 1)]
    steps = found.train.shape[1] * first.epochs // batch_size
    at = [steps * reading // readings for reading in range(readings + 1)]
    half = readings // 2 + 1
    begun = found.losses_at(at[:half], shown)
    noise = found.measured(
        lambda own: measure.gradient_noise(own).noise_to_signal / first.batch_size,
        only=[run for run, trial in enumerate(trials) if trial.scaling == "base"],
    )
    losses = torch.cat([begun, found.losses_at(at[half:], shown)]).double().log()
    tested = found.tested()
    facts = {
        "diverged": found.ensemble.diverged,
        "clipped": clipped,
        "test_log_loss": tested.loss.log(),
        "accuracy": tested.accuracy,
        "noise_to_signal": noise,
    }
    curves = (rows_of({"epoch": epochs, "log_loss": own}) for own in losses.unbind(1))
    return [[row | own for row in curve] for curve, own in zip(curves, rows_of(facts), strict=True)]


def hyper(trial: Run) -> tuple[dict[str, Any], bool]:
    """The hyperparameters of a run, and whether beta1 had to be cut off at 0."""
    from undertow import predict

    own = {"lr": trial.lr, "beta1": trial.beta1, "beta2": trial.beta2, "eps": 1e-8}
    asked = RESCALED.get(trial.scaling)
    if asked is None:
        power = 0.5 if trial.scaling == "learning rate only" else 0.0
        return own | {"lr": trial.lr * trial.factor**power}, False
    adam, ends = trial.optimizer == "adam", trial.factor * (1 - trial.beta1) >= 1
    clipped = adam and ends and asked["betas"] == "sde"
    # Adam without a mean is RMSprop.
    kind: Any = "adam" if adam and not clipped else "rmsprop"
    if kind == "rmsprop":
        del own["beta1"]
    moved = predict.rescale(own, from_batch=1, to_batch=trial.factor, optimizer=kind, **asked)
    return {"beta1": 0.0, **moved.hyper}, clipped
