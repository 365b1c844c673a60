"""Models and losses that take each sample by itself, and such that do not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from odd_twins import Net, draw

SAMPLES, FEATURES, CLASSES = 10, 5, 3
Case = tuple[Callable[[], nn.Module], Any, Callable[[], Tensor]]


def filled(net: nn.Module) -> nn.Module:
    net = net.double()
    with torch.no_grad():
        for seed, parameter in enumerate(net.parameters()):
            parameter.copy_(0.7 * draw(seed, *parameter.shape))
    return net


def mlp(outputs: int = CLASSES) -> nn.Module:
    return filled(nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, outputs)))


def mixing(function: Callable[..., Tensor], *, zero: bool = False, **parts: nn.Module) -> nn.Module:
    own = {"into": nn.Linear(FEATURES, 4), "out": nn.Linear(4, CLASSES)} | parts
    net = filled(Net(function, **own))
    if zero:
        nn.init.zeros_(net.out.weight)
        nn.init.zeros_(net.out.bias)
    return net


def attending(self: Any, x: Tensor) -> Tensor:
    hidden = self.into(x)[:, None]  # [samples, 1, width]: attention takes samples for times
    return self.out(self.attention(hidden, hidden, hidden)[0][:, 0])


def inputs() -> Tensor:
    return draw(101, SAMPLES, FEATURES)


def labels() -> Tensor:
    return torch.arange(SAMPLES) % CLASSES


def numbers() -> Tensor:
    return draw(102, SAMPLES, 1).abs()


def flat_numbers() -> Tensor:
    return numbers()[:, 0]


def cox(risk: Tensor, time: Tensor) -> Tensor:
    ordered = risk[time.argsort(descending=True), 0]
    return -(ordered - torch.logcumsumexp(ordered, 0)).mean()


def balanced(o: Tensor, t: Tensor) -> Tensor:
    return functional.cross_entropy(o, t) + 0.01 * o.softmax(1).mean(0).square().sum()


def contrastive(o: Tensor, t: Tensor) -> Tensor:
    rows = functional.normalize(o)
    return -((rows @ rows.T).log_softmax(1) * (t[:, None] == t)).mean()


WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
cross_entropy = functional.cross_entropy

INDEPENDENT: dict[str, Case] = {
    "classes": (mlp, nn.CrossEntropyLoss(), labels),
    "class weights": (mlp, nn.CrossEntropyLoss(WEIGHT), labels),
    "ignored": (mlp, nn.CrossEntropyLoss(ignore_index=1), labels),
    "lambda": (mlp, lambda o, t: cross_entropy(o, t), labels),
    "gathered": (mlp, lambda o, t: -o.log_softmax(1).gather(1, t[:, None]).mean(), labels),
    "one-hot": (mlp, lambda o, t: (WEIGHT * (o - nn.functional.one_hot(t, 3)) ** 2).mean(), labels),
    "focal": (
        mlp,
        lambda o, t: (lambda v: ((1 - torch.exp(-v)) ** 2 * v).mean())(
            cross_entropy(o, t, reduction="none")
        ),
        labels,
    ),
    "per sample": (mlp, lambda o, t: cross_entropy(o, t, reduction="none"), labels),
    "squares": (lambda: mlp(1), lambda o, t: (o - t).square().mean(), numbers),
    "squeezed": (lambda: mlp(1), lambda o, t: functional.mse_loss(o.squeeze(1), t), flat_numbers),
    "first": (lambda: mlp(1), lambda o, t: (o[:, 0] - t).square().mean(), flat_numbers),
    "levels": (mlp, lambda o, t: ((o - t[:, None]).abs() * WEIGHT).mean(), flat_numbers),
    "poisson": (lambda: mlp(1), nn.PoissonNLLLoss(), numbers),
    "divergence": (
        mlp,
        lambda o, t: nn.KLDivLoss(reduction="batchmean")(o.log_softmax(1), t),
        lambda: draw(5, SAMPLES, CLASSES).softmax(1),
    ),
    "zero head": (lambda: mixing(lambda s, x: s.out(s.into(x)), zero=True), cross_entropy, labels),
    "recurrent": (
        lambda: mixing(
            lambda s, x: s.out(s.cell(s.into(x)[:, None].expand(-1, 3, -1))[0][:, -1]),
            cell=nn.GRU(4, 4, batch_first=True),
        ),
        cross_entropy,
        labels,
    ),
    "attention": (
        lambda: mixing(
            lambda s, x: s.out(s.layer(s.into(x)[:, None].expand(-1, 3, -1)).mean(1)),
            layer=nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        ),
        cross_entropy,
        labels,
    ),
    "frozen statistics": (
        lambda: mixing(lambda s, x: s.out(s.norm(s.into(x))), norm=nn.BatchNorm1d(4)),
        cross_entropy,
        labels,
    ),
}

COUPLED_MODELS: dict[str, Case] = {
    name: (make, cross_entropy, labels)
    for name, make in {
        "attention": lambda: mixing(attending, attention=nn.MultiheadAttention(4, 2)),
        "centred": lambda: mixing(lambda s, x: s.out(s.into(x) - s.into(x).mean(0))),
        "a thousandth": lambda: mixing(lambda s, x: s.out(s.into(x) + 1e-3 * s.into(x).mean(0))),
        "zero head": lambda: mixing(lambda s, x: s.out(s.into(x) - s.into(x).mean(0)), zero=True),
        "softmax": lambda: mixing(lambda s, x: s.out(s.into(x).softmax(0))),
        "recurrent": lambda: mixing(lambda s, x: s.out(s.cell(s.into(x))[0]), cell=nn.GRU(4, 4)),
        "place": lambda: mixing(lambda s, x: s.out(s.into(x) + torch.arange(len(x))[:, None])),
        "size": lambda: mixing(lambda s, x: s.out(s.into(x)) / len(x)),
        "order": lambda: mixing(lambda s, x: s.out(s.into(x)[x[:, 0].argsort()])),
        "neighbours": lambda: mixing(
            lambda s, x: s.out(s.into(x)[(x @ x.T).topk(9)[1]].mean(1)),
        ),
    }.items()
}
COUPLED_LOSSES: dict[str, Case] = {
    "cox": (lambda: mlp(1), cox, flat_numbers),
    "root": (lambda: mlp(1), lambda o, t: functional.mse_loss(o, t).sqrt(), numbers),
    "largest": (lambda: mlp(1), lambda o, t: (o - t).square().max(), numbers),
    "pairs": (
        lambda: mlp(1),
        lambda o, t: functional.softplus((o[:, None] - o) * (t - t[:, None]).sign()).mean(),
        numbers,
    ),
    "balance": (mlp, balanced, labels),
    "contrast": (mlp, contrastive, labels),
    "sum": (mlp, lambda o, t: cross_entropy(o, t, reduction="none").sum(), labels),
    "hidden weights": (mlp, lambda o, t: cross_entropy(o, t, weight=WEIGHT), labels),
    "hidden ignored": (mlp, lambda o, t: cross_entropy(o, t, ignore_index=1), labels),
    "hard half": (
        mlp,
        lambda o, t: cross_entropy(o, t, reduction="none").topk((len(t) + 1) // 2)[0].mean(),
        labels,
    ),
    "spread": (lambda: mlp(1), lambda o, t: functional.mse_loss(o, t) + o.std(), numbers),
    "coupled values": (
        lambda: mlp(1),
        lambda o, t: len(t) * (o - t)[:, 0].square() * o[:, 0].softmax(0),
        numbers,
    ),
}


class Balanced(nn.Module):
    """A model whose own loss has a term beside the logits, as mixtures of experts have."""

    def __init__(self, scale: float = 1.0, *, of_batch: bool = True) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)
        self.scale, self.of_batch = scale, of_batch
        filled(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        share = self.router(x).softmax(1)
        logits = self.head(x) * share
        if labels is None:
            return SimpleNamespace(logits=logits, loss=None)
        term = share.mean(0).square().sum() if self.of_batch else share.square().sum(1).mean()
        return SimpleNamespace(
            logits=logits, loss=cross_entropy(logits, labels) + self.scale * term
        )
