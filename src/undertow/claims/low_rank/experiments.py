"""Networks trained from scratch, their ranks taken on the way; a few steps in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from undertow.claims import perceptrons
from undertow.claims.low_rank import LowRank
from undertow.data import Images
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from undertow.train import Ensemble

RULES = {"sgd": 0.0, "momentum": 0.9, "adamw": 0.0}  # update rules, and the momentum of each
FINE = 1e-3  # the paper's threshold; the knob is coarser so that `small` can resolve it
_ADAM_LR = 5e-4
# Fractions of the steps at which ranks are taken.
_SNAPSHOTS = (0.08, 0.16, 0.25, 0.38, 0.5, 0.62, 0.75, 0.88, 1.0)

Rows = list[dict[str, Any]]


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
        "identity": Experiment(identity, residuals, together=("seed",), group_size=16),
    }


def cell(knobs: LowRank, rule: str = "sgd", **changed: Any) -> dict[str, Any]:
    """The baseline at the smallest batch size, but for what is changed.

    Every rule forgets at the same rate per step.
    """
    smallest, decay = min(knobs.batch_sizes), knobs.baseline_decay
    lr = knobs.baseline_lr * (1 - RULES[rule])
    if rule == "adamw":
        lr, decay = _ADAM_LR, lr * decay / _ADAM_LR
    shared = {"rule": rule, "batch_size": smallest, "steps_as": smallest}
    return shared | {"lr": lr, "weight_decay": decay} | changed


def train(trials: Sequence[Training]) -> list[Rows]:
    """One group: at each snapshot a row for each hidden matrix."""
    first = trials[0]
    networks = perceptrons(
        first.images, first.widths, path="fused", device=first.device, **_options(trials)
    )
    ensemble = networks.ensemble
    names = [name for name in ensemble.parameters() if name.endswith("weight")][1:-1]
    start = {name: ensemble.parameters()[name].double().cpu() for name in names}
    total = first.epochs * -(-networks.train.shape[1] // first.steps_as)
    rows: list[Rows] = [[] for _ in trials]
    for step in ensemble.read_at(round(part * total) for part in _SNAPSHOTS):
        fit, test = networks.fit(), networks.tested()
        facts = {
            "step": step,
            "final": step == total,
            "diverged": ensemble.diverged,
            "train_loss": fit.loss,
            "train_accuracy": fit.accuracy,
            "test_accuracy": test.accuracy,
        }
        now, alive = ensemble.parameters(), ensemble.alive
        kept = [trials[e] for e in alive]
        for layer, name in enumerate(names, start=2):
            found = rank_rows(kept, step, start[name][alive], now[name].double().cpu()[alive])
            ranks = dict(zip(alive, found, strict=True))
            for e, own in enumerate(rows_of(facts | {"layer": layer})):
                rows[e].append(own | ranks.get(e, {}))
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
    hyper = [(trial.lr, trial.weight_decay, step) for trial in trials]
    beta = RULES[trials[0].rule]
    factors = np.array([predict.decay_factor(*own, momentum=beta) for own in hyper])
    split = measure.split_matrices(weights, start, weights.new_tensor(factors))
    norm, initial = split.norm, split.initial_spectra
    rows, cols = weights.shape[1:]
    theory = predict.initial_spectrum(rows, cols, predict.initial_std("pytorch", fan_in=cols))
    facts: dict[str, Any] = {
        "rows": rows,
        "cols": cols,
        "decay_exponent": [predict.decay_exponent(*own, momentum=beta) for own in hyper],
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
        facts |= {name + suffix: count for name, count in counts.items()}
    return rows_of(facts)


def residuals(trials: Sequence[Identity]) -> list[Rows]:
    """One group: the rank of W_T - (1 - lr weight_decay)^n W_(T-n) beside its bound, n m_l B."""
    from undertow import predict

    first = trials[0]
    ensemble, patches = _in_double(trials)
    name = [name for name in ensemble.parameters() if name.endswith("weight")][-2]
    earlier, later = (
        ensemble.parameters()[name].flatten(2).numpy()
        for _ in ensemble.read_at((first.burn_in, first.burn_in + first.steps))
    )
    names = ("lr", "weight_decay", "steps", "batch_size")
    hyper: dict[str, Any] = {name: getattr(first, name) for name in names} | {"patches": patches}
    found = [predict.rank_identity(*pair, **hyper) for pair in zip(later, earlier, strict=True)]
    facts = {
        "patches": patches,
        "rows": later.shape[1],
        "cols": later.shape[2],
        "residual_rank": [own.rank for own in found],
        "residual_bound": [own.bound for own in found],
    }
    return [[row] for row in rows_of(facts)]


def _in_double(trials: Sequence[Identity]) -> tuple[Ensemble, int]:
    """The networks in float64, and m_l: the positions that their last but one layer is applied to.

    The engine is fixed here as in `train`, so that the same trials give the same records.
    """
    import torch
    from torch.nn import functional

    from undertow import models, predict
    from undertow.train import Ensemble

    first, options = trials[0], _options(trials) | {"dtype": torch.float64}
    if first.network == "mlp":
        return perceptrons(first.images, first.widths, path="fused", **options).ensemble, 1
    drawn = first.images.draw([trial.seed for trial in trials])
    inputs = drawn.inputs
    while inputs.shape[-1] > 8:  # a larger image has too many positions to bound anything
        inputs = functional.avg_pool2d(inputs, 2, ceil_mode=True)
    (_, channels, side, _), half = inputs.shape, math.ceil(inputs.shape[-1] / 2)
    make = partial(models.conv_net, (channels, side, side), (16, 64), drawn.num_classes)
    ensemble = Ensemble(
        lambda generator: make(generator=generator),
        functional.cross_entropy,
        (inputs, drawn.targets),
        samples=drawn.train,
        path="loop",
        **options,
    )
    return ensemble, predict.patch_count((half, half), 3, stride=2, padding=1)


def _options(trials: Sequence[Training] | Sequence[Identity]) -> dict[str, Any]:
    """What a group's trials say of its ensemble."""
    from undertow.train import Member, rules

    first = trials[0]
    beta = RULES[first.rule]
    return {
        "members": [Member(t.seed, t.lr, t.weight_decay, momentum=beta) for t in trials],
        "batch_size": first.batch_size,
        "rule": getattr(rules, first.rule),
    }
