"""Networks trained from scratch, their ranks taken on the way; a few steps in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from undertow.claims.low_rank import LowRank
from undertow.data import Images
from undertow.lab import Experiment, grid, seeds

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from undertow.data import Dataset
    from undertow.train import Ensemble

RULES = ("sgd", "momentum", "adamw")
FINE = 1e-3  # the paper's threshold; the knob is coarser so that `small` can resolve it
_MOMENTUM = 0.9
_ADAM_LR = 5e-4
# Fractions of the steps at which ranks are taken.
_SNAPSHOTS = (0.08, 0.16, 0.25, 0.38, 0.5, 0.62, 0.75, 0.88, 1.0)

Rows = list[dict[str, Any]]
Network = Callable[..., "nn.Module"]


@dataclass(frozen=True)
class Training:
    """One network.

    It takes as many steps as batches of `steps_as` samples need for the epochs: its own batch size
    at fixed epochs, another one's where steps are matched.
    """

    images: Images
    widths: tuple[int, ...]
    device: str
    rule: str
    batch_size: int
    lr: float
    weight_decay: float
    epochs: int
    steps_as: int
    threshold: float
    seed: int


@dataclass(frozen=True)
class Identity:
    """A few steps of a network, `mlp` or `conv`, before and after which weights are compared."""

    images: Images
    widths: tuple[int, ...]
    network: str
    rule: str
    batch_size: int
    lr: float
    weight_decay: float
    steps: int
    seed: int
    burn_in: int = 200


def experiments(knobs: LowRank, seed: int) -> dict[str, Experiment]:
    """Fixed epochs over batch sizes, rates and decays; fixed steps over batch sizes; the rules."""
    own = seeds(seed, knobs.seeds)
    cells = []
    for size in knobs.batch_sizes:
        same_epochs = cell(knobs, batch_size=size, steps_as=size)
        cells += [same_epochs, same_epochs | {"weight_decay": 0.0}, cell(knobs, batch_size=size)]
    cells += [cell(knobs, lr=lr) for lr in knobs.lr]
    cells += [cell(knobs, weight_decay=decay) for decay in knobs.weight_decay]
    rules = [cell(knobs, rule) for rule in RULES]
    training = grid(Training, knobs, cell=cells + rules, seed=own)
    probes = [
        {"network": "mlp", "batch_size": 4, "steps": knobs.identity_steps},
        {"network": "conv", "batch_size": 1, "steps": 2},
    ]
    under = [{name: at[name] for name in ("rule", "lr", "weight_decay")} for at in rules]
    identity = grid(Identity, knobs, probe=probes, rule=under, seed=own)
    alike = ("seed", "lr", "weight_decay")
    return {
        "training": Experiment(training, train, together=alike, group_size=16),
        "identity": Experiment(identity, residuals, together=alike, group_size=16),
    }


def cell(knobs: LowRank, rule: str = "sgd", **changed: Any) -> dict[str, Any]:
    """The baseline at the smallest batch size, but for what is changed.

    Every rule forgets at the same rate per step.
    """
    smallest, lr, decay = min(knobs.batch_sizes), knobs.baseline_lr, knobs.baseline_decay
    if rule == "momentum":
        lr *= 1 - _MOMENTUM
    if rule == "adamw":
        lr, decay = _ADAM_LR, lr * decay / _ADAM_LR
    shared = {"rule": rule, "batch_size": smallest, "steps_as": smallest}
    return shared | {"lr": lr, "weight_decay": decay} | changed


def train(trials: Sequence[Training]) -> list[Rows]:
    """One group: at each snapshot a row for each hidden matrix."""
    first = trials[0]
    loaded = first.images.load()
    (network, inputs), targets = _mlp(first, loaded), loaded.train_targets
    ensemble = _ensemble(trials, network, (inputs, targets), path="fused", device=first.device)
    names = [name for name in ensemble.parameters() if name.endswith("weight")][1:-1]
    start = {name: ensemble.parameters()[name].double().cpu() for name in names}
    total = first.epochs * -(-len(inputs) // first.steps_as)
    rows: list[Rows] = [[] for _ in trials]
    for step in ensemble.read_at(round(part * total) for part in _SNAPSHOTS):
        fit = ensemble.evaluate(inputs, targets)
        test = ensemble.evaluate(loaded.test_inputs.flatten(1), loaded.test_targets)
        now, alive = ensemble.parameters(), ensemble.alive
        kept = [trials[e] for e in alive]
        for layer, name in enumerate(names, start=2):
            found = rank_rows(kept, step, start[name][alive], now[name].double().cpu()[alive])
            ranks = dict(zip(alive, found, strict=True))
            for e, own in enumerate(rows):
                facts = {
                    "step": step,
                    "final": step == total,
                    "diverged": e not in ranks,
                    "train_loss": float(fit.loss[e]),
                    "train_accuracy": float(fit.accuracy[e]),
                    "test_accuracy": float(test.accuracy[e]),
                    "layer": layer,
                }
                own.append(facts | ranks.get(e, {}))
    return rows


def rank_rows(
    trials: Sequence[Training],
    step: int,
    start: Float[Tensor, "E rows cols"],
    weights: Float[Tensor, "E rows cols"],
) -> Rows:
    """Ranks of each network's weights, of the initial residue in them, and of what was learned."""
    import numpy as np

    from undertow import measure, predict

    if not trials:
        return []
    forgotten = np.array([forgetting(trial, step) for trial in trials])
    factors = forgotten[:, 1]
    split = measure.split_matrices(weights, start, weights.new_tensor(factors))
    norm, initial = split.norm, split.initial_spectra
    rows, cols = weights.shape[1:]
    theory = predict.initial_spectrum(rows, cols, predict.initial_std("pytorch", fan_in=cols))
    found: dict[str, Any] = {
        "decay_exponent": forgotten[:, 0],
        "norm": norm,
        "stable_rank": (norm / split.spectra[:, 0]) ** 2,
        "spectrum": split.spectra / norm[:, None],
        "residue_spectrum": split.residue_spectra / norm[:, None],
        "learned_spectrum": split.learned_spectra / norm[:, None],
    }
    for suffix, threshold in (("", trials[0].threshold), ("_fine", FINE)):
        ranks = split.ranks(threshold)
        counts = {
            "rank": ranks.rank,
            "learned_rank": ranks.learned_rank,
            "survivors": ranks.surviving_rank,
            "survivors_theory": predict.surviving_rank(
                theory, decay_factor=factors, final_norm=norm.numpy(), threshold=threshold
            ),
            "survivors_unforgotten": (initial > threshold * norm[:, None]).sum(1),
            "initial_rank": (initial > threshold * initial.norm(dim=1, keepdim=True)).sum(1),
        }
        found |= {name + suffix: count for name, count in counts.items()}
    shape = {"rows": rows, "cols": cols}
    return [
        shape | {name: values[e].tolist() for name, values in found.items()}
        for e in range(len(trials))
    ]


def forgetting(trial: Training, step: int) -> tuple[float, float]:
    """The decay exponent E, and the factor that is left of the initial weights."""
    from undertow import predict

    lr, decay, beta = trial.lr, trial.weight_decay, _beta(trial.rule)
    exponent = predict.decay_exponent(lr, decay, step, momentum=beta)
    # Of momentum the factor is an approximation; it is exact for the others.
    return exponent, math.exp(-exponent) if beta else predict.decay_factor(lr, decay, step)


def _beta(rule: str) -> float:
    return _MOMENTUM if rule == "momentum" else 0.0


def residuals(trials: Sequence[Identity]) -> list[Rows]:
    """One group: the rank of W_T - (1 - lr weight_decay)^n W_(T-n) beside its bound, n m_l B."""
    import torch

    from undertow import predict

    first = trials[0]
    loaded = first.images.load()
    conv = first.network == "conv"
    network, inputs, patches = _conv_net(loaded) if conv else (*_mlp(first, loaded), 1)
    options = {"path": "loop" if conv else "fused", "dtype": torch.float64}
    ensemble = _ensemble(trials, network, (inputs, loaded.train_targets), **options)
    name = [name for name in ensemble.parameters() if name.endswith("weight")][-2]
    earlier, later = (
        ensemble.parameters()[name].flatten(2).numpy()
        for _ in ensemble.read_at((first.burn_in, first.burn_in + first.steps))
    )
    shape = {"patches": patches, "rows": later.shape[1], "cols": later.shape[2]}
    rows = []
    for trial, after, before in zip(trials, later, earlier, strict=True):
        names = ("lr", "weight_decay", "steps", "batch_size")
        own = {name: getattr(trial, name) for name in names}
        found = predict.rank_identity(after, before, patches=patches, **own)
        rows.append([shape | {"residual_rank": found.rank, "residual_bound": found.bound}])
    return rows


def _mlp(trial: Training | Identity, loaded: Dataset) -> tuple[Network, Tensor]:
    """A perceptron, and its inputs."""
    from undertow import models

    inputs = loaded.train_inputs.flatten(1)
    return partial(models.mlp, (inputs.shape[1], *trial.widths, loaded.num_classes)), inputs


def _conv_net(loaded: Dataset) -> tuple[Network, Tensor, int]:
    """A convolutional network, its inputs, and m_l: the positions of its last kernel."""
    from torch.nn import functional

    from undertow import models, predict

    inputs = loaded.train_inputs
    while inputs.shape[-1] > 8:  # a larger image has too many positions to bound anything
        inputs = functional.avg_pool2d(inputs, 2, ceil_mode=True)
    (_, channels, side, _), half = inputs.shape, math.ceil(inputs.shape[-1] / 2)
    network = partial(models.conv_net, (channels, side, side), (16, 64), loaded.num_classes)
    return network, inputs, predict.patch_count((half, half), 3, stride=2, padding=1)


def _ensemble(
    trials: Sequence[Any], network: Network, data: tuple[Tensor, Tensor], **options: Any
) -> Ensemble:
    """The group's networks; the engine is fixed, so that the same trials give the same records."""
    from torch.nn import functional

    from undertow.train import Ensemble, Member, rules

    first = trials[0]
    beta = _beta(first.rule)
    members = [Member(trial.seed, trial.lr, trial.weight_decay, momentum=beta) for trial in trials]
    options |= {"batch_size": first.batch_size, "rule": getattr(rules, first.rule)}
    return Ensemble(
        lambda generator: network(generator=generator),
        functional.cross_entropy,
        data,
        members,
        **options,
    )
