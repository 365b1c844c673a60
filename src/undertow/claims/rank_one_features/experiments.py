"""Committees from a random start, near equal neurons, and beyond the theorem; ordinary networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from undertow import predict
from undertow.claims.rank_one_features import READINGS, SHAKEN, RankOneFeatures
from undertow.data import Images
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from undertow.train import CommitteeMachine

# Activations, and common pre-activations with phi''' above, at and below zero.
SIGN_POINTS = {
    "cubic": (0.5,),
    "quadratic": (0.5,),
    "tanh": (0.3, 1.0),
    "softplus": (-1.0, 1.0),
    "gelu": (-0.3, 0.5),
}
TYPICAL = 0.55  # the mean size of the common pre-activations that are drawn
INSIDE = {"target": 1.2, "spread": 0.15}  # all neurons of a tanh where phi''' > 0, beyond 0.66
_NEAR = 0.01  # spread of neurons that start near one another
_EQUAL_GOALS, _UNEQUAL_GOALS = (0.3, 0.8), (0.3, 1.5)  # what is drawn where there is no target
_UNEQUAL = (0.5, 1.5)  # sizes of output weights, of either sign

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Committee:
    """One network with fixed output weights, trained in its pre-activations.

    `inputs` are orthonormal, independent, crowded (more of them than dimensions) or digits; `noise`
    is on the labels (label), on the weights (isotropic) or none; `weights` of the output are all
    one (equal) or unequal, of both signs. `target` is the common pre-activation at which equal
    neurons fit, for all inputs; None draws one for each. `spread` is that of the neurons around it
    at the start; None starts anywhere.
    """

    lr: float
    noise_std: float
    steps: int
    samples: int
    features: int
    neurons: int
    seed: int
    activation: str = "cubic"
    inputs: str = "orthonormal"
    noise: str = "label"
    weights: str = "equal"
    target: float | None = None
    spread: float | None = None


@dataclass(frozen=True)
class Net:
    """An ordinary network of one hidden layer that tells a 3 from an 8 by squared error."""

    activation: str
    noise: str
    lr: float
    steps: int
    samples: int
    neurons: int
    noise_std: float
    seed: int


def experiments(knobs: RankOneFeatures, seed: int) -> dict[str, Experiment]:
    """From a random start, near equal neurons at several rates and points; beyond; networks."""
    own, noises = seeds(seed, knobs.seeds), ("label", "none")
    # Of random inputs the most curved direction has about so many times the curvature of one.
    crowding = (1 + math.sqrt(knobs.samples / knobs.features)) ** 2
    cubic = far(knobs, 2 * knobs.lr_curvature / crowding)
    tanh = far(knobs, activation="tanh")
    started = [cubic, cubic | {"inputs": "independent"}, cubic | {"noise": "none"}, tanh]
    steep = far(knobs, knobs.lr_curvature / 2, activation="sinh")
    started += [steep | {"weights": "unequal"}]
    started += [far(knobs, activation="tanh", **INSIDE)]
    # More inputs, more curvature.
    dense = {"inputs": "crowded", "samples": 2 * knobs.features, "lr": cubic["lr"] / 2}
    digits = {"inputs": "digits", "target": 0.5, "samples": knobs.digits, "features": 64}
    two = ("orthonormal", "independent")
    slow = [near(knobs, curvature) for curvature in knobs.lr_curvatures]
    points = [
        near(knobs, knobs.lr_curvature, activation=name, target=target)
        for name, at in SIGN_POINTS.items()
        for target in at
    ]
    points.append(points[0] | {"noise": "isotropic", "steps": points[0]["steps"] // SHAKEN})
    small = {"samples": 100, "neurons": 32, "noise_std": 0.5, "lr": 0.1, "steps": knobs.net_steps}
    nets = [small | {"activation": name} for name in ("tanh", "gelu", "softplus")]

    collapse = grid(Committee, knobs, cell=started, seed=own)
    beyond = grid(Committee, knobs, cell=[cubic | dense], seed=own)
    if knobs.digits:
        real = [kind | digits for kind in (cubic, tanh)]
        beyond += grid(Committee, knobs, cell=real, noise=noises, seed=own)
    rates = grid(Committee, knobs, cell=slow, inputs=two, seed=own)
    trained = grid(Net, knobs, cell=nets if knobs.net_steps else (), noise=noises, seed=own)
    signs = grid(Committee, knobs, cell=points, seed=own)
    together = ("inputs", "noise", "lr", "noise_std", "seed")
    return {
        "collapse": Experiment(collapse, follow, together, group_size=40),
        "beyond": Experiment(beyond, follow, ("noise", "seed"), group_size=40),
        "rates": Experiment(rates, follow, together, group_size=80),
        "nets": Experiment(trained, train_nets, ("seed",), group_size=40),
        "signs": Experiment(signs, follow, ("seed",), group_size=40),
    }


def noisy(
    knobs: RankOneFeatures, curvature: float, activation: str, at: float
) -> dict[str, float | str]:
    """The lr of an lr x curvature of equal neurons at `at`, 2 m phi'(at)^2, and what noise gives
    their pre-activation, an autoregression, the standard deviation `fluctuation`.
    """
    slope = float(predict.activation_derivatives(activation, at)[0])
    return {
        "activation": activation,
        "lr": curvature / (2 * knobs.neurons * slope**2),
        "noise_std": knobs.fluctuation * knobs.neurons * slope * math.sqrt(2 / curvature),
    }


def far(
    knobs: RankOneFeatures,
    curvature: float = 0.0,
    *,
    activation: str = "cubic",
    **where: Any,
) -> dict[str, Any]:
    """Neurons that start far from one another, for `far_time` units of 1 / (2 lr^2 s^2)."""
    at = where.get("target", TYPICAL)
    own: dict[str, Any] = noisy(knobs, curvature or knobs.lr_curvature, activation, at)
    steps = knobs.far_time / (2 * (own["lr"] * own["noise_std"]) ** 2)
    return own | where | {"steps": max(READINGS, round(steps))}


def near(
    knobs: RankOneFeatures, curvature: float, *, activation: str = "cubic", **where: Any
) -> dict[str, Any]:
    """Neurons that start near one another, until their spread has moved by so many e-folds.

    Where nothing is to draw them, as long as the cubic's.
    """
    at = where.get("target", TYPICAL)
    own: dict[str, Any] = noisy(knobs, curvature, activation, at)
    first, third = predict.activation_derivatives(activation, at)
    rate = 2 * (own["lr"] * own["noise_std"]) ** 2 * abs(float(first * third) or 1.0)
    steps = max(SHAKEN * READINGS, round(knobs.decay / rate))
    return own | where | {"spread": _NEAR, "steps": steps}


def read_at(steps: int) -> list[int]:
    """The steps at which a run is read."""
    return [round(steps * index / READINGS) for index in range(READINGS + 1)]


# ---- committees


def follow(trials: Sequence[Committee]) -> list[Rows]:
    """Runs of one activation, size and length side by side, a record for every reading."""
    import torch

    first = trials[0]
    committee, z, flattest, directions = assembled(trials)
    lr = torch.tensor([trial.lr for trial in trials], dtype=torch.float64)
    loud = [trial.noise_std * (trial.noise != "none") for trial in trials]
    given: dict[str, Any] = {"lr": lr, "noise_std": torch.tensor(loud, dtype=torch.float64)}
    path, shaken = committee.at_rest(z), dict(given)
    z = path
    if first.noise == "isotropic":  # of as much variance in all as label noise has at the start
        steep = committee.slopes(z).square().mean((1, 2)).sqrt()
        shaken |= {"noise_std": lr * given["noise_std"] * 2 * steep, "on": "preactivations"}
    generators = [torch.Generator().manual_seed(2**40 + trial.seed) for trial in trials]
    known = [closed_forms(*own) for own in zip(trials, committee.gram, flattest[:, 0], strict=True)]
    limit = {
        "least_trace": committee.hessian_trace(flattest),
        "flattest_ratio": ranks(flattest)["rank_ratio"],
    }
    rows: list[Rows] = [[] for _ in trials]
    for before, stop in pairwise((0, *read_at(first.steps))):
        z = committee.descend(z, stop - before, generators, **shaken)
        path = committee.flatten(path, stop - before, **given)
        settled = committee.at_rest(z)
        facts = (
            ranks(settled)
            | {"step": stop, "trace": committee.hessian_trace(settled)}
            | {"bend_ratio": ranks(committee.bends(settled))["rank_ratio"]}
            | limit
            | spreads(settled, flattest, directions)
            | {f"path_{name}": own for name, own in spreads(path, flattest, directions).items()}
        )
        for own, shared, row in zip(rows, known, rows_of(facts), strict=True):
            own.append(shared | row)
    return rows


def assembled(
    trials: Sequence[Committee],
) -> tuple[CommitteeMachine, Tensor, Tensor, Tensor]:
    """The networks, their starts and flattest fits `[runs, m, n]`, and the `modes` of each."""
    import torch

    from undertow.train import CommitteeMachine

    parts = [start(trial) for trial in trials]
    z, gram, flattest, weights = (torch.stack(own) for own in zip(*parts, strict=True))
    committee = CommitteeMachine.fitting(trials[0].activation, gram, flattest, weights)
    each = zip(trials, gram, flattest[:, 0], strict=True)
    return committee, z, flattest, torch.stack([modes(*own) for own in each])


def start(trial: Committee) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pre-activations `[m, n]`, X X^T `[n, n]`, the flattest fit `[m, n]` and output weights."""
    import torch

    generator = torch.Generator().manual_seed(trial.seed)
    inputs, signs = _inputs(trial, generator)
    theta = normals(generator, trial.neurons, trial.features)
    if trial.inputs == "crowded":  # equal neurons must fit more targets than they have weights
        goal = normals(generator, 1, trial.features) @ inputs.mT
    elif trial.target is not None:
        goal = trial.target * signs
    else:
        low, high = _EQUAL_GOALS if trial.weights == "equal" else _UNEQUAL_GOALS
        drawn = torch.rand(1, trial.samples, generator=generator).double()
        goal = signs * (low + (high - low) * drawn)
    z, flattest = theta @ inputs.mT, goal.expand(trial.neurons, -1)
    weights = torch.ones(trial.neurons, dtype=torch.float64)
    if trial.weights == "unequal":
        low, high = _UNEQUAL
        sizes = low + (high - low) * torch.rand(trial.neurons, generator=generator).double()
        weights = sizes * normals(generator, trial.neurons).sign()
        flattest = torch.asinh(goal.sinh() / weights[:, None])  # sinh'' = c / a
    if trial.spread is not None:
        z = goal + trial.spread * z
    return z, inputs @ inputs.mT, flattest, weights


def _inputs(trial: Committee, generator: Generator) -> tuple[Tensor, Tensor]:
    """Inputs of norm one `[n, d]`, and the signs of their targets `[1, n]`."""
    import torch

    if trial.inputs == "digits":
        images, labels = Images().load().unit_vectors(centered=True)
        chosen = torch.randperm(len(images), generator=generator)[: trial.samples]
        return images[chosen], 1.0 - 2.0 * (labels[chosen][None] % 2).double()
    drawn = normals(generator, trial.samples, trial.features)
    signs = normals(generator, 1, trial.samples).sign()
    if trial.target is not None:
        signs = torch.ones_like(signs)
    if trial.inputs == "orthonormal":
        return torch.linalg.qr(drawn.mT).Q.mT, signs
    return torch.nn.functional.normalize(drawn), signs


def normals(generator: Generator, *size: int) -> Tensor:
    """Standard normal numbers in float64."""
    import torch

    return torch.randn(*size, generator=generator, dtype=torch.float64)


def closed_forms(trial: Committee, gram: Tensor, goal: Tensor) -> dict[str, float | None]:
    """Rates of neurons near one another, mean and slowest; and of any start the least, per step."""
    names = ("predicted", "predicted_slowest", "predicted_at_lr", "predicted_least")
    beyond = trial.inputs in ("crowded", "digits") or trial.weights != "equal"
    if beyond or trial.noise != "label":
        return dict.fromkeys(names)

    def own(**given: Any) -> Any:
        return predict.rank_one_rate(trial.lr, trial.noise_std, **given)

    where: dict[str, Any] = {"activation": trial.activation, "preactivation": goal.numpy()}
    rates, _ = predict.rank_one_modes(own(**where), gram.numpy())
    at_lr = None
    if trial.inputs == "orthonormal":
        at_lr = float(own(**where, neurons=trial.neurons).mean())
    least = own(derivatives=(1.0, 1.0))
    slowest = float(np.linalg.eigvalsh(gram.numpy())[0]) * float(least)
    theorem = slowest if trial.activation == "cubic" else None  # phi' and phi''' at least one
    return dict(zip(names, (float(rates.mean()), float(rates[0]), at_lr, theorem), strict=True))


def modes(trial: Committee, gram: Tensor, goal: Tensor) -> Tensor:
    """Directions in the space of inputs `[n, n]` whose spreads decay on their own, slowest first.

    Near equal neurons; the inputs themselves where there are none.
    """
    import torch

    if trial.inputs != "independent" or trial.weights != "equal":
        return torch.eye(len(gram), dtype=torch.float64)
    given: dict[str, Any] = {"activation": trial.activation, "preactivation": goal.numpy()}
    rates = predict.rank_one_rate(trial.lr, trial.noise_std, **given)
    return torch.from_numpy(predict.rank_one_modes(np.asarray(rates), gram.numpy())[1])


def ranks(features: Tensor) -> dict[str, Tensor]:
    """Of features `[runs, rows, columns]`: s2 / s1 and the stable rank, NaN where not finite."""
    import torch

    finite = features.isfinite().flatten(1).all(1)
    singular = torch.linalg.svdvals(torch.where(finite[:, None, None], features, 0.0))
    relative = singular / singular[:, :1]
    return {
        "diverged": ~finite,
        "rank_ratio": relative[:, 1],
        "stable_rank": relative.square().sum(1),
    }


def spreads(z: Tensor, flattest: Tensor, directions: Tensor) -> dict[str, Tensor]:
    """How far neurons are from the flattest fit, and from one another along `directions`."""
    spread = (z @ directions.mT).std(1)
    return {
        "apart": (z - flattest).square().mean((1, 2)).sqrt(),
        "widest": spread.amax(1),
        "narrowest": spread.amin(1),
        "log_spread": spread.log().mean(1),
        "log_spread_slowest": spread[:, 0].log(),
    }


# ---- ordinary networks


def train_nets(trials: Sequence[Net]) -> list[Rows]:
    """All layers are trained, on minibatches, by the library's own rules."""
    from torch.nn import functional

    from undertow import measure, models
    from undertow.objective import Objective
    from undertow.train import Ensemble, Member, rules

    first = trials[0]
    inputs, targets = threes_and_eights(first.samples)
    sizes, noisy = (inputs.shape[1], first.neurons, 1), first.noise == "label"
    ensemble = Ensemble(
        lambda generator: models.mlp(sizes, activation=first.activation, generator=generator),
        functional.mse_loss,
        (inputs, targets),
        [Member(trial.seed, trial.lr) for trial in trials],
        batch_size=10,
        rule=rules.label_noise(rules.sgd, std=first.noise_std) if noisy else rules.sgd,
        path="fused",
        dtype=inputs.dtype,
    )
    rows: list[Rows] = [[] for _ in trials]
    for step in ensemble.read_at(read_at(first.steps)):
        weight, bias, *_ = ensemble.parameters().values()
        traces = [math.nan] * len(trials)
        for e in ensemble.alive:
            objective = Objective(ensemble.module(e), functional.mse_loss, (inputs, targets))
            traces[e] = measure.hessian_trace(objective, curvature="ggn").value
        facts = ranks(inputs @ weight.mT + bias[:, None]) | {
            "step": step,
            "trace": traces,
            "loss": ensemble.evaluate(inputs, targets).loss,
        }
        for own, row in zip(rows, rows_of(facts), strict=True):
            own.append(row)
    return rows


def threes_and_eights(count: int) -> tuple[Tensor, Tensor]:
    """Images of norm two `[count, 64]`, and 1 for a 3, -1 for an 8 `[count, 1]`."""
    import torch

    images, labels = Images().load().unit_vectors(centered=True)
    chosen = torch.cat([(labels == digit).nonzero()[: count // 2, 0] for digit in (3, 8)])
    return 2 * images[chosen], 1.0 - 2.0 * (labels[chosen][:, None] == 8).double()
