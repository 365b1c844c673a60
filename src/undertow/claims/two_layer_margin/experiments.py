"""Networks on mirrored samples, with one more sample or without mirror images, and on pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undertow import predict
from undertow.claims.two_layer_margin import TwoLayerMargin
from undertow.data import Images
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from undertow.train.flows import TwoLayerPath

ESCAPED = -0.7  # log loss of runs that are about to leave zero, where it is -log 2
EARLY = 1e3  # -log loss at which what one more sample does is read
_PER_DECADE = 4  # readings of -log loss, from 10 on
_SHIFT = 0.3  # of unit samples along the teacher, so that there is a margin
_SUBOPTIMAL = 0.9  # of the linear network's margin: at most that is one neuron's, half the data
_APART = math.cos(math.radians(10))  # and its direction is so far from the SVM's
_DRAWS = 20  # of samples, until one of their halves is such as it must be
_SLOWER = 0.85  # growth of small neurons of the other sign over that of its own, at most
_ASIDE = 256  # points at which it is read how much of a network is not linear

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Network:
    """One network on one set of samples.

    `data`: mirrored; hinted, with one more sample along the SVM's direction, positive and `hint`
    long; halved, that sample and one of each mirrored pair; pictures, of two classes, mirrored.
    `start` is normal, or one-sign, with all a_k above ||w_k||.
    """

    data: str
    neurons: int
    scale: float
    slope: float
    points: int
    features: int
    hint: float
    depth: float
    images: Images
    seed: int
    start: str = "normal"


@dataclass(frozen=True)
class Starts:
    """So many networks of few neurons on one set of mirrored samples."""

    neurons: int
    starts: int
    scale: float
    slope: float
    points: int
    features: int
    depth: float
    seed: int


def experiments(knobs: TwoLayerMargin, seed: int) -> dict[str, Experiment]:
    """Widths and scales on mirrored data, manipulated data, pictures, and starts that fail."""
    own = seeds(seed, knobs.seeds)
    smallest, largest = knobs.scales[0], knobs.scales[-1]
    usual = {"data": "mirrored", "scale": knobs.scale, "neurons": knobs.width}
    cells = [usual | {"neurons": width} for width in knobs.widths]
    cells += [usual | {"scale": scale} for scale in knobs.scales]
    cells.append(usual | {"start": "one-sign"})
    changed = [usual | {"data": "hinted", "scale": scale} for scale in knobs.scales]
    halved = usual | {"data": "halved", "depth": EARLY}
    changed += [halved | {"scale": scale} for scale in (smallest, largest)]
    pictures = usual | {"data": "pictures", "points": knobs.pictures, "features": 0}
    shown = [pictures, pictures | {"start": "one-sign"}]
    together = ("scale", "start", "seed")
    counted = grid(Starts, knobs, neurons=knobs.few, seed=own)

    def networks(cells: list[dict[str, Any]], group_size: int) -> Experiment:
        trials = grid(Network, knobs, cell=cells, seed=own)
        return Experiment(trials, follow, together, group_size=group_size)

    return {
        "symmetric": networks(cells, 48),
        "manipulated": networks(changed, 48),
        "pictures": networks(shown, 12),
        "starts": Experiment(counted, count, ("seed",), group_size=6),
    }


def log_losses(depth: float) -> list[float]:
    """Where runs are read."""
    count = math.floor(_PER_DECADE * (math.log10(depth) - 1) + 1e-9)
    return [ESCAPED, *(-(10.0 ** (1 + step / _PER_DECADE)) for step in range(count + 1))]


def follow(trials: Sequence[Network]) -> list[Rows]:
    """Networks of one width on as many samples each, side by side; a record for every reading."""
    import torch

    from undertow.train import flows

    each = zip(*map(made, trials), strict=True)
    inputs, labels, weights, outputs, aside = map(torch.stack, each)
    slope = trials[0].slope
    known = [
        predict.two_layer_margin(x.numpy(), y.numpy(), slope=slope)
        for x, y in zip(inputs, labels, strict=True)
    ]
    levels = log_losses(trials[0].depth)
    path = flows.two_layer_flow(
        inputs, labels, weights, outputs, slope=slope, log_losses=levels, max_steps=100_000
    )
    facts = {
        "diverged": ~path.reached,
        "log_loss": path.log_losses,
        "log_time": path.log_times,
        "rank_ratio": path.rank_ratios,
        "other": path.shares[..., 1],
        "bend": _even_share(path, aside),
    }
    ways = torch.nn.functional.normalize(path.linear_parts, dim=2)
    rows = []
    for run, (trial, found) in enumerate(zip(trials, known, strict=True)):
        own = {name: values[run] for name, values in facts.items()} | {"level": levels}
        own |= _held_to(found, path.margins[run], ways[run])
        shared = _forecast(trial, found, weights[run], outputs[run])
        shared |= {"lasted": lasted(own, shared)}
        rows.append([shared | row for row in rows_of(own)])
    return rows


def _held_to(known: predict.TwoLayerMargin, margins: Tensor, ways: Tensor) -> dict[str, Any]:
    """Margins over what they can be, and the angles of linear parts to where they can go."""
    import torch

    one = known.positive
    ends = {"svm": known.direction, "one": one.direction, "mean": known.mean}
    return {"ratio": margins / known.linear, "over_one": margins / one.margin} | {
        f"angle_{name}": _angles(ways, torch.from_numpy(end.copy())) if end is not None else None
        for name, end in ends.items()
    }


def _forecast(
    trial: Network, known: predict.TwoLayerMargin, weights: Tensor, outputs: Tensor
) -> dict[str, Any]:
    """What is known of a run before it starts."""
    import numpy as np

    symmetric = known.mean is not None
    slower, faster = known.negative.growth, known.positive.growth
    lasts = None
    if trial.data == "hinted" and slower and faster:
        lasts = 2 * (1 - slower / faster) * trial.slope / (1 - trial.slope)
    return {
        "forecast": bool(known.gets_stuck(weights.numpy(), outputs.numpy())) if symmetric else None,
        "growth": known.growth,
        "kappa": lasts,
        "one_over_linear": known.positive.margin / known.linear,
        "svm_to_one": float(np.arccos(min(1, known.direction @ known.positive.direction))),
        "svm_to_mean": float(np.arccos(known.direction @ known.mean)) if symmetric else None,
    }


def lasted(facts: dict[str, Any], known: dict[str, Any]) -> float | None:
    """Of log -log loss, where the margin is half-way from one neuron's to a linear network's."""
    import numpy as np

    if known["kappa"] is None:
        return None
    ratio, deep = facts["ratio"].numpy()[1:], -facts["log_loss"].numpy()[1:]
    half = (1 + known["one_over_linear"]) / 2
    if not (ratio[0] < half < ratio[-1]):
        return None
    place = int((ratio > half).argmax())
    around = slice(place - 1, place + 1)
    return float(np.interp(half, ratio[around], np.log(deep[around])))


def count(trials: Sequence[Starts]) -> list[Rows]:
    """A record for each start: whether it was to get stuck, and where it ended."""
    import torch

    from undertow.train import flows

    given, known = [], []
    for trial in trials:
        generator = torch.Generator().manual_seed(trial.seed)
        x, y = _mirrored(*_samples(trial.points, trial.features, generator))
        found = predict.two_layer_margin(x.numpy(), y.numpy(), slope=trial.slope)
        known += [found] * trial.starts
        for _ in range(trial.starts):
            given.append((x, y, *_normal(trial.neurons, x.shape[1], trial.scale, generator)))
    inputs, labels, weights, outputs = (torch.stack(each) for each in zip(*given, strict=True))
    first = trials[0]
    path = flows.two_layer_flow(
        inputs,
        labels,
        weights,
        outputs,
        slope=first.slope,
        log_losses=[-first.depth],
        max_steps=100_000,
    )
    end = path.outputs[:, 0] > 0
    stuck = end.all(1) | ~end.any(1)
    rows = [
        {
            "diverged": not bool(path.reached[run, 0]),
            "forecast": bool(found.gets_stuck(weights[run].numpy(), outputs[run].numpy())),
            "stuck": bool(stuck[run]),
            "expected": found.failure_probability(first.neurons),
            "ratio": float(path.margins[run, 0] / found.linear),
            "log_loss": float(path.log_losses[run, 0]),
        }
        for run, found in enumerate(known)
    ]
    return [rows[place : place + first.starts] for place in range(0, len(rows), first.starts)]


# ---- data and starts


def made(trial: Network) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Samples `[n, d]`, labels, weights and outputs at the start, and points aside."""
    import torch

    generator = torch.Generator().manual_seed(trial.seed)
    if trial.data == "pictures":
        x, y = _mirrored(*_pictures(trial, generator))
    else:
        x, y = _points(trial, generator)
    weights, outputs = _normal(trial.neurons, x.shape[1], trial.scale, generator)
    if trial.start == "one-sign":
        outputs = weights.norm(dim=1) + outputs.abs()
    return x, y, weights, outputs, _normals(generator, _ASIDE, x.shape[1])


def _points(trial: Network, generator: Generator) -> tuple[Tensor, Tensor]:
    """Samples and labels; drawn anew where none of their halves is such as it must be."""
    import torch

    for _ in range(_DRAWS):
        half, signs = _samples(trial.points, trial.features, generator)
        x, y = _mirrored(half, signs)
        if trial.data == "mirrored":
            return x, y
        svm = predict.two_layer_margin(x.numpy(), y.numpy(), slope=trial.slope).direction
        hint = trial.hint * torch.from_numpy(svm.copy())[None]
        if trial.data != "halved":
            return torch.cat([x, hint]), torch.cat([y, torch.ones(1).double()])
        if found := _half(trial, half, signs, hint, generator):
            return found
    raise ValueError(
        f"points must be such that a half of them changes the margin, got {trial.points} of seed "
        f"{trial.seed} in {_DRAWS} draws; more points would do"
    )


def _normals(generator: Generator, *size: int) -> Tensor:
    import torch

    return torch.randn(*size, generator=generator, dtype=torch.float64)


def _normal(
    neurons: int, features: int, scale: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """The same directions for any scale."""
    weights, outputs = _normals(generator, neurons, features), _normals(generator, neurons)
    return scale * weights, scale * outputs


def _samples(points: int, features: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Unit samples that a plane through 0 separates, and their labels."""
    import torch

    teacher = torch.nn.functional.normalize(_normals(generator, features), dim=0)
    drawn = torch.nn.functional.normalize(_normals(generator, points, features))
    z = drawn * (drawn @ teacher).sign()[:, None] + _SHIFT * teacher
    signs = _normals(generator, points).sign()
    return signs[:, None] * torch.nn.functional.normalize(z), signs


def _mirrored(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    import torch

    return torch.cat([x, -x]), torch.cat([y, -y])


def _half(
    trial: Network, x: Tensor, y: Tensor, hint: Tensor, generator: Generator
) -> tuple[Tensor, Tensor] | None:
    """The hint and a sample of each pair, such that one neuron is first to fit them, alone, and is
    neither best nor along the SVM; None where no half was found to be.
    """
    import torch

    for _ in range(10_000):
        sides = _normals(generator, len(x)).sign()
        half = torch.cat([sides[:, None] * x, hint])
        labels = torch.cat([sides * y, torch.ones(1).double()])
        found = predict.two_layer_margin(half.numpy(), labels.numpy(), slope=trial.slope)
        one, slower = found.positive, found.negative.growth
        if one.growth is None or slower is None or slower > _SLOWER * one.growth:
            continue
        if one.margin < _SUBOPTIMAL * found.linear and one.direction @ found.direction < _APART:
            return half, labels
    return None


def _pictures(trial: Network, generator: Generator) -> tuple[Tensor, Tensor]:
    """Unit images of two classes that the seed draws, about the middle of their means."""
    import torch

    from undertow.data import per_class

    loaded = trial.images.load()
    pair = torch.randperm(loaded.num_classes, generator=generator)[:2].tolist()
    rows = per_class(loaded.train_targets, pair, trial.points, seed=trial.seed)
    x = loaded.train_inputs[rows].flatten(1).double()
    first, second = x.split(trial.points)
    x = torch.nn.functional.normalize(x - (first.mean(0) + second.mean(0)) / 2)
    ones = torch.ones(trial.points, dtype=torch.float64)
    return x, torch.cat([ones, -ones])


# ---- readings


def _angles(directions: Tensor, other: Tensor) -> Tensor:
    """Angles between unit vectors, exact where they are small."""
    import torch

    apart, sum_ = (directions - other).norm(dim=1), (directions + other).norm(dim=1)
    return 2 * torch.atan2(apart, sum_)


def _even_share(path: TwoLayerPath, aside: Tensor) -> Tensor:
    """Of the mean square of f at points aside, what its even part has: 0 of a linear network."""
    ahead, behind = path.predict(aside), path.predict(-aside)
    return (ahead + behind).square().mean(2) / (2 * (ahead.square() + behind.square()).mean(2))
