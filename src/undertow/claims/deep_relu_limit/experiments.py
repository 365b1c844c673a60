"""ReLU networks of great depth in float64, and deep plain networks trained on real data."""

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
    from jaxtyping import Float64
    from torch import Generator, Tensor

_BLOCK = 256  # layers whose noise is drawn at once
_STOPPED = 0.5  # ||W_n - I|| of the networks that converge without W_n -> I

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Limit:
    """One ReLU network of great depth on one input.

    Its `kind` is `aligned`, `random` or `bias` by what is added to the identity; `shrinking`,
    W_n = I/2; `mixing`, W_n = (I + 11'/m)/2; or `mixed-sign`, W_n = I on an input with negative
    coordinates.
    """

    kind: str
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
    """One deep plain MLP; its `init` is `identity-plus-noise` or `he`."""

    images: Images
    init: str
    net_width: int
    net_depth: int
    lr: float
    steps: int
    seed: int


def experiments(knobs: DeepReluLimit, seed: int) -> dict[str, Experiment]:
    """Deep networks at each learning rate; networks of each kind and power for each seed."""
    cells = [{"init": init, "net_depth": depth} for init, depth in nets(knobs)]
    powers = {
        "aligned": (1.0, *knobs.aligned_powers),
        "random": (*DIVERGING, *knobs.random_powers),
        "bias": knobs.bias_powers,
        **dict.fromkeys(("shrinking", "mixing", "mixed-sign"), (0.0,)),
    }
    forms = [{"kind": kind, "power": power} for kind, own in powers.items() for power in own]
    own = seeds(seed, knobs.net_seeds)
    trainings = grid(Training, knobs, cell=cells, lr=knobs.lrs, seed=own)
    limits = grid(Limit, knobs, seed=seeds(seed, knobs.seeds), form=forms)
    together = ("kind", "power", "seed")
    return {
        "networks": Experiment(trainings, train, together=("lr", "seed"), group_size=64),
        "limits": Experiment(limits, deepen, together=together, group_size=64),
    }


def nets(knobs: DeepReluLimit) -> tuple[tuple[str, int], ...]:
    """The trained networks' initialisations and depths."""
    deep, shallow = knobs.net_depth, knobs.shallow_depth
    return ("identity-plus-noise", deep), ("he", deep), ("he", shallow)


def deepen(trials: Sequence[Limit]) -> list[Rows]:
    """Networks of one size side by side: d(n) at each depth, and what holds of all layers."""
    import torch

    from undertow.measure import follow_depth, row_norms
    from undertow.train import spawn_generators

    layers = read_at(trials[0].depth)
    # A seed's generators of its input, of perturbations and of biases.
    own = {trial.seed: spawn_generators(trial.seed, 3) for trial in trials}
    start = _inputs(trials, own)
    path = follow_depth(start, _states(trials, own, start), {*layers, *(2 * n for n in layers)})
    doubling = [row_norms(path.states[2 * n] - path.states[n]) for n in layers]
    curves = torch.stack(doubling, 1).tolist()
    norm, end = row_norms(start), row_norms(path.end)
    facts = {
        "diverged": ~torch.isfinite(end),  # grown out of float64's range
        "excess": path.excess,
        "log_norm_ratio": path.log_norm_ratio,
        "limit_ratio": end / norm,
        "off_average": row_norms(path.end - start.mean(1, keepdim=True)) / norm,
        "last_ratio": doubling[-1] / norm,
        "slope": [slope(layers, curve) for curve in curves],
    }
    return [
        [{"layers": n, "doubling": d} | shared for n, d in zip(layers, curve, strict=True)]
        for curve, shared in zip(curves, rows_of(facts), strict=True)
    ]


def _inputs(trials: Sequence[Limit], own: dict[int, list[Generator]]) -> Float64[Tensor, "E width"]:
    """Coordinates between 0 and 1, those of a seed alike; half of them negated for mixed signs."""
    import torch

    width = trials[0].width
    drawn = {s: torch.rand(width, generator=g[0], dtype=torch.float64) for s, g in own.items()}
    inputs = torch.stack([drawn[trial.seed] for trial in trials])
    mixed = [e for e, trial in enumerate(trials) if trial.kind == "mixed-sign"]
    inputs[mixed, ::2] *= -1
    return inputs


def _states(
    trials: Sequence[Limit], own: dict[int, list[Generator]], state: Float64[Tensor, "E width"]
) -> Iterator[tuple[Float64[Tensor, "E width"], Float64[Tensor, " E"], Float64[Tensor, " E"]]]:
    """After each layer the state, and the layer's ||P_n|| and ||b_n||."""
    import torch

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    def of_kind(*kinds: str) -> Tensor:
        return column([float(trial.kind in kinds) for trial in trials])

    which = torch.tensor([list(own).index(trial.seed) for trial in trials])
    scale, power = column([t.scale for t in trials]), column([t.power for t in trials])
    bias_power = column([trial.bias_power for trial in trials])
    aligned, random, mixing = of_kind("aligned"), of_kind("random"), of_kind("mixing")
    stopped, biased = of_kind("mixing", "shrinking"), of_kind("aligned", "random", "bias")
    for before in range(0, trials[0].depth, _BLOCK):
        noise, push = _noise(list(own.values()), trials[0].width)
        for index in range(min(_BLOCK, trials[0].depth - before)):
            n = before + index + 1
            size, bias = scale * n**-power, biased * n**-bias_power
            turned = (noise[index][which] @ state[..., None])[..., 0]
            change = (size * aligned - _STOPPED * stopped)[:, None] * state
            change += (size * random)[:, None] * turned
            change += (_STOPPED * mixing * state.mean(1))[:, None]
            change += bias[:, None] * push[index][which]
            state = (state + change).clamp(min=0)
            yield state, size * (aligned + random) + _STOPPED * stopped, bias


def _noise(
    own: Sequence[list[Generator]], width: int
) -> tuple[Float64[Tensor, "layers seeds m m"], Float64[Tensor, "layers seeds m"]]:
    """Perturbations of spectral norm one, and unit biases."""
    import torch

    double = torch.float64
    matrices = [torch.randn(_BLOCK, width, width, generator=g[1], dtype=double) for g in own]
    noise = torch.stack(matrices, 1)
    noise /= torch.linalg.matrix_norm(noise, 2)[..., None, None]
    vectors = [torch.randn(_BLOCK, width, generator=g[2], dtype=double) for g in own]
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


def train(trials: Sequence[Training]) -> list[Rows]:
    """One architecture: its accuracies after SGD, those of a network that blew up as zero."""
    from undertow.models import deep_plain_mlp
    from undertow.train import Member

    first = trials[0]
    shape: dict[str, Any] = {"width": first.net_width, "depth": first.net_depth, "init": first.init}

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
