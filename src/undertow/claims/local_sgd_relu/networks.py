"""Samples, who has them, and where networks start."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from undertow.claims import stream
from undertow.data import Images

if TYPE_CHECKING:
    from torch import Generator, Tensor

SAMPLES, START, BATCHES = range(3)  # what a seed's streams are for
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


def normals(generator: Generator, *size: int) -> Tensor:
    """Standard normal numbers in float64."""
    import torch

    return torch.randn(*size, generator=generator, dtype=torch.float64)


def started(width: int, features: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights `[m, d]` of variance 2 / m, and outputs `[m]` of +-1."""
    generator = stream(seed, START)
    weights = normals(generator, width, features) * math.sqrt(2 / width)
    return weights, normals(generator, width).sign()


def samples(trial: Samples) -> tuple[Tensor, Tensor, Tensor]:
    """Unit inputs `[n, d]`, labels +-1, and each client's rows `[K, n / K]`.

    Samples are in random order, so that clients of consecutive rows are alike; by_class sorts them.
    The two of a near pair are the first client's.
    """
    import torch

    generator = stream(trial.seed, SAMPLES)
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
    if trial.data in ("opposite", "exchanged", "alike"):
        aside = torch.nn.functional.normalize(x[1] - (x[0] @ x[1]) * x[0], dim=0)
        x[1] = math.cos(trial.angle) * x[0] + math.sin(trial.angle) * aside
        y[1] = y[0] if trial.data == "alike" else -y[0]
        y[:2] *= -1 if trial.data == "exchanged" else 1
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
