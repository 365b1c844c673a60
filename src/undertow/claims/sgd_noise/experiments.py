"""Networks at rest and their minibatch gradients; fitted networks, and how far an epoch moves them.

Of SGD an epoch is taken in several data orders from the same weights; what they do not share is
noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from undertow.claims import perceptrons
from undertow.claims.sgd_noise import LR, SHRINK_BATCH, SgdNoise
from undertow.data import Images
from undertow.lab import Experiment, grid, seeds

if TYPE_CHECKING:
    from torch import Tensor, nn

_MOMENTUM = 0.95  # heavy ball comes to rest at the same points as descent
_ORDERS = 16  # data orders from the same weights: one pair of them tells little of their spread
_OTHER_ORDER = 2**32  # between the seeds of two data orders, so that no two networks share one

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Rest:
    """A network brought to rest by full-batch descent, then its minibatch gradients."""

    images: Images
    width: int
    weight_decay: float
    steps: int
    batch_sizes: tuple[int, ...]
    batches: int
    seed: int


@dataclass(frozen=True)
class Shrinking:
    """A fitted network trained on with decay: how far an epoch moves it, and in which direction."""

    images: Images
    weight_decay: float
    fit_steps: int
    late_epochs: int
    seed: int


def experiments(knobs: SgdNoise, seed: int) -> dict[str, Experiment]:
    """Networks at rest over weight decays, and displacements with decay and without."""
    own, decays = seeds(seed, knobs.seeds), (0.0, knobs.shrink_decay)
    rest = grid(Rest, knobs, weight_decay=knobs.weight_decay, seed=own)
    more = replace(knobs.images, train_size=knobs.shrink_samples)
    moved = grid(Shrinking, knobs, images=[more], weight_decay=decays, seed=own)
    return {
        "rest": Experiment(rest, come_to_rest, together=("weight_decay", "seed"), group_size=25),
        "displacement": Experiment(moved, displace),
    }


def come_to_rest(trials: Sequence[Rest]) -> list[Rows]:
    """All decays and seeds: the gradients of minibatches where that of all data is nearly zero."""
    import torch

    from undertow.train import Member, rules

    first = trials[0]
    networks = perceptrons(
        first.images,
        (first.width, first.width),
        [Member(t.seed, LR, t.weight_decay, _MOMENTUM, order="full") for t in trials],
        activation="tanh",
        batch_size=1,  # of no account: a step takes all images
        rule=rules.momentum,
        path="fused",
        dtype=torch.float64,
    )
    ensemble = networks.ensemble.train(first.steps)
    accuracy = networks.fit().accuracy.tolist()
    records: list[Rows] = [[{"diverged": True, "train_accuracy": own}] for own in accuracy]
    for e in ensemble.alive:
        facts = {"diverged": False, "train_accuracy": accuracy[e]}
        records[e] = [
            facts | row for row in at_floor(trials[e], ensemble.module(e), networks.data_of(e))
        ]
    return records


def at_floor(trial: Rest, module: nn.Module, data: tuple[Tensor, Tensor]) -> Rows:
    """Regularised minibatch gradients of every matrix against the floor of its spectrum."""
    import torch
    from torch.nn import functional

    from undertow import measure
    from undertow.objective import Objective

    objective, count = Objective(module, functional.cross_entropy, data), len(data[0])
    norms = partial(measure.batch_gradient_norms, objective, weight_decay=trial.weight_decay)
    residual, singles = norms(torch.arange(count)[None]), torch.arange(count)[:, None]
    equal, generator = torch.ones(trial.batches, count), torch.Generator().manual_seed(trial.seed)
    rows = []
    for size in trial.batch_sizes:
        drawn = singles if size == 1 else torch.multinomial(equal, size, generator=generator)
        found = norms(drawn)
        floors = measure.noise_floor(module, weight_decay=trial.weight_decay, batch_size=size).table
        for layer, (name, floor) in enumerate(floors.select("name", "floor").iter_rows(), 1):
            noise = found[name]
            rows.append(
                {
                    "layer": layer,
                    "batch_size": size,
                    # Where a batch can have full rank the floor is 0, and nothing is tested.
                    "pairs": len(noise) if floor > 0 else 0,
                    "violations": int((~(noise >= floor * (1 - 1e-9))).sum()),
                    "floor": floor,
                    "least": float(noise.min()),
                    "rms": float(noise.square().mean().sqrt()),
                    "residual": float(residual[name]),
                }
            )
    return rows


def displace(trial: Shrinking) -> Rows:
    """An epoch's displacement by SGD and by full-batch descent: fitted, and after training on.

    Late, descent goes on from where it got to itself, and once more from where SGD did.
    """
    import torch
    from torch.nn import functional

    from undertow import measure
    from undertow.train import Ensemble, Member

    options: dict[str, Any] = {"batch_size": SHRINK_BATCH, "path": "fused", "dtype": torch.float64}
    fit = perceptrons(trial.images, (64, 64), [Member(trial.seed, LR)], **options)
    data, own, decay = fit.data_of(0), [trial.seed], trial.weight_decay

    def onward(model: nn.Module, orders: Sequence[int], order: Any) -> Ensemble:
        members = [Member(seed, LR, decay, order=order) for seed in orders]
        return Ensemble(model, functional.cross_entropy, data, members, **options)

    per_epoch, late = len(data[0]) // SHRINK_BATCH, trial.late_epochs
    start, unfit = fit.ensemble.train(trial.fit_steps).module(0), not fit.ensemble.alive
    readings = [("SGD", 0, start, unfit), ("GD", 0, start, unfit)]
    if decay:
        steps = late * per_epoch
        sgd, descent = (onward(start, own, order).train(steps) for order in ("epochs", "full"))
        for method, there in {"SGD": sgd, "GD": descent, "GD from SGD": sgd}.items():
            readings.append((method, late, there.module(0), unfit or not there.alive))
    orders = [trial.seed + k * _OTHER_ORDER for k in range(1, _ORDERS + 1)]
    rows = []
    for method, epoch, model, lost in readings:
        runs = onward(model, orders, "epochs") if method == "SGD" else onward(model, own, "full")
        runs.train(per_epoch)
        moved = measure.displacement(model, *map(runs.module, range(len(runs.members))))
        rows.append(
            {
                "method": method,
                "epoch": epoch,
                "diverged": lost or len(runs.alive) < len(runs.members),
                "displacement": moved.total,
                "radial": moved.radial,
                "tangential": moved.tangential,
                "noise": moved.noise,
                "shrinkage": per_epoch * LR * decay,
            }
        )
    return rows
