"""Deep ReLU networks on images, whose kernel is that of their gradients at the start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from undertow import predict
from undertow.claims import stream
from undertow.claims.local_sgd_relu.networks import START, normals, samples
from undertow.claims.local_sgd_relu.readings import rates, read_at, residual_error
from undertow.data import Images

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Deep:
    """A deep network on images; all layers are trained but the last, which is +-1."""

    width: int
    depth: int
    period: int
    strength: float
    rounds: int
    samples: int
    clients: int
    images: Images
    partition: str
    seed: int
    data: str = "images"
    features: int = 0
    angle: float = 0.0

    @property
    def lr(self) -> float:
        """The kernel's diagonal is about width x depth / 2."""
        return self.strength / (self.width * self.depth * self.period)


def follow_deep(trials: Sequence[Deep]) -> list[list[dict[str, Any]]]:
    """Networks of one shape side by side, a record for every reading."""
    import torch

    from undertow.train import Ensemble, Member, Workers

    first = trials[0]
    x, y, rows = (torch.stack(own) for own in zip(*map(samples, trials), strict=True))
    # Sorted by their number and cut, samples in the clients' order are the clients' own.
    pool, labels = (
        torch.cat([own[order.flatten()] for own, order in zip(each, rows, strict=True)])
        for each in (x.float(), y.float())
    )
    numbers = torch.arange(len(pool))
    modules = [started(trial, x.shape[2]) for trial in trials]

    def loss(outputs: Tensor, shown: Tensor) -> Tensor:
        return (outputs[:, 0] - labels[shown]).square().mean() / 2

    workers = Workers(first.clients, rounds=first.period, data="by_class")
    ensemble = Ensemble(
        modules,
        loss,
        (pool, numbers),
        [Member(trial.seed, trial.lr, order="full", workers=workers) for trial in trials],
        batch_size=first.samples // first.clients,
        samples=numbers.view(len(trials), -1),
        path="vmap",
    )
    kernels = [
        kernel_of(module, own)
        for module, own in zip(modules, pool.split(first.samples), strict=True)
    ]
    steps = range(0, first.period * first.rounds + 1, first.period)
    own = numbers.view(len(trials), -1)
    paths = [
        ensemble.predict(pool, samples=own)[..., 0].double() - labels[own]
        for _ in ensemble.read_at(steps)
    ]
    return [
        records(trial, kernel, torch.stack(paths)[:, run].numpy())
        for run, (trial, kernel) in enumerate(zip(trials, kernels, strict=True))
    ]


def started(trial: Deep, features: int) -> nn.Module:
    """Weights of variance 2 / m, which keep the norms of inputs; outputs of +-1 that stay."""
    import torch

    from undertow import models

    generator = stream(trial.seed, START)
    module = models.mlp((features, *[trial.width] * trial.depth, 1), bias=False)
    layers = [layer for layer in module if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            drawn = normals(generator, *layer.weight.shape)
            layer.weight.copy_(drawn * math.sqrt(2 / trial.width))
        layers[-1].weight.copy_(drawn.sign())
    layers[-1].weight.requires_grad_(False)
    return module


def kernel_of(module: nn.Module, inputs: Tensor) -> np.ndarray:
    """The kernel grad f(x) . grad f(x') of the parameters that are trained, `[n, n]`."""
    import torch
    from torch.func import functional_call, grad, vmap

    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

    def output(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(module, parameters, (one[None],))[0, 0]

    gradients = vmap(grad(output), (None, 0))(trained, inputs)
    flat = torch.cat([own.flatten(1) for own in gradients.values()], dim=1).double()
    return (flat @ flat.mT).numpy()


def records(trial: Deep, kernel: np.ndarray, path: np.ndarray) -> list[dict[str, Any]]:
    """What was read of one run, beside what its round map says."""
    if not np.isfinite(path).all():
        return [{"round": trial.rounds, "diverged": True}]
    known = predict.local_sgd_rounds(
        kernel,
        clients=np.arange(trial.samples).reshape(trial.clients, -1),
        period=trial.period,
        lr=trial.lr,
        rounds=trial.rounds,
        residual=path[0],
    )
    losses = (path**2).mean(1) / 2
    facts: dict[str, Any] = {"diverged": False} | rates(losses, known.losses)
    facts["residual_error"] = residual_error(path, known.residuals)
    return [
        facts | {"round": at, "loss": losses[at], "expected": known.losses[at]}
        for at in read_at(trial.rounds)
    ]
