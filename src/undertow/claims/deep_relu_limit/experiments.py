"""ReLU networks of great depth in float64, and deep plain networks trained on real data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undertow.claims.deep_relu_limit import BURN_IN, DIVERGING, DeepReluLimit
from undertow.data import Images
from undertow.lab import Experiment, grid, seeds

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
    networks = grid(Training, knobs, cell=cells, lr=knobs.lrs, seed=own)
    limits = grid(Limit, knobs, seed=seeds(seed, knobs.seeds), form=forms)
    together = ("kind", "power", "seed")
    return {
        "networks": Experiment(networks, train, together=("lr", "seed"), group_size=64),
        "limits": Experiment(limits, deepen, together=together, group_size=64),
    }


def nets(knobs: DeepReluLimit) -> tuple[tuple[str, int], ...]:
    """The trained networks' initialisations and depths."""
    deep, shallow = knobs.net_depth, knobs.shallow_depth
    return ("identity-plus-noise", deep), ("he", deep), ("he", shallow)


def deepen(trials: Sequence[Limit]) -> list[Rows]:
    """Networks of one size side by side: d(n) at each depth, and what holds of all layers."""
    import torch

    from undertow.train import spawn_generators

    layers = read_at(trials[0].depth)
    wanted = {*layers, *(2 * n for n in layers)}
    # A seed's generators of its input, of perturbations and of biases.
    own = {trial.seed: spawn_generators(trial.seed, 3) for trial in trials}
    start = _inputs(trials, own)
    norm = start.norm(dim=1)
    kept: dict[int, Tensor] = {}
    excess = torch.full_like(norm, -math.inf)
    log_growth, pushed = torch.zeros_like(norm), norm.clone()
    state = start
    for n, (after, perturbation, bias) in enumerate(_states(trials, own, start), start=1):
        size = _norm(state)
        over = _norm(after - state) - perturbation * size - bias
        # A state that shrinks to nothing has only rounding errors in proportion to its start.
        excess = torch.maximum(excess, over / torch.maximum(size, norm))
        log_growth += perturbation.log1p()
        pushed += bias
        state = after
        if n in wanted:
            kept[n] = state
    doubling = torch.stack([_norm(kept[2 * n] - kept[n]) for n in layers])
    end = _norm(state)
    facts = {
        "diverged": ~torch.isfinite(end),  # grown out of float64's range
        "excess": excess,
        "log_norm_ratio": end.log() - log_growth - pushed.log(),
        "limit_ratio": end / norm,
        "off_average": _norm(state - start.mean(1, keepdim=True)) / norm,
        "last_ratio": doubling[-1] / norm,
    }
    rows = []
    for e, d in enumerate(doubling.T.tolist()):
        shared = {name: values[e].item() for name, values in facts.items()}
        shared["slope"] = slope(layers, d)
        rows.append(
            [{"layers": n, "doubling": at} | shared for n, at in zip(layers, d, strict=True)]
        )
    return rows


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


def _norm(vectors: Float64[Tensor, "E m"]) -> Float64[Tensor, " E"]:
    """Norms of vectors whose squares may overflow: constant perturbations' do."""
    import torch

    size = vectors.abs().amax(1).clamp(min=torch.finfo(vectors.dtype).tiny)
    return size * (vectors / size[:, None]).norm(dim=1)


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
    from torch.nn import functional

    from undertow.models import deep_plain_mlp
    from undertow.train import Ensemble, Member

    first = trials[0]
    loaded = first.images.load()
    inputs, targets = loaded.train_inputs.flatten(1), loaded.train_targets
    shape: dict[str, Any] = {"inputs": inputs.shape[1], "outputs": loaded.num_classes}
    shape |= {"width": first.net_width, "depth": first.net_depth, "init": first.init}
    ensemble = Ensemble(
        lambda generator: deep_plain_mlp(**shape, generator=generator),
        functional.cross_entropy,
        (inputs, targets),
        [Member(trial.seed, trial.lr) for trial in trials],
        batch_size=min(32, len(inputs)),
        path="fused",
    )
    ensemble.train(first.steps)
    fit = ensemble.evaluate(inputs, targets).accuracy.tolist()
    test = ensemble.evaluate(loaded.test_inputs.flatten(1), loaded.test_targets).accuracy.tolist()
    alive = set(ensemble.alive)
    return [
        [
            {
                "diverged": e not in alive,
                "train_accuracy": fit[e] if e in alive else 0.0,
                "test_accuracy": test[e] if e in alive else 0.0,
            }
        ]
        for e in range(len(trials))
    ]
