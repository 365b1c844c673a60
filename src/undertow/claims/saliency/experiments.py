"""Networks and linear classifiers, their masks and other attributions, and both numbers of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from undertow.claims import Networks, convolutional, networks, stream
from undertow.claims.saliency import Saliency
from undertow.data import Images
from undertow.lab import Experiment, grid, seeds

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor, nn

LR, BATCH = 2e-3, 64  # of Adam, which trains
NOISE = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # shares of noise in the order of a mask's pixels
FINE, FINE_TV = "fine masks", "fine masks, TV"
PLAIN, COARSE = "coarse masks, no TV", "coarse masks"
DEARER, DOUBLE = "fine masks, dearer TV", "fine masks, double softmax"
RANDOM, NOISY = "random map", "fine masks and noise"
BLIND, ALIEN = "predicted label's masks", "another label's masks"
UNTAUGHT = "untrained network's masks"
SMOOTH = "SmoothGrad"
GRADIENTS = "gradient x input", "integrated gradients", "absolute gradient", SMOOTH
# Purposes of a seed's streams; the members' own are decided by the seed itself.
DRAWN, DESCENT, UNTRAINED, ORDERS, SCORING, WRONG = range(100, 106)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Explained:
    """A classifier on its own draw of images, some of which are explained.

    `model` is a convolutional network, or linear: a softmax of linear functions of the pixels.
    """

    model: Literal["convolutional", "linear"]
    images: Images
    channels: tuple[int, ...]
    train_steps: int
    test_size: int | None
    explained: int
    wrong: int
    mask_steps: int
    upsample: int
    total_variation: float
    dearer: float
    seed: int


@dataclass(frozen=True)
class Evidence:
    """A linear softmax, whose attributions add up: what blocks collect for wrong labels."""

    images: Images
    train_steps: int
    test_size: int | None
    sides: tuple[int, ...]
    seed: int


def experiments(knobs: Saliency, seed: int) -> dict[str, Experiment]:
    """On either data set: the networks' masks, those of linear ones, and the evidence in blocks."""
    own = seeds(seed, knobs.seeds)
    every = [replace(knobs.images, data=name) for name in knobs.data]
    kinds = ("convolutional", "linear")
    explained = grid(Explained, knobs, model=kinds, images=every, seed=own)
    evidence = grid(Evidence, knobs, images=every, seed=own)
    return {
        "maps": Experiment(explained, explain, ("seed",), group_size=3),
        "evidence": Experiment(evidence, collect, ("seed",)),
    }


def explain(trials: Sequence[Explained]) -> list[Rows]:
    """Classifiers trained side by side, and a record for each method in each of them."""
    first = trials[0]
    options: dict[str, Any] = {"test_size": first.test_size}
    if first.model == "convolutional":
        options["channels"] = first.channels
    found = trained(first.images, [trial.seed for trial in trials], first.train_steps, **options)
    alike = zip(trials, found.ensemble.diverged, strict=True)
    return [
        [{"diverged": True}] if diverged else scores(found, place, trial)
        for place, (trial, diverged) in enumerate(alike)
    ]


def trained(
    images: Images, members: Sequence[int], steps: int, *, channels: Sequence[int] = (), **more: Any
) -> Networks:
    """Convolutional networks, or without channels linear ones, after some steps of Adam."""
    from undertow import models
    from undertow.train import Member, rules

    def linear(shape: tuple[int, int, int], classes: int) -> Any:
        sizes = int(np.prod(shape)), classes
        return lambda generator: models.mlp(sizes, generator=generator)

    own = [Member(lr=LR, seed=seed) for seed in members]
    more |= {"rule": rules.adam, "batch_size": BATCH}
    made = (
        convolutional(images, channels, own, **more)
        if channels
        else networks(images, linear, own, flat=False, **more)
    )
    made.ensemble.train(steps)
    return made


def scores(found: Networks, place: int, trial: Explained) -> Rows:
    """Both numbers of every method in one network, on the predicted and some wrong labels."""
    import torch

    from undertow.measure import saliency

    model = found.ensemble.module(place)
    data, _ = found.data_of(place)
    generator = stream(trial.seed, DRAWN)
    held_out = found.held_out[place]
    drawn = torch.randperm(len(held_out), generator=generator)[: trial.explained]
    inputs = found.pool[0][held_out[drawn]]
    with torch.no_grad():
        predicted = model(inputs).argmax(1)
    labels = with_wrong(predicted, found.num_classes, trial.wrong, generator)
    names = (FINE, PLAIN) if trial.model == "linear" else ()
    masks = learned(model, inputs, labels, data, trial, names)
    maps: dict[str, Any] = dict(masks)
    if trial.model == "convolutional":
        maps |= others(found, inputs, predicted, data, trial)
        # The masks of the predicted label, and of the next one among those that are scored.
        maps[BLIND] = masks[COARSE][:, 0]
        maps[ALIEN] = masks[COARSE].roll(1, 1)
    noise = torch.rand(masks[FINE].shape, generator=stream(trial.seed, ORDERS))
    for share in (*NOISE, 1.0):
        maps[f"{share:g}"] = (1 - share) * ranks(masks[FINE]) + share * noise
    judged = saliency.evaluate(
        model, inputs, maps, labels, background=0.0, generator=stream(trial.seed, SCORING)
    )
    return records(judged)


def with_wrong(
    predicted: Int64[Tensor, " n"], classes: int, wrong: int, generator: Any
) -> Int64[Tensor, "n labels"]:
    """Each predicted label, followed by some others that are drawn."""
    import torch

    drawn = torch.rand(len(predicted), classes - 1, generator=generator).argsort(1)[:, :wrong]
    return torch.cat([predicted[:, None], (predicted[:, None] + 1 + drawn) % classes], 1)


def settings(trial: Explained) -> dict[str, dict[str, Any]]:
    """How each kind of masks is learned: coarse or fine, with total variation or without."""
    without: dict[str, Any] = {"upsample": 1, "total_variation": 0.0}
    coarse = {"upsample": trial.upsample}
    priced = {"total_variation": trial.total_variation}
    return {
        FINE: without,
        PLAIN: without | coarse,
        FINE_TV: without | priced,
        COARSE: without | coarse | priced,
        DEARER: without | {"total_variation": trial.dearer},
        DOUBLE: without | {"fit": "double softmax"},
    }


def learned(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    data: Tensor,
    trial: Explained,
    names: Sequence[str] = (),
) -> dict[str, Float[Tensor, "n labels height width"]]:
    """Masks of each kind; all go down over the same backgrounds."""
    from undertow.measure import saliency

    found = {}
    every = settings(trial)
    for name in names or every:
        generator = stream(trial.seed, DESCENT)
        made = saliency.certify(
            model,
            inputs,
            labels,
            data=data,
            steps=trial.mask_steps,
            generator=generator,
            **every[name],
        )
        found[name] = made.attributions
    return found


def others(
    found: Networks, inputs: Tensor, predicted: Tensor, data: Tensor, trial: Explained
) -> dict[str, Any]:
    """Methods that are compared with, and masks of a network that has learned nothing."""
    from undertow import models
    from undertow.measure import saliency

    untrained = models.conv_net(
        (inputs.shape[1], inputs.shape[2], inputs.shape[3]),
        trial.channels,
        found.num_classes,
        generator=stream(trial.seed, UNTRAINED),
    )
    masks = learned(untrained, inputs, predicted, data, trial, (COARSE,))[COARSE]
    methods: tuple[Any, ...] = (
        saliency.gradient_x_input,
        saliency.integrated_gradients,
        saliency.absolute_gradient,
        saliency.smooth_grad,
    )
    return dict(zip(GRADIENTS, methods, strict=True)) | {UNTAUGHT: masks[:, 0]}


def ranks(maps: Float[Tensor, "*maps height width"]) -> Tensor:
    """The order of a map's pixels, from 0 to 1."""
    flat = maps.flatten(-2)
    order = flat.argsort(-1).argsort(-1).double() / max(flat.shape[-1] - 1, 1)
    return order.view_as(maps)


def records(judged: Any) -> Rows:
    """A record for each method; `noisy`: the completeness of noisy fine masks as sound as it."""
    found = {}
    for name, curves in judged.curves.items():
        (complete,), (sound,) = (
            score.per_network(which)
            for score, which in ((curves.completeness, "own"), (curves.soundness, "others"))
        )
        found[name] = complete, sound
    shares = {"0": 0.0} | {f"{share:g}": share for share in (*NOISE, 1.0)}
    line = {share: found[FINE if share == 0 else name] for name, share in shares.items()}
    rows = [
        {"method": name, "share": None, "completeness": own[0], "soundness": own[1]}
        | {"noisy": completeness_at(own[1], line.values())}
        for name, own in found.items()
        if name not in shares
    ]
    rows += [
        {"method": RANDOM if share == 1 else NOISY, "share": share}
        | {"completeness": complete, "soundness": sound, "noisy": None}
        for share, (complete, sound) in line.items()
    ]
    return [{"diverged": False} | row for row in rows]


def completeness_at(soundness: float, line: Any) -> float | None:
    """That of fine masks with as much noise as makes them so sound; None beyond pure noise."""
    complete, sound = np.array(list(line)).T
    order = np.maximum.accumulate(sound)
    if not order[0] <= soundness <= order[-1]:
        return None
    return float(np.interp(soundness, order, complete))


# ---- evidence in blocks


def collect(trials: Sequence[Evidence]) -> list[Rows]:
    """What the best masks of blocks collect on held-out images, and what is known beforehand."""
    first = trials[0]
    found = trained(
        first.images, [trial.seed for trial in trials], first.train_steps, test_size=first.test_size
    )
    alike = zip(trials, found.ensemble.diverged, strict=True)
    return [
        [{"diverged": True}] if diverged else blocks(found, place, trial)
        for place, (trial, diverged) in enumerate(alike)
    ]


def blocks(found: Networks, place: int, trial: Evidence) -> Rows:
    """A record for each side: evidence for a wrong label and against it, measured and predicted."""
    from undertow import predict

    model, generator = found.ensemble.module(place), stream(trial.seed, WRONG)
    seen = attributions(model, found.pool[0][found.held_out[place]], found.num_classes, generator)
    known = attributions(model, found.data_of(place)[0], found.num_classes, generator)
    flat = known.reshape(len(known), -1)
    covariance = np.cov(flat.T).reshape(known.shape[1:] * 2)
    rows = []
    for side in trial.sides:
        cuts = (np.arange(0, length, side) for length in seen.shape[1:])
        sums = seen
        for axis, starts in enumerate(cuts, start=1):
            sums = np.add.reduceat(sums, starts, axis)
        rows.append(
            {
                "side": side,
                "wrong": sums.clip(0).sum((1, 2)).mean(),
                "own": (-sums).clip(0).sum((1, 2)).mean(),
                "wrong_predicted": predict.block_evidence(known.mean(0), covariance, side),
                "own_predicted": predict.block_evidence(-known.mean(0), covariance, side),
            }
        )
    first = rows[0]
    return [
        {"diverged": False}
        | row
        | {f"{name}_left": row[name] / first[name] for name in ("wrong", "wrong_predicted")}
        for row in rows
    ]


def attributions(
    model: nn.Module, inputs: Tensor, classes: int, generator: Any
) -> Float[np.ndarray, "n height width"]:
    """(w_a - w_b) x of a wrong label a that is drawn, over the predicted one b; of all channels."""
    import torch

    with torch.no_grad():
        predicted = model(inputs).argmax(1)
        wrong = with_wrong(predicted, classes, 1, generator)[:, 1]
        weights = next(parameter for parameter in model.parameters() if parameter.ndim == 2)
        apart = (weights[wrong] - weights[predicted]).view_as(inputs)
        return (apart * inputs).sum(1).double().numpy()
