"""A small network with data, losses and batchings of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
)

SAMPLES, FEATURES, CLASSES = 23, 5, 4


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(outputs: int = CLASSES) -> nn.Sequential:
    """A net with batch norm and dropout in training mode, initialised away from zero."""
    net = nn.Sequential(
        nn.Linear(FEATURES, 6),
        nn.BatchNorm1d(6),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(6, outputs),
    ).double()
    with torch.no_grad():
        for seed, tensor in enumerate(net.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(draw(seed, *tensor.shape).abs() + 0.1)
    return net.train()


def labels() -> Tensor:
    return torch.randint(CLASSES, (SAMPLES,), generator=torch.Generator().manual_seed(9))


def labels_with_gaps() -> Tensor:
    found = labels()
    found[:7] = -100  # whole microbatches of nothing but ignored labels
    return found


def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def probabilities() -> Tensor:
    return draw(8, SAMPLES, CLASSES).softmax(1)


class LogNLL(nn.NLLLoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input.log_softmax(1), target)


class_weight = torch.tensor([0.2, 1.0, 3.0, 0.7], dtype=torch.float64)


CASES: dict[str, tuple[Callable[..., Any], Callable[[], Tensor]]] = {
    "cross_entropy": (nn.CrossEntropyLoss(), labels),
    "function": (functional.cross_entropy, labels_with_gaps),
    "weights": (nn.CrossEntropyLoss(weight=class_weight), labels),
    "ignored": (nn.CrossEntropyLoss(weight=class_weight, label_smoothing=0.1), labels_with_gaps),
    "nll": (LogNLL(weight=class_weight), labels_with_gaps),
    "probabilities": (nn.CrossEntropyLoss(weight=class_weight), probabilities),
    "mse": (nn.MSELoss(), lambda: draw(7, SAMPLES, CLASSES)),
    "per_sample": (per_sample, labels),
    "none": (nn.CrossEntropyLoss(reduction="none"), labels),
}


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(list(zip(self.inputs, self.targets, strict=True)))


BATCHINGS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensors": lambda x, y: (x, y),
    "list": lambda x, y: list(zip(x.split(6), y.split(6), strict=True)),
    "tuple of batches": lambda x, y: ((x[:20], y[:20]), (x[20:], y[20:])),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=5),
    "shuffled": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=9, shuffle=True),
    "dataset": Pairs,
    "stream": Stream,
}
