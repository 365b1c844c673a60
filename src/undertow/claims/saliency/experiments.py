"""Networks and linear classifiers, their masks and other attributions, and both numbers of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
NOISE = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)  # its share in the order of a mask's pixels
FINE, FINE_TV = "fine masks", "fine masks, TV"
PLAIN, COARSE = "coarse masks, no TV", "coarse masks"
DEARER, DOUBLE = "fine masks, dearer TV", "fine masks, double softmax"
RANDOM, NOISY = "random map", "fine masks and noise"
BLIND, ALIEN = "predicted label's masks", "another label's masks"
UNTAUGHT = "untrained network's masks"
SMOOTH = "SmoothGrad"
GRADIENTS = {  # what each is called in `measure.saliency`
    "gradient x input": "gradient_x_input",
    "integrated gradients": "integrated_gradients",
    "absolute gradient": "absolute_gradient",
    SMOOTH: "smooth_grad",
}
# Purposes of a seed's streams; the members' own are decided by the seed itself.
DRAWN, DESCENT, UNTRAINED, ORDERS, SCORING, WRONG = range(8, 14)

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

    model: Literal["linear"]
    images: Images
    train_steps: int
    test_size: int | None
    sides: tuple[int, ...]
    seed: int


def experiments(knobs: Saliency, seed: int) -> dict[str, Experiment]:
    """On either data set: the networks' masks, those of linear ones, and the evidence in blocks."""
    own = seeds(seed, knobs.seeds)
    every = [replace(knobs.images, data=name) for name in knobs.data]
    kinds = "convolutional", "linear"
    explained = grid(Explained, knobs, model=kinds, images=every, seed=own)
    evidence = grid(Evidence, knobs, images=every, model=["linear"], seed=own)
    return {
        "maps": Experiment(explained, explain, ("seed",), group_size=6),
        "evidence": Experiment(evidence, collect, ("seed",)),
    }


def explain(trials: Sequence[Explained]) -> list[Rows]:
    """Classifiers trained side by side, and a record for each method in each of them."""
    return each(trials, scores)


def collect(trials: Sequence[Evidence]) -> list[Rows]:
    """What the best masks of blocks collect on held-out images, and what is known beforehand."""
    return each(trials, blocks)


def each(trials: Sequence[Any], read: Callable[[Networks, int, Any], Rows]) -> list[Rows]:
    """What is read of classifiers that are trained side by side."""
    from undertow import models
    from undertow.train import Member, rules

    def linear(shape: tuple[int, int, int], classes: int) -> Any:
        sizes = int(np.prod(shape)), classes
        return lambda generator: models.mlp(sizes, generator=generator)

    first, members = trials[0], [Member(lr=LR, seed=trial.seed) for trial in trials]
    more = {"rule": rules.adam, "batch_size": BATCH, "test_size": first.test_size}
    if first.model == "convolutional":
        found = convolutional(first.images, first.channels, members, **more)
    else:
        found = networks(first.images, linear, members, flat=False, **more)
    found.ensemble.train(first.train_steps)
    alike = zip(trials, found.ensemble.diverged, strict=True)
    return [
        [{"diverged": True}] if diverged else read(found, place, trial)
        for place, (trial, diverged) in enumerate(alike)
    ]


def scores(found: Networks, place: int, trial: Explained) -> Rows:
    """Both numbers of every method in one network, on the predicted and some wrong labels."""
    import torch

    from undertow.measure import saliency

    model, (data, _) = found.ensemble.module(place), found.data_of(place)
    generator, rows = stream(trial.seed, DRAWN), found.held_out[place]
    rows = rows[torch.randperm(len(rows), generator=generator)[: trial.explained]]
    inputs = found.pool[0][rows]
    with torch.no_grad():
        predicted = model(inputs).argmax(1)
    labels = with_wrong(predicted, found.num_classes, trial.wrong, generator)
    masks = learned(model, inputs, labels, data, trial)
    maps: dict[str, Any] = dict(masks)
    if trial.model == "convolutional":
        # The masks of the predicted label, and of the next one among those that are scored.
        maps |= {BLIND: masks[COARSE][:, 0], ALIEN: masks[COARSE].roll(1, 1)}
        maps |= {UNTAUGHT: untaught(found, inputs, predicted, data, trial)}
        maps |= {name: getattr(saliency, function) for name, function in GRADIENTS.items()}
    noise = torch.rand(masks[FINE].shape, generator=stream(trial.seed, ORDERS))
    for share in NOISE:
        maps[f"{share:g}"] = (1 - share) * ranks(masks[FINE]) + share * noise
    scoring = stream(trial.seed, SCORING)
    return records(
        saliency.evaluate(model, inputs, maps, labels, background=0.0, generator=scoring)
    )


def with_wrong(
    predicted: Int64[Tensor, " n"], classes: int, wrong: int, generator: Any
) -> Int64[Tensor, "n labels"]:
    """Each predicted label, followed by some others that are drawn."""
    import torch

    drawn = torch.rand(len(predicted), classes - 1, generator=generator).argsort(1)[:, :wrong]
    return torch.cat([predicted[:, None], (predicted[:, None] + 1 + drawn) % classes], 1)


def settings(trial: Explained) -> dict[str, dict[str, Any]]:
    """How masks are learned: coarse or fine, with total variation or without; by which loss."""
    fine: dict[str, Any] = {"upsample": 1, "total_variation": 0.0}
    coarse, priced = {"upsample": trial.upsample}, {"total_variation": trial.total_variation}
    found = {FINE: fine, PLAIN: fine | coarse}
    if trial.model == "convolutional":
        found |= {FINE_TV: fine | priced, COARSE: coarse | priced}
        found |= {DEARER: fine | {"total_variation": trial.dearer}}
        found |= {DOUBLE: fine | {"fit": "double softmax"}}
    return found


def learned(
    model: nn.Module, inputs: Tensor, labels: Tensor, data: Tensor, trial: Explained, *only: str
) -> dict[str, Float[Tensor, "n labels height width"]]:
    """Masks of each kind, or of some; all go down over the same backgrounds."""
    from undertow.measure import saliency

    shared = {"data": data, "steps": trial.mask_steps}
    found = {}
    for name, own in settings(trial).items():
        if not only or name in only:
            own |= {"generator": stream(trial.seed, DESCENT)} | shared
            found[name] = saliency.certify(model, inputs, labels, **own).attributions
    return found


def untaught(
    found: Networks, inputs: Tensor, predicted: Tensor, data: Tensor, trial: Explained
) -> Float[Tensor, "n height width"]:
    """Masks of a network that has learned nothing, of the label that the trained one predicts."""
    from undertow import models

    _, channels, height, width = inputs.shape
    model = models.conv_net(
        (channels, height, width),
        trial.channels,
        found.num_classes,
        generator=stream(trial.seed, UNTRAINED),
    )
    return learned(model, inputs, predicted, data, trial, COARSE)[COARSE][:, 0]


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
    line = {0.0: found[FINE]} | {share: found.pop(f"{share:g}") for share in NOISE}
    rows: list[tuple[Any, ...]] = [
        (name, None, *own, completeness_at(own[1], line.values())) for name, own in found.items()
    ]
    rows += [(RANDOM if q == 1 else NOISY, q, *own, None) for q, own in line.items()]
    names = "method", "share", "completeness", "soundness", "noisy"
    return [{"diverged": False} | dict(zip(names, row, strict=True)) for row in rows]


def completeness_at(soundness: float, line: Any) -> float | None:
    """That of fine masks with as much noise as makes them so sound; None beyond pure noise."""
    complete, sound = np.array(list(line)).T
    order = np.maximum.accumulate(sound)
    if not order[0] <= soundness <= order[-1]:
        return None
    return float(np.interp(soundness, order, complete))


# ---- evidence in blocks


def blocks(found: Networks, place: int, trial: Evidence) -> Rows:
    """A record for each side: evidence for a wrong label and against it, measured and predicted."""
    from undertow import predict

    model, generator = found.ensemble.module(place), stream(trial.seed, WRONG)
    seen = attributions(model, found.pool[0][found.held_out[place]], found.num_classes, generator)
    known = attributions(model, found.data_of(place)[0], found.num_classes, generator)
    flat = known.reshape(len(known), -1)
    covariance = np.cov(flat.T).reshape(known.shape[1:] * 2)
    rows: list[dict[str, Any]] = []
    for side in trial.sides:
        sums = seen
        for axis, length in enumerate(seen.shape[1:], start=1):
            sums = np.add.reduceat(sums, np.arange(0, length, side), axis)
        row = {"side": side, "wrong": sums.clip(0).sum((1, 2)).mean()}
        row["own"] = row["wrong"] - sums.sum((1, 2)).mean()
        row["wrong_predicted"] = predict.block_evidence(known.mean(0), covariance, side)
        rows.append({"diverged": False} | row)
    for row in rows:
        for name in ("wrong", "wrong_predicted"):
            row[f"{name}_left"] = row[name] / rows[0][name]
    return rows


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
