"""Networks, losses and dense per-sample gradients that the tests of gradient noise share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from undertow.objective import Objective, as_sum_and_count

SAMPLES, CLASSES, TIMES, TOKENS = 11, 4, 5, 9


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(seed: int, high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


class Tied(nn.Module):
    """One table as embedding and as output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(CLASSES, 6)
        self.middle = nn.Linear(6, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.middle(self.table(tokens % CLASSES)))
        return functional.linear(hidden, self.table.weight).mean(1)


class Encoder(nn.Module):
    """PyTorch's own encoder over tokens; the samples are the second axis unless batch_first."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.table = nn.Embedding(TOKENS, 8, padding_idx=0)
        self.positions = nn.Parameter(torch.ones(TIMES, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.table(tokens) + self.positions
        if self.batch_first:
            return self.head(self.encoder(hidden).mean(1))
        return self.head(self.encoder(hidden.transpose(0, 1)).mean(0))


class Decoder(nn.Module):
    """Cross attention, whose queries and keys differ, and a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENS, 8)
        self.places = nn.Embedding(7, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.tensor([0, 1, 2, 3, 1])
        hidden = self.table(tokens) + self.places(places)
        return self.head(self.attention(hidden[:, :2], hidden, hidden.tanh())[0].mean(1))


class Patches(nn.Module):
    """A vision transformer's ends: patches, a class token, sliced positions, a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, 2)
        self.first = nn.Parameter(torch.ones(1, 1, 8))
        self.positions = nn.Parameter(torch.ones(1, 20, 8))
        self.scale = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        found = self.patches(images).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.first.expand(len(images), -1, -1), found], 1)
        hidden = hidden + self.positions[:, : hidden.shape[1]]
        return self.head((hidden + self.scale * torch.tanh(hidden)).mean(1).tanh())


class Odd(nn.Module):
    """A layer used twice, a weight multiplied by hand, and a weight that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(6, 6)
        self.own = nn.Parameter(torch.ones(6, 6))
        self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(6, CLASSES))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.twice(torch.tanh(self.twice(inputs)))
        return self.norm(torch.tanh(hidden @ self.own))


class NowAndThen(nn.Module):
    """Second uses of parameters that the first two samples do not notice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENS, 6)
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        # The same row twice, but in the first two samples.
        pair = 2 * self.table(tokens[:, 0]) + self.table(tokens[:, 1])
        hidden = self.hidden(torch.tanh(pair))
        late = tokens[:, :1].eq(tokens[:, 1:2]).to(hidden)
        hidden = torch.tanh(hidden + self.hidden(late * hidden))
        return self.head(hidden) + (late * hidden) @ self.head.weight.T


def pairs() -> Tensor:
    tokens = whole(11, TOKENS, SAMPLES, 1).expand(-1, 2).clone()
    tokens[:2] = torch.tensor([[0, 1], [2, 3]])
    return tokens


class Recurrent(nn.Module):
    """What vmap cannot map: a recurrent layer, and experts chosen by values."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(3, 4, batch_first=True)
        self.experts = nn.ModuleList(nn.Linear(4, CLASSES) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        last = self.memory(x)[0][:, -1]
        outputs = last.new_zeros(len(last), CLASSES)
        for number, expert in enumerate(self.experts):
            chosen = (last[:, 0] > 0).long() == number
            outputs[chosen] = expert(last[chosen])
        return outputs


def sequence() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 7),
        nn.LayerNorm(7),
        nn.Tanh(),
        nn.Linear(7, 60),
        nn.RMSNorm(60),
        nn.Linear(60, 1),
        nn.Flatten(),
        nn.Linear(TIMES, CLASSES),
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, stride=2),
        nn.GroupNorm(2, 6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, (3, 2), groups=2, dilation=(1, 2), padding=(2, 1), padding_mode="reflect"),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8, bias=False, padding="same"),
        nn.Flatten(),
        nn.Linear(280, CLASSES),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, CLASSES)
    )


def spatial() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 3, 2), nn.Tanh(), nn.Flatten(3), nn.Flatten(1, 2),
        nn.Conv1d(9, CLASSES, 4), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
    )  # fmt: skip


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "perceptron": (perceptron, lambda: draw(1, SAMPLES, 6)),
    "sequence": (sequence, lambda: draw(2, SAMPLES, TIMES, 6)),
    "convolutional": (convolutional, lambda: draw(3, SAMPLES, 2, 10, 9)),
    "spatial": (spatial, lambda: draw(4, SAMPLES, 1, 4, 3, 3)),
    "encoder": (lambda: Encoder(batch_first=True), lambda: whole(5, TOKENS, SAMPLES, TIMES)),
    "times first": (lambda: Encoder(batch_first=False), lambda: whole(6, TOKENS, SAMPLES, TIMES)),
    "decoder": (Decoder, lambda: whole(7, TOKENS, SAMPLES, TIMES)),
    "patches": (Patches, lambda: draw(8, SAMPLES, 1, 6, 6)),
    "tied": (Tied, lambda: whole(9, TOKENS, SAMPLES, TIMES)),
    "odd": (Odd, lambda: draw(10, SAMPLES, 6)),
    "now and then": (NowAndThen, pairs),
    "recurrent": (Recurrent, lambda: draw(12, SAMPLES, TIMES, 3)),
}
# Parameters that no formula covers.
VMAPPED = {
    "tied": {"table.weight"},
    "odd": {
        "twice.weight", "twice.bias", "own",
        "norm.parametrizations.weight.original0", "norm.parametrizations.weight.original1",
    },
    "now and then": {"table.weight", "hidden.weight", "hidden.bias", "head.weight"},
    "recurrent": {
        "memory.weight_ih_l0", "memory.weight_hh_l0", "memory.bias_ih_l0", "memory.bias_hh_l0",
        "experts.0.weight", "experts.0.bias", "experts.1.weight", "experts.1.bias",
    },
}  # fmt: skip


def network(name: str) -> nn.Module:
    """In float64 and training mode, with every tensor drawn anew."""
    with torch.random.fork_rng():
        net = NETS[name][0]().double()
    with torch.no_grad():
        for seed, (key, tensor) in enumerate(net.state_dict().items()):
            if tensor.is_floating_point():
                values = draw(100 + seed, *tensor.shape) * 0.5
                tensor.copy_(values.abs() + 0.5 if key.endswith("var") else values)
    return net.train()


def labels() -> Tensor:
    return whole(20, CLASSES, SAMPLES)


def labels_with_gaps() -> Tensor:
    found = labels()
    found[:5] = -100
    return found


def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[[], Tensor]]] = {
    "cross_entropy": (nn.CrossEntropyLoss(), labels),
    "weights and gaps": (
        nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0, 0.7], dtype=torch.float64)),
        labels_with_gaps,
    ),
    "mse": (nn.MSELoss(), lambda: draw(21, SAMPLES, CLASSES)),
    "per sample": (per_sample, labels),
}


def dense(objective: Objective, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Per-sample gradients g_i, a row each, and the samples' weights, one sample at a time."""
    net = objective.model
    training = [(module, module.training) for module in net.modules()]
    net.eval()
    sums, counts = [], []
    for index in range(len(inputs)):
        one = slice(index, index + 1)
        parameters = list(net.parameters())
        total, count = as_sum_and_count(objective.loss)(net(inputs[one]), targets[one], 1)
        gradients: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if total.requires_grad:  # not if the label is ignored
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        sums.append(
            torch.cat(
                [
                    torch.zeros_like(p).flatten() if g is None else g.flatten()
                    for p, g in zip(parameters, gradients, strict=True)
                ]
            )
        )
        counts.append(count)
    for module, flag in training:
        module.training = flag
    weights = torch.stack(counts).double() / torch.stack(counts).double().mean()
    return torch.stack(sums) / torch.stack(counts).double().mean(), weights


def covariance(gradients: Tensor, weights: Tensor) -> Tensor:
    centred = gradients - weights[:, None] * gradients.mean(0)
    return centred.T @ centred / (len(gradients) - 1)
