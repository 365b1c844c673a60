"""Convolutional networks that go on from one start: with SGD, with Local SGD, and with QSR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undertow.claims.local_sgd_flatness import LocalSGDFlatness
from undertow.data import Images
from undertow.lab import rows_of

if TYPE_CHECKING:
    from torch import nn

    from undertow.data import Draws
    from undertow.train import Ensemble, Member

_FALLS = (0.7, 0.25)  # where the start lowers its rate, in parts of its steps, and by what
_QUIET = 0.05  # relative standard error of a Hessian's trace

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Convolution:
    """A convolutional network that goes on from where SGD has left it, on the same samples.

    `method` is sgd (one worker, all the batch), local (a fixed period) or qsr. `noise` is flips of
    labels, or smooth: targets that are their mean. `falling` rates go to zero along a cosine.
    """

    method: str
    lr: float
    period: int
    images: Images
    channels: int
    num_workers: int
    local_batch: int
    flips: float
    alpha: float
    first_lr: float
    first_steps: int
    steps: int
    few_steps: int
    seed: int
    noise: str = "flips"
    falling: bool = False


def falling_rates(knobs: LocalSGDFlatness) -> list[float]:
    """The learning rates that fall, one for each step."""
    import numpy as np

    from undertow.train import schedules

    return (knobs.falling_lr * schedules.Cosine(knobs.steps)(np.arange(knobs.steps))).tolist()


def flatten(trials: Sequence[Convolution]) -> list[Rows]:
    """Hessian's trace and test accuracy on the way from a common start, a record a reading.

    SGD takes the whole batch in one worker's step, which is what workers averaged at each step do.
    """
    first, begun = trials[0], begin({trial.seed: trial for trial in trials})
    rows: list[Rows] = [[] for _ in trials]
    kinds: dict[tuple[bool, str], list[int]] = {}
    for number, trial in enumerate(trials):
        kinds.setdefault((trial.method == "sgd", trial.noise), []).append(number)
    for (alone, noise), numbers in kinds.items():
        own = [trials[number] for number in numbers]
        modules = [begun[trial.seed] for trial in own]
        size = first.local_batch * (first.num_workers if alone else 1)
        found = Run.of(own, modules, list(map(member, own)), noise, size)
        for step in found.ensemble.read_at({first.few_steps, first.steps // 3, first.steps}):
            facts = found.read(own) | {"step": step}
            for number, row in zip(numbers, rows_of(facts), strict=True):
                rows[number].append(row)
    return rows


def begin(trials: Mapping[int, Convolution]) -> dict[int, nn.Module]:
    """Networks that SGD has trained on the labels' means, without their noise, a seed each."""
    import torch

    from undertow import models
    from undertow.train import Member, schedules

    every = list(trials.values())
    first, (at, by) = every[0], _FALLS
    falling = schedules.StepDecay((round(at * first.first_steps),), by)
    members = [
        Member(seed, first.first_lr, schedule=falling, order="replacement") for seed in trials
    ]
    pool = first.images.load()
    shape, classes = tuple(pool.train_inputs.shape[1:]), pool.num_classes
    modules = [
        models.conv_net(
            shape,
            (first.channels, 2 * first.channels),
            classes,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in trials
    ]
    size = first.local_batch * first.num_workers
    found = Run.of(every, modules, members, "smooth", size)
    found.ensemble.train(first.first_steps)
    return {seed: found.ensemble.module(number) for number, seed in enumerate(trials)}


def member(trial: Convolution) -> Member:
    """One that goes on, with batches of its own."""
    from undertow.train import Member, Rounds, Workers, schedules

    rounds = Rounds(trial.period, total_steps=trial.steps)
    if trial.method == "qsr":
        rounds = Rounds("qsr", trial.alpha, trial.period, total_steps=trial.steps)
    return Member(
        2**40 + trial.seed,
        trial.lr,
        schedule=schedules.Cosine(trial.steps) if trial.falling else None,
        order="replacement",
        workers=None if trial.method == "sgd" else Workers(trial.num_workers, rounds),
    )


@dataclass(frozen=True)
class Run:
    """Networks side by side, each on images of its own."""

    ensemble: Ensemble
    draws: Draws

    @classmethod
    def of(
        cls,
        trials: Sequence[Convolution],
        modules: Sequence[nn.Module],
        members: Sequence[Member],
        noise: str,
        batch_size: int,
    ) -> Run:
        """Of trials on as many images, with labels that are flipped or that are smooth."""
        from torch import nn

        from undertow.train import Ensemble, rules

        first = trials[0]
        draws = first.images.draw([trial.seed for trial in trials])
        smooth, rule = nn.CrossEntropyLoss(label_smoothing=first.flips), rules.sgd
        if noise == "flips":
            rule = rules.label_noise(
                rule, flip_probability=first.flips, num_classes=draws.num_classes
            )
        ensemble = Ensemble(
            modules,
            nn.CrossEntropyLoss() if noise == "flips" else smooth,
            (draws.inputs, draws.targets),
            members,
            batch_size=batch_size,
            rule=rule,
            path="vmap",
            samples=draws.train,
        )
        return cls(ensemble, draws)

    def read(self, trials: Sequence[Convolution]) -> dict[str, Any]:
        """The Hessian's trace of the mean loss over flips, which smooth labels give, and the test.

        Of the workers' average; None where it has diverged.
        """
        import torch
        from torch import nn

        from undertow import measure
        from undertow.objective import Objective

        first, draws, ensemble = trials[0], self.draws, self.ensemble
        outputs = ensemble.predict(draws.inputs, samples=draws.test)
        targets = draws.targets[draws.test]
        right = (outputs.argmax(2) == targets).double().mean(1)
        losses = torch.nn.functional.cross_entropy(
            outputs.transpose(1, 2), targets, reduction="none"
        ).mean(1)
        smooth = nn.CrossEntropyLoss(label_smoothing=first.flips)
        traces: list[float | None] = [None] * len(trials)
        for number in ensemble.alive:
            rows = draws.train[number]
            data = draws.inputs[rows], draws.targets[rows]
            objective = Objective(ensemble.module(number), smooth, data)
            traces[number] = measure.hessian_trace(objective, _QUIET).value
        share = [
            rounds / ensemble.steps_taken if trial.method != "sgd" else 1.0
            for rounds, trial in zip(ensemble.rounds_taken, trials, strict=True)
        ]
        facts = {"diverged": ensemble.diverged, "trace": traces, "share": share}
        return facts | {"accuracy": right, "test_loss": losses}
