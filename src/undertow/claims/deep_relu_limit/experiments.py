"""Products and ReLU networks of great depth in float64, and deep plain networks on real data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undertow.claims import networks
from undertow.claims.deep_relu_limit import BURN_IN, DIVERGING, DeepReluLimit
from undertow.data import Images
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64
    from torch import Generator, Tensor

ACTIVATIONS = ("own", "all", "switching")
_BLOCK = 256  # layers whose noise is drawn at once

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Limit:
    """Layers of great depth, W_n = I + P_n and b_n, under one sequence of activation matrices J_n.

    `activations` are a ReLU network's own, one sequence for each of `width + 1` inputs; or, for
    columns that are multiplied by all J_n W_n, all of them I; or switching, with half of the
    coordinates off in every second layer. In these the columns are those of I, and one that starts
    at zero and gathers the biases. `kind` is aligned, P_n = c n^-power 11'/m; random, Gaussian of
    that spectral norm; or bias, random biases of norm n^-power at W_n = I.
    """

    kind: str
    activations: str
    power: float
    scale: float
    width: int
    depth: int
    seed: int

    @property
    def bias_power(self) -> float:
        """Biases beside perturbations fall fast enough not to show in d(n)."""
        return self.power if self.kind == "bias" else max(self.power, 1.5) + 0.5


@dataclass(frozen=True)
class Training:
    """One deep plain MLP, W_n = I + scale n^-power G at the start, or `init` he."""

    images: Images
    init: str
    net_scale: float
    net_power: float
    net_width: int
    net_depth: int
    lr: float
    steps: int
    seed: int


def experiments(knobs: DeepReluLimit, seed: int) -> dict[str, Experiment]:
    """Deep networks at each learning rate; layers of each kind, power and activation matrices."""
    powers = {
        "aligned": knobs.aligned_powers,
        "random": knobs.random_powers,
        "bias": knobs.bias_powers,
    }
    forms = [
        {"kind": kind, "power": power, "activations": own}
        for kind, each in powers.items()
        for power in each
        for own in sequences(kind)
    ]
    diverging = [("aligned", 1.0), *((kind, p) for kind in ("random", "bias") for p in DIVERGING)]
    forms += [{"kind": kind, "power": p, "activations": "own"} for kind, p in diverging]
    rates = {"he": knobs.he_lrs, "identity-plus-noise": knobs.lrs}
    cells = [net | {"lr": lr} for net in nets(knobs).values() for lr in rates[net["init"]]]
    trainings = grid(Training, knobs, cell=cells, seed=seeds(seed, knobs.net_seeds))
    limits = grid(Limit, knobs, seed=seeds(seed, knobs.seeds), form=forms)
    together = ("activations", "power", "seed")
    return {
        "networks": Experiment(trainings, train, together=("lr", "seed"), group_size=64),
        "limits": Experiment(limits, deepen, together=together, group_size=168),
    }


def sequences(kind: str) -> tuple[str, ...]:
    """The activation matrices under which a kind is followed; biases at W_n = I under the own."""
    return ACTIVATIONS[:1] if kind == "bias" else ACTIVATIONS


def nets(knobs: DeepReluLimit) -> dict[str, dict[str, Any]]:
    """The trained networks: their initialisations and depths."""
    near = {"init": "identity-plus-noise", "net_depth": knobs.net_depth}
    he = {"init": "he", "net_scale": 0.0, "net_power": 0.0}
    c = knobs.net_scale
    return {
        "decaying": near | {"net_scale": c, "net_power": 1.0},
        "slowly": near | {"net_scale": c, "net_power": 0.5},
        "constant": near | {"net_scale": c, "net_power": 0.0},
        "matched": near | {"net_scale": matched(c, knobs.net_depth), "net_power": 0.0},
        "identity": near | {"net_scale": 0.0, "net_power": 0.0},
        "he": he | {"net_depth": knobs.net_depth},
        "shallow": he | {"net_depth": knobs.shallow_depth},
    }


def matched(scale: float, depth: int) -> float:
    """The constant c' for which c'^2 L is the sum of (c / n)^2 over L layers."""
    return scale * math.sqrt(sum(n**-2 for n in range(1, depth + 1)) / depth)


# ---- great depth


def deepen(trials: Sequence[Limit]) -> list[Rows]:
    """Layers of one kind and size side by side: d(n) at each depth, and its slope."""
    import torch

    from undertow.measure import row_norms

    layers = read_at(trials[0].depth)
    wanted = {*layers, *(2 * n for n in layers)}
    states = {n: h for n, h in enumerate(_states(trials), start=1) if n in wanted}
    # Of columns, the one that moves most; constant perturbations leave the range of squares.
    moved = [(states[2 * n] - states[n]).flatten(0, 1) for n in layers]
    doubling = [row_norms(each).view(len(trials), -1).amax(1) for each in moved]
    curves = torch.stack(doubling, 1).tolist()
    facts = {
        "diverged": ~torch.isfinite(states[2 * layers[-1]]).flatten(1).all(1),
        "slope": [slope(layers, curve) for curve in curves],
    }
    return [
        [{"layers": n, "doubling": d} | shared for n, d in zip(layers, curve, strict=True)]
        for curve, shared in zip(curves, rows_of(facts), strict=True)
    ]


def _states(trials: Sequence[Limit]) -> Iterator[Float64[Tensor, "E columns width"]]:
    """The columns, as rows, after each layer; what is random is alike for all trials of a seed."""
    import torch

    from undertow.train import spawn_generators

    def number(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[:, None, None]

    first = trials[0]
    own = {trial.seed: spawn_generators(trial.seed, 4) for trial in trials}
    which = torch.tensor([list(own).index(trial.seed) for trial in trials])
    scale, power = number([t.scale for t in trials]), number([t.power for t in trials])
    bias_power = number([trial.bias_power for trial in trials])
    state, biased, free, off = _starts(trials, own)
    # A ReLU cuts at zero where it is free to; elsewhere nothing is cut but what is off.
    floor = torch.where(free, 0.0, -math.inf)
    for before in range(0, first.depth, _BLOCK):
        noise, push = _noise(list(own.values()), first.width, first.kind == "random")
        for index in range(min(_BLOCK, first.depth - before)):
            n = before + index + 1
            size = scale * float(n) ** -power
            if noise is not None:
                state = torch.baddbmm(state, size * state, noise[index][which])
            elif first.kind == "aligned":
                state = state + size * state.mean(2, keepdim=True)
            state = state + biased * float(n) ** -bias_power * push[index][which][:, None]
            state = state.clamp(min=floor)
            if n % 2 == 0:
                state = state.masked_fill(off, 0.0)
            yield state


def _starts(
    trials: Sequence[Limit], own: dict[int, list[Generator]]
) -> tuple[
    Float64[Tensor, "E columns width"],
    Float64[Tensor, "E columns 1"],
    Bool[Tensor, "E 1 1"],
    Bool[Tensor, "E 1 width"],
]:
    """Columns, which of them biases move, whose activations are their own, and what is off."""
    import torch

    width = trials[0].width
    size = (width + 1, width)
    inputs = {s: torch.rand(size, generator=g[0], dtype=torch.float64) for s, g in own.items()}
    halves = {s: torch.randperm(width, generator=g[1]) < width // 2 for s, g in own.items()}
    unit = torch.eye(*size, dtype=torch.float64)
    free = torch.tensor([trial.activations == "own" for trial in trials])[:, None, None]
    switching = torch.tensor([trial.activations == "switching" for trial in trials])
    states = torch.stack([inputs[trial.seed] for trial in trials])
    off = torch.stack([halves[trial.seed] for trial in trials]) & switching[:, None]
    last = torch.arange(width + 1)[:, None] == width
    return torch.where(free, states, unit), (free | last).double(), free, off[:, None]


def _noise(
    own: Sequence[list[Generator]], width: int, perturbed: bool
) -> tuple[Float64[Tensor, "layers seeds m m"] | None, Float64[Tensor, "layers seeds m"]]:
    """Perturbations of spectral norm one, where there are any, and unit biases."""
    import torch

    double, noise = torch.float64, None
    if perturbed:
        drawn = [torch.randn(_BLOCK, width, width, generator=g[2], dtype=double) for g in own]
        noise = torch.stack(drawn, 1)
        noise /= torch.linalg.matrix_norm(noise, 2)[..., None, None]
    vectors = [torch.randn(_BLOCK, width, generator=g[3], dtype=double) for g in own]
    push = torch.stack(vectors, 1)
    return noise, push / push.norm(dim=2, keepdim=True)


def read_at(depth: int) -> list[int]:
    """Depths n, two in each doubling, of which 2 n is reached too."""
    steps = math.floor(2 * math.log2(depth / 2 / BURN_IN) + 1e-9)
    return [round(BURN_IN * 2 ** (step / 2)) for step in range(steps + 1)]


def slope(layers: list[int], doubling: list[float]) -> float | None:
    """Least-squares slope of log d on log n; None where a dead network gives d = 0, or infinity."""
    import numpy as np

    if not all(0 < d < math.inf for d in doubling):
        return None
    return float(np.polyfit(np.log(layers), np.log(doubling), 1)[0])


# ---- trained networks


def train(trials: Sequence[Training]) -> list[Rows]:
    """One initialisation: its accuracies after SGD, those of a network that blew up as zero."""
    from undertow.models import deep_plain_mlp
    from undertow.train import Member

    first = trials[0]
    shape: dict[str, Any] = {"width": first.net_width, "depth": first.net_depth, "init": first.init}
    shape |= {"scale": first.net_scale, "power": first.net_power}

    def model(features: int, classes: int) -> Any:
        sizes = shape | {"inputs": features, "outputs": classes}
        return lambda generator: deep_plain_mlp(**sizes, generator=generator)

    members = [Member(trial.seed, trial.lr) for trial in trials]
    size = min(32, first.images.train_size or 32)
    trained = networks(first.images, model, members, batch_size=size, path="fused")
    trained.ensemble.train(first.steps)
    facts = {
        "diverged": trained.ensemble.diverged,
        "train_accuracy": trained.fit().accuracy.nan_to_num(),
        "test_accuracy": trained.tested().accuracy.nan_to_num(),
    }
    return [[row] for row in rows_of(facts)]
