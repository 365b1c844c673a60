"""Two-layer ReLU networks of Local SGD as one batched program, their samples and their starts."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from undertow.data import Images

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Generator, Tensor

_CLUSTER = 1.0  # of a class's own direction, over a sample's
_CLASSES = 10


class Samples(Protocol):
    """What determines the samples of a trial."""

    @property
    def data(self) -> str: ...
    @property
    def samples(self) -> int: ...
    @property
    def features(self) -> int: ...
    @property
    def clients(self) -> int: ...
    @property
    def angle(self) -> float: ...
    @property
    def partition(self) -> str: ...
    @property
    def images(self) -> Images: ...
    @property
    def seed(self) -> int: ...


@dataclass
class Course:
    """What is seen of networks as they train, `[E]` at each reading.

    Attributes:
        residuals: of the averaged networks, at the start and after every round.
        flips: share of signs that differ between w_k and w_bar before averaging, on client k's own
            samples, all clients together.
        distances: ||w_k - w_bar|| there, mean over clients.
        drifts: ||grad L_k(w_k) - grad L_k(w_bar)|| / ||grad L_k(w_bar)||, likewise.
        since_start: share of signs that differ between the average and the start, at the end.
    """

    residuals: list[Float[Tensor, "E n"]] = field(default_factory=list)
    flips: list[Float[Tensor, " E"]] = field(default_factory=list)
    distances: list[Float[Tensor, " E"]] = field(default_factory=list)
    drifts: list[Float[Tensor, " E"]] = field(default_factory=list)
    since_start: Float[Tensor, " E"] | None = None


def local_sgd(
    weights: Float[Tensor, "E m d"],
    outputs: Float[Tensor, "E m"],
    inputs: Float[Tensor, "E n d"],
    targets: Float[Tensor, "E n"],
    rows: Int[Tensor, "E K nk"],
    *,
    period: int,
    lr: Float[Tensor, " E"],
    rounds: int,
    read: Collection[int] = (),
    batches: Int[Tensor, "rounds E K period b"] | None = None,
) -> Course:
    """Train the weights of sum_j a_j relu(w_j . x) on the mean of (f - y)^2 / 2; a_j are fixed.

    Drift is read in the rounds of these numbers, from 1 on. The formulas are written out, as the
    gradient is of two matrix products: some ten times as fast as autograd here.
    """
    import torch

    members, clients, _ = rows.shape
    each = torch.arange(members)[:, None, None]
    own = inputs[each, rows].flatten(0, 1), targets[each, rows].flatten(0, 1)
    signs = outputs.repeat_interleave(clients, 0)[:, None]
    rate = lr.repeat_interleave(clients)[:, None, None]
    course, first, average = Course(), weights, weights.clone()

    def residuals(at: Tensor) -> Tensor:
        return (torch.relu(inputs @ at.mT) * outputs[:, None]).sum(2) - targets

    course.residuals.append(residuals(average))
    for turn in range(rounds):
        local = average.repeat_interleave(clients, 0)
        for step in range(period):
            shown = own
            if batches is not None:
                seen = batches[turn, :, :, step]
                shown = inputs[each, seen].flatten(0, 1), targets[each, seen].flatten(0, 1)
            local -= rate * gradient(local, signs, *shown)
        apart = local.unflatten(0, (members, clients))
        average = apart.mean(1)
        course.residuals.append(residuals(average))
        if turn + 1 in read:
            center = average.repeat_interleave(clients, 0)
            flipped = (own[0] @ local.mT > 0) != (own[0] @ center.mT > 0)
            course.flips.append(_share(flipped, members))
            gap = (apart - average[:, None]).flatten(2).norm(dim=2)
            course.distances.append(gap.mean(1))
            here, there = (gradient(at, signs, *own).flatten(1) for at in (local, center))
            drift = (here - there).norm(dim=1) / there.norm(dim=1)
            course.drifts.append(drift.view(members, clients).mean(1))
    changed = (inputs @ first.mT > 0) != (inputs @ average.mT > 0)
    course.since_start = _share(changed, members)
    return course


def gradient(
    weights: Float[Tensor, "L m d"],
    outputs: Float[Tensor, "L 1 m"],
    inputs: Float[Tensor, "L b d"],
    targets: Float[Tensor, "L b"],
) -> Float[Tensor, "L m d"]:
    """Of the mean over a batch of (f - y)^2 / 2, in the weights."""
    import torch

    before = inputs @ weights.mT
    residual = (torch.relu(before) * outputs).sum(2) - targets
    pushed = (before > 0) * (outputs * residual[:, :, None] / inputs.shape[1])
    return pushed.mT @ inputs


def _share(holds: Bool[Tensor, "L ..."], members: int) -> Float[Tensor, " E"]:
    return holds.double().flatten(1).mean(1).view(members, -1).mean(1)


# ---- samples and starts


def normals(generator: Generator, *size: int) -> Tensor:
    """Standard normal numbers in float64."""
    import torch

    return torch.randn(*size, generator=generator, dtype=torch.float64)


def started(width: int, features: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights `[m, d]` of variance 2 / m, and outputs `[m]` of +-1."""
    import torch

    generator = torch.Generator().manual_seed(2**40 + seed)
    weights = normals(generator, width, features) * math.sqrt(2 / width)
    return weights, normals(generator, width).sign()


def samples(trial: Samples) -> tuple[Tensor, Tensor, Tensor]:
    """Unit inputs `[n, d]`, labels +-1, and each client's rows `[K, n / K]`.

    Samples are in random order, so that clients of consecutive rows are alike; by_class sorts them.
    The two of a near pair are the first client's.
    """
    import torch

    generator = torch.Generator().manual_seed(trial.seed)
    if trial.data == "images":
        x, y, kinds = _images(trial, generator)
    else:
        x = normals(generator, trial.samples, trial.features)
        y = kinds = normals(generator, trial.samples).sign()
    if trial.data == "clusters":
        y = torch.ones(trial.samples).double()
        y[::2] = -1
        y = kinds = y[torch.randperm(trial.samples, generator=generator)]
        toward = torch.nn.functional.normalize(normals(generator, 1, trial.features))
        x = torch.nn.functional.normalize(x) + _CLUSTER * y[:, None] * toward
    x = torch.nn.functional.normalize(x)
    if trial.data in ("opposite", "alike"):
        aside = torch.nn.functional.normalize(x[1] - (x[0] @ x[1]) * x[0], dim=0)
        x[1] = math.cos(trial.angle) * x[0] + math.sin(trial.angle) * aside
        y[1] = y[0] if trial.data == "alike" else -y[0]
    order = torch.arange(trial.samples)
    if trial.partition == "by_class":
        order = kinds.argsort(stable=True)
    return x, y, order.view(trial.clients, -1)


def _images(trial: Samples, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images of all classes, whether their class is even, and the classes."""
    import torch

    images, labels = trial.images.load().unit_vectors()
    chosen = torch.randperm(len(images), generator=generator)[: trial.samples]
    return images[chosen], 1.0 - 2.0 * (labels[chosen] % 2).double(), labels[chosen]
