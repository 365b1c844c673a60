"""Small networks and losses of every kind, for tests of curvature products and noise draws."""

from __future__ import annotations

from collections.abc import Callable

import torch
from dense_curvature import draw
from torch import Tensor, nn
from torch.nn import functional

SAMPLES, FEATURES, CLASSES = 11, 5, 3

MODES = ("loop", "batched", "forward")


class Tied(nn.Module):
    """One matrix used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, FEATURES)
        self.outer = nn.Linear(FEATURES, FEATURES)
        self.outer.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)))[:, :CLASSES]


class Attention(nn.Module):
    """An encoder layer over the features as a sequence, then fused attention by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.3, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(self.embed(x[:, :, None]))
        mixed = functional.scaled_dot_product_attention(hidden, hidden, hidden)
        return self.head(mixed.mean(1))


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(1, 3, 2), nn.GroupNorm(1, 3), nn.SiLU(), nn.Flatten())
        self.head = nn.Linear(3 * (FEATURES - 1), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x[:, None]))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(FEATURES, CLASSES),
    "batch norm, dropout": lambda: nn.Sequential(
        nn.Linear(FEATURES, 4),
        nn.BatchNorm1d(4),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(4, CLASSES),
    ),
    "tied": Tied,
    "attention": Attention,
    "convolution": Convolution,
}


def labels() -> Tensor:
    return torch.randint(CLASSES, (SAMPLES,), generator=torch.Generator().manual_seed(9))


def labels_with_gaps() -> Tensor:
    found = labels()
    found[:5] = -100  # whole microbatches of nothing but ignored labels
    return found


def generic(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.cosh(outputs - targets[:, None]).sum(1)


class LogNLL(nn.NLLLoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input.log_softmax(1), target)


class_weight = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[[], Tensor]]] = {
    "cross_entropy": (functional.cross_entropy, labels),
    "weights": (nn.CrossEntropyLoss(weight=class_weight), labels_with_gaps),
    "smoothing": (nn.CrossEntropyLoss(class_weight, label_smoothing=0.2), labels_with_gaps),
    "probabilities": (
        nn.CrossEntropyLoss(class_weight, label_smoothing=0.1),
        lambda: draw(8, SAMPLES, CLASSES).softmax(1),
    ),
    "mse": (nn.MSELoss(), lambda: draw(7, SAMPLES, CLASSES)),
    "huber": (nn.HuberLoss(), lambda: draw(7, SAMPLES, CLASSES)),
    "generic": (generic, labels),
    "mean": (lambda o, t: generic(o, t).mean(), labels),
}
