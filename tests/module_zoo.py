"""Modules as people write them: what they share, write to, cache and hold beside their layers."""

from __future__ import annotations

import functools
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

WIDTH, CLASSES = 4, 3


class Siamese(nn.Module):
    """One block under two names, and its weight tied to a third layer's."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(WIDTH, WIDTH)
        self.third = nn.Linear(WIDTH, WIDTH)
        if tied:
            self.third.weight = self.first.weight
        self.register_buffer("scale", torch.full((WIDTH,), 1.5))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.head.register_buffer("scale", self.scale)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return self.head(x * self.scale + self.head.scale)


class Tokens(nn.Module):
    """Renormalises rows of its table in place, whatever the mode."""

    def __init__(self, max_norm: float | None = 0.5) -> None:
        super().__init__()
        self.table = nn.Embedding(7, WIDTH, max_norm=max_norm)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x.abs().mul(3).long() % 7).mean(1))


class Writer(nn.Module):
    """Writes to a buffer, to a parameter's data, and to a tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.register_buffer("average", torch.zeros(WIDTH))
        self.cache = torch.zeros(WIDTH)
        self.log: list[Any] = []
        self.counts = {"calls": 0, "shapes": [torch.zeros(2)]}
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.counts["calls"] += 1
        self.counts["shapes"].append(x.shape)
        self.counts["shapes"][0] += 1
        self.hidden.weight.data.clamp_(-0.3, 0.3)
        with torch.no_grad():
            self.hidden.bias.mul_(0.5)
        x = torch.tanh(self.hidden(x))
        self.average.mul_(0.9).add_(0.1 * x.detach().mean(0))
        self.cache[:] = self.average
        self.log.append(x)
        return self.head(x + self.average + self.cache)


class Lazy(nn.Module):
    """Keeps what it has computed for the next call."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, CLASSES)
        self.standardised: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.standardised is None:
            self.standardised = self.head.weight - self.head.weight.mean()
        return functional.linear(x, self.standardised, self.head.bias)


class Child(nn.Module):
    """Knows its parent, weakly and strongly, and holds what cannot be copied."""

    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.weak = weakref.ref(parent)
        object.__setattr__(self, "strong", parent)
        self.lock = threading.Lock()
        self.stream = sys.__stderr__

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return x * self.weak().scale + self.strong.shift


class Family(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.shift = nn.Parameter(torch.zeros(WIDTH))
        self.child = Child(self)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.child(x)))


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Structured(nn.Module):
    """Returns a record, keeps its layers in a list, a partial, a closure and slots."""

    __slots__ = ("extra",)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.layers.append(self.layers[0])
        self.plain = [self.layers[1].bias]
        self.by_name = functools.partial(functional.linear, weight=self.layers[0].weight)
        self.by_place = functools.partial(torch.add, self.layers[0].bias)
        self.closed = lambda x: self.layers[1](x) + self.plain[0]
        self.bound = self.layers[1].forward
        self.pair = (self.layers[0].bias, {"layer": self.layers[1]})
        object.__setattr__(self, "extra", [self.layers[1].weight])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Output:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        x = self.by_name(x) + self.closed(x) + self.by_place(self.bound(x)) + self.pair[0]
        x = x + self.pair[1]["layer"](x) @ self.extra[0]
        return Output(self.head(x), x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(1, 5, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x[..., None])[0][:, -1])


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
        self.embed = nn.Linear(1, 4)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x[..., None])).mean(1))


def hooked() -> nn.Module:
    """Hooks of all kinds, one of which keeps what it sees, and one changes it."""
    net = chain()
    seen: list[Any] = []
    net[0].register_forward_pre_hook(lambda module, args: (args[0] * module.gain,))
    net[0].gain = nn.Parameter(torch.full((), 2.0))
    net[0].register_forward_hook(lambda module, args, output: seen.append(output))
    net[2].register_full_backward_hook(lambda module, given, wanted: None)
    net[0].weight.register_hook(lambda gradient: gradient * 100)
    net.seen = seen
    return net


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return with_first(weight_norm)


def chain(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDTH, 4), *between, nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, CLASSES)
    )


def with_first(change: Callable[[nn.Module], Any]) -> nn.Module:
    net = chain()
    change(net[0])
    return net


def frozen() -> nn.Module:
    net = chain(nn.BatchNorm1d(4), nn.Dropout(0.5))
    net[0].weight.requires_grad_(False)
    net[1].eval()
    return net


class Standardised(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean()


ZOO: dict[str, Callable[[], nn.Module]] = {
    "chain": chain,
    "shared": lambda: Siamese(tied=False),
    "shared and tied": lambda: Siamese(tied=True),
    "max_norm": Tokens,
    "batch norm, dropout": lambda: chain(nn.BatchNorm1d(4), nn.Dropout(0.5)),
    "old spectral norm": lambda: with_first(spectral_norm),
    "spectral norm": lambda: with_first(parametrizations.spectral_norm),
    "old weight norm": old_weight_norm,
    "weight norm": lambda: with_first(parametrizations.weight_norm),
    "orthogonal": lambda: with_first(parametrizations.orthogonal),
    "parametrized": lambda: with_first(
        lambda layer: parametrize.register_parametrization(layer, "weight", Standardised())
    ),
    "pruned": lambda: with_first(lambda layer: prune.random_unstructured(layer, "weight", 0.5)),
    "recurrent": Recurrent,
    "attentive": Attentive,
    "writer": Writer,
    "lazy": Lazy,
    "family": Family,
    "structured": Structured,
    "hooked": hooked,
    "frozen": frozen,
    "compiled": lambda: torch.compile(chain(), backend="eager"),
}
