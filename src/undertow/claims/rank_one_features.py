"""Label noise drives features to rank one (Gatmiry, Li, Reddi and Jegelka, arXiv 2410.16401).

r(x) = sum_j phi(theta_j . x), L = sum_i (r(x_i) - y_i - zeta_i)^2 with zeta drawn anew each step:
the pre-activations theta_j . x_i are followed themselves, as Z <- Z - 2 lr (e phi'(Z)) X X^T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import altair as alt
import numpy as np
import polars as pl

from undertow import lab, predict
from undertow.claims._claim import (
    Check,
    Claim,
    Figure,
    Verdict,
    check_above,
    check_below,
    check_within,
    decide,
    over_seeds,
    worst_over_seeds,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Inputs = Literal["orthonormal", "independent", "crowded", "digits"]
Noise = Literal["label", "none", "isotropic"]
Part = Literal["collapse", "rate", "sign", "beyond"]  # beyond the theorem: decides nothing

_READINGS = 8  # of every run after its start, equally spaced
_BLOCK = 500  # steps whose noise is drawn at once
_NEAR = 0.02  # spread of neurons that start near one another
_TYPICAL = 0.55  # the mean size of the common pre-activations that are drawn
_NOISES: tuple[Noise, Noise] = ("label", "none")
_RIDGE = 1e-4
_SHAKEN = 20  # times as short are the runs with noise on the weights
_SIGN_STEP = 0.1  # lr x curvature of the runs that look for a sign
# Activations and common pre-activations, with phi''' above, at and below zero.
_SIGN_POINTS = (
    ("cubic", 0.5),
    ("quadratic", 0.5),
    ("tanh", 0.3),
    ("tanh", 1.0),
    ("softplus", -1.0),
    ("softplus", 1.0),
    ("gelu", -0.3),
    ("gelu", 0.5),
)


@dataclass(frozen=True)
class Config:
    """Knobs.

    Attributes:
        samples: n, the inputs.
        features: their dimension d; linearly independent inputs need n <= d.
        neurons: m.
        noise_std: of the label noise.
        lrs: learning rates at which the rate is measured, ascending; it is extrapolated to 0.
        decay: e-folds of the spread that a rate is read over.
        collapse_lr: of the runs from a random start.
        collapse_steps: their length.
        sign_steps: length of the runs over activations and operating points.
        digits: images of the runs on real data, which decide nothing; 0 leaves them out.
        net_steps: of the ordinary networks on digits, which decide nothing; 0 leaves them out.
        seeds: independent inputs, targets, starts and noises.
    """

    samples: int = 4
    features: int = 8
    neurons: int = 10
    noise_std: float = 1.0
    lrs: tuple[float, ...] = (0.0025, 0.005, 0.01)
    decay: float = 1.5
    collapse_lr: float = 0.005
    collapse_steps: int = 500_000
    sign_steps: int = 20_000
    digits: int = 10
    net_steps: int = 60_000
    seeds: int = 20

    def __post_init__(self) -> None:
        if not 2 <= self.samples <= self.features:
            raise ValueError(
                f"samples must lie between 2 and features = {self.features}, got {self.samples}"
            )
        if self.neurons < 2:
            raise ValueError(f"neurons must be at least 2, got {self.neurons}")
        if self.noise_std <= 0:
            raise ValueError(f"noise_std must be positive, got {self.noise_std}")
        if len(self.lrs) < 2 or min(self.lrs) <= 0 or list(self.lrs) != sorted(set(self.lrs)):
            raise ValueError(f"lrs must be two or more learning rates, ascending, got {self.lrs}")
        for name in ("decay", "collapse_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name, least in (
            ("collapse_steps", _READINGS),
            ("sign_steps", _SHAKEN * _READINGS),
            ("seeds", 2),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


# ---- trials


@dataclass(frozen=True)
class Toy:
    """One network with output weights of one, trained in its pre-activations.

    `target` is the common pre-activation at which equal neurons fit, for all inputs; None draws
    one for each. `spread` is that of the neurons around it at the start; None starts anywhere.
    """

    part: Part
    activation: str
    inputs: Inputs
    noise: Noise
    target: float | None
    spread: float | None
    lr: float
    steps: int
    samples: int
    features: int
    neurons: int
    noise_std: float
    seed: int


@dataclass(frozen=True)
class Net:
    """An ordinary network of one hidden layer that tells a 3 from an 8 by squared error."""

    part: Literal["net"]
    activation: str
    inputs: Literal["digits"]
    noise: Noise
    lr: float
    steps: int
    samples: int
    neurons: int
    noise_std: float
    seed: int


def trials(config: Config, seed: int) -> list[Toy | Net]:
    """Runs from a random start, runs near equal neurons at several rates and points, controls."""
    plain = Toy(
        part="collapse",
        activation="cubic",
        inputs="orthonormal",
        noise="label",
        target=None,
        spread=None,
        lr=config.collapse_lr,
        steps=config.collapse_steps,
        samples=config.samples,
        features=config.features,
        neurons=config.neurons,
        noise_std=config.noise_std,
        seed=0,
    )
    kinds: list[Toy | Net] = [
        plain,
        replace(plain, inputs="independent"),
        replace(plain, noise="none"),
        replace(
            plain,
            part="beyond",
            inputs="crowded",
            samples=2 * config.features,
            lr=config.collapse_lr / 2,  # more inputs, more curvature
        ),
    ]
    for lr in config.lrs:
        typical = predict.rank_one_rate(
            lr, config.noise_std, activation="cubic", preactivation=_TYPICAL
        )
        steps = round(config.decay / float(typical))
        near = replace(plain, part="rate", spread=_NEAR, lr=lr, steps=steps)
        kinds += [near, replace(near, inputs="independent")]
    for activation, target in _SIGN_POINTS:
        near = replace(
            plain,
            part="sign",
            activation=activation,
            target=target,
            spread=_NEAR,
            lr=_SIGN_STEP / _curvature(activation, target, config.neurons),
            steps=config.sign_steps,
        )
        kinds.append(near)
        if activation == "cubic":
            kinds.append(replace(near, noise="isotropic", steps=config.sign_steps // _SHAKEN))
    if config.digits:
        kinds += [
            replace(
                plain,
                part="beyond",
                activation=activation,
                inputs="digits",
                noise=noise,
                target=0.5,
                samples=config.digits,
                features=64,
            )
            for activation in ("cubic", "tanh")
            for noise in _NOISES
        ]
    if config.net_steps:
        kinds += [
            Net("net", activation, "digits", noise, 0.1, config.net_steps, 100, 32, 0.5, seed=0)
            for activation in ("tanh", "gelu", "softplus")
            for noise in _NOISES
        ]
    runs = [
        replace(kind, seed=seed * 10_000 + index) for kind in kinds for index in range(config.seeds)
    ]
    return sorted(runs, key=lambda trial: -trial.steps)  # the longest first


def group(trial: Toy | Net) -> Hashable:
    """Networks of one activation, size and length run side by side."""
    if isinstance(trial, Net):
        return replace(trial, seed=0)
    return replace(
        trial,
        part="collapse",
        inputs="orthonormal",
        noise="isotropic" if trial.noise == "isotropic" else "label",
        target=None,
        spread=None,
        lr=0.0,
        features=0,
        seed=0,
    )


def run(group_trials: Sequence[Toy | Net]) -> list[list[dict[str, Any]]]:
    """Run one group and return the records of each trial, one for every reading."""
    if isinstance(group_trials[0], Net):
        return _run_nets([trial for trial in group_trials if isinstance(trial, Net)])
    return _run_toys([trial for trial in group_trials if isinstance(trial, Toy)])


def _run_toys(group_trials: Sequence[Toy]) -> list[list[dict[str, Any]]]:
    import torch

    z, gram, goal = (torch.stack(parts) for parts in zip(*map(_start, group_trials), strict=True))
    first = group_trials[0]
    phi = _ACTIVATIONS[first.activation]
    outputs = first.neurons * phi(goal)[0]  # y, which equal neurons at `goal` fit
    predicted = [_predict(*given) for given in zip(group_trials, gram, goal, strict=True)]
    modes = torch.stack([one.modes for one in predicted])
    least = _trace(goal.expand_as(z), gram, phi)
    z = _settled(z, gram, outputs, phi)

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[:, None, None]

    lr = column([trial.lr for trial in group_trials])
    std = column([trial.noise_std * (trial.noise != "none") for trial in group_trials])
    isotropic = first.noise == "isotropic"
    if isotropic:  # of as much variance in all as label noise has at the start
        std = lr * std * 2 * phi(z)[1].square().mean((1, 2), keepdim=True).sqrt()
    generators = [torch.Generator().manual_seed(2**40 + trial.seed) for trial in group_trials]
    records: list[list[dict[str, Any]]] = [[] for _ in group_trials]
    taken = 0
    for stop in _read_at(first.steps):
        while taken < stop:
            steps = min(_BLOCK, stop - taken)
            size = z.shape[1:] if isotropic else (1, z.shape[2])
            noise = std * torch.stack([_normals(g, steps, *size) for g in generators], dim=1)
            _train(z, noise, 2 * lr * gram, outputs, phi, isotropic=isotropic)
            taken += steps
        facts = _facts(_settled(z, gram, outputs, phi), gram, modes, phi)
        for e, rows in enumerate(records):
            facts[e] |= {"step": taken, "least_trace": float(least[e])}
            rows.append(facts[e] | predicted[e].facts)
    return records


def _read_at(steps: int) -> list[int]:
    return [round(steps * index / _READINGS) for index in range(_READINGS + 1)]


def _start(trial: Toy) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activations `[m, n]`, the Gram matrix `[n, n]`, and the equal neurons' `[1, n]`."""
    import torch

    generator = torch.Generator().manual_seed(trial.seed)
    inputs, signs = _inputs(trial, generator)
    theta = _normals(generator, trial.neurons, trial.features)
    if trial.inputs == "crowded":  # equal neurons must fit more targets than they have weights
        goal = _normals(generator, 1, trial.features) @ inputs.mT
    elif trial.target is not None:
        goal = trial.target * signs
    else:
        goal = signs * (0.3 + 0.5 * torch.rand(1, trial.samples, generator=generator).double())
    z = theta @ inputs.mT
    if trial.spread is not None:
        z = goal + trial.spread * z
    return z, inputs @ inputs.mT, goal


def _inputs(trial: Toy, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs of norm one `[n, d]`, and the signs of their targets `[1, n]`."""
    import torch

    if trial.inputs == "digits":
        from undertow import data

        loaded = data.load("digits")
        images = loaded.train_inputs.flatten(1).double()
        chosen = torch.randperm(len(images), generator=generator)[: trial.samples]
        inputs = torch.nn.functional.normalize((images - images.mean(0))[chosen])
        return inputs, 1.0 - 2.0 * (loaded.train_targets[chosen][None] % 2).double()
    drawn = _normals(generator, trial.samples, trial.features)
    signs = _normals(generator, 1, trial.samples).sign()
    if trial.target is not None:
        signs = torch.ones_like(signs)
    if trial.inputs == "orthonormal":
        return torch.linalg.qr(drawn.mT).Q.mT, signs
    return torch.nn.functional.normalize(drawn), signs


def _normals(generator: torch.Generator, *size: int) -> Tensor:
    import torch

    return torch.randn(*size, generator=generator, dtype=torch.float64)


_Phi = Callable[["Tensor"], tuple["Tensor", "Tensor"]]


def _cubic(z: Tensor) -> tuple[Tensor, Tensor]:
    square = z * z
    slope = (square * 0.5).add_(1)
    return square.mul_(1 / 6).add_(1).mul_(z), slope


def _quadratic(z: Tensor) -> tuple[Tensor, Tensor]:
    return (z * 0.25).add_(1).mul_(z), (z * 0.5).add_(1)


def _tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    value = z.tanh()
    return value, 1 - value * value


def _softplus(z: Tensor) -> tuple[Tensor, Tensor]:
    return -(-z).sigmoid().log(), z.sigmoid()


def _gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    below = (z * math.sqrt(0.5)).erf_().add_(1).mul_(0.5)
    density = (z * z).mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
    return z * below, density.mul_(z).add_(below)


# phi and phi' at once; the results are fresh, so that the caller may write into them.
_ACTIVATIONS: dict[str, _Phi] = {
    "cubic": _cubic,
    "quadratic": _quadratic,
    "tanh": _tanh,
    "softplus": _softplus,
    "gelu": _gelu,
}


# phi' at a number, for trials to be planned without torch.
_SLOPES: dict[str, Callable[[float], float]] = {
    "cubic": lambda z: 1 + z**2 / 2,
    "quadratic": lambda z: 1 + z / 2,
    "tanh": lambda z: 1 - math.tanh(z) ** 2,
    "softplus": lambda z: 1 / (1 + math.exp(-z)),
    "gelu": lambda z: (
        (1 + math.erf(z / math.sqrt(2))) / 2 + z * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    ),
}


def _curvature(activation: str, z: float, neurons: int) -> float:
    """Of one orthonormal input's squared error where all neurons are at z: 2 m phi'(z)^2."""
    return 2 * neurons * _SLOPES[activation](z) ** 2


def _train(
    z: Tensor, noise: Tensor, doubled: Tensor, outputs: Tensor, phi: _Phi, *, isotropic: bool
) -> None:
    """SGD on theta as it shows in z `[members, m, n]`, a step for each `noise`, in place.

    theta_j <- theta_j - lr sum_i 2 e_i phi'(z_ij) x_i; `doubled` is 2 lr X X^T.
    """
    for drawn in noise:
        value, slope = phi(z)
        residual = value.sum(1, keepdim=True).sub_(outputs)
        if not isotropic:
            residual.sub_(drawn)
        z.baddbmm_(slope.mul_(residual), doubled, alpha=-1)
        if isotropic:
            z.add_(drawn)


def _settled(z: Tensor, gram: Tensor, outputs: Tensor, phi: _Phi) -> Tensor:
    """Where noise-free descent from z comes to rest at zero loss: no fluctuation is left to read.

    Follows de/dt = -e by the shortest way in theta, which for orthogonal inputs is the path of the
    gradient flow, in small steps and then in whole ones. The ridge is for more inputs than
    dimensions: there equal neurons cannot undo every residual.
    """
    import torch

    for fraction in (*[0.15] * 40, *[1.0] * 4):
        value, slope = phi(z)
        residual = value.sum(1) - outputs[:, 0]
        tangent = gram * (slope.mT @ slope)
        ridge = _RIDGE * tangent.diagonal(dim1=1, dim2=2).mean(1)
        tangent.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
        pull = torch.linalg.solve_ex(tangent, residual).result
        z = z - fraction * (slope * pull[:, None]) @ gram
    return z


def _trace(z: Tensor, gram: Tensor, phi: _Phi) -> Tensor:
    """F = tr Hess L at zero loss, 2 sum_i ||x_i||^2 sum_j phi'(z_ij)^2 `[members]`."""
    return 2 * (phi(z)[1].square().sum(1) * gram.diagonal(dim1=1, dim2=2)).sum(1)


def _facts(z: Tensor, gram: Tensor, modes: Tensor, phi: _Phi) -> list[dict[str, Any]]:
    """What is read of settled pre-activations: their rank, F, and how far neurons are apart."""
    import torch

    finite = z.isfinite().all(2).all(1)
    z = torch.where(finite[:, None, None], z, 0.0)
    singular = torch.linalg.svdvals(z)
    stable_rank = (singular / singular[:, :1]).square().sum(1)
    log_spread = (z @ modes.mT).std(1).clamp(min=1e-300).log()
    trace = _trace(z, gram, phi)
    return [
        {
            "diverged": not finite[e],
            "rank_ratio": float(singular[e, 1] / singular[e, 0]) if finite[e] else None,
            "stable_rank": float(stable_rank[e]) if finite[e] else None,
            "trace": float(trace[e]) if finite[e] else None,
            "log_spread": float(log_spread[e].mean()) if finite[e] else None,
            "log_spread_slowest": float(log_spread[e, 0]) if finite[e] else None,
        }
        for e in range(len(z))
    ]


@dataclass(frozen=True)
class _Prediction:
    """Directions in the space of inputs `[n, n]`, slowest first, and rates of decay along them."""

    modes: Tensor
    facts: dict[str, float | None]


def _predict(trial: Toy, gram: Tensor, goal: Tensor) -> _Prediction:
    """Rates near equal neurons: the eigenvalues of X X^T diag(c), c the rates at ||x|| = 1.

    Label noise pulls the differences of neurons together in each z_i at c_i, and theta takes what
    is done for one input to the others through X X^T. For orthonormal inputs that leaves c.
    """
    import torch

    names = ("predicted", "predicted_slowest", "predicted_at_lr")
    if trial.part == "beyond" or trial.noise == "isotropic":
        return _Prediction(torch.eye(len(gram)).double(), dict.fromkeys(names))
    given: dict[str, Any] = {"activation": trial.activation, "preactivation": goal[0].numpy()}
    free, known = (
        np.asarray(predict.rank_one_rate(trial.lr, trial.noise_std, neurons=neurons, **given))
        for neurons in (None, trial.neurons)
    )
    orthonormal = trial.inputs == "orthonormal"
    rates, modes = free, np.eye(len(free))
    if not orthonormal:  # left eigenvectors
        values, vectors = np.linalg.eig(free[:, None] * gram.numpy())
        rates, modes = values.real, vectors.real.T
    order = np.argsort(np.abs(rates))
    facts = (rates.mean(), rates[order[0]], known.mean() if orthonormal else None)
    heard = float(trial.noise != "none")
    return _Prediction(
        torch.from_numpy(modes[order]),
        {n: None if v is None else heard * float(v) for n, v in zip(names, facts, strict=True)},
    )


def _run_nets(group_trials: Sequence[Net]) -> list[list[dict[str, Any]]]:
    """All layers are trained, on minibatches, by the library's own rules."""
    import torch
    from torch.nn import functional

    from undertow import measure, models
    from undertow.objective import Objective
    from undertow.train import Ensemble, Member, rules

    first = group_trials[0]
    inputs, targets = _threes_and_eights(first.samples)
    rule = rules.sgd
    if first.noise == "label":
        rule = rules.label_noise(rules.sgd, std=first.noise_std)
    ensemble = Ensemble(
        lambda generator: models.mlp(
            (inputs.shape[1], first.neurons, 1), activation=first.activation, generator=generator
        ),
        functional.mse_loss,
        (inputs, targets),
        [Member(trial.seed, trial.lr) for trial in group_trials],
        batch_size=10,
        rule=rule,
        path="fused",
        dtype=torch.float64,
    )
    records: list[list[dict[str, Any]]] = [[] for _ in group_trials]
    for stop in _read_at(first.steps):
        ensemble.train(stop - ensemble.steps_taken)
        for e, rows in enumerate(records):
            facts: dict[str, Any] = {"step": stop, "diverged": ensemble.diverged_at[e] is not None}
            rows.append(facts)
            if facts["diverged"]:
                continue
            module = ensemble.module(e)
            objective = Objective(module, functional.mse_loss, (inputs, targets))
            hidden = next(layer for layer in module.modules() if isinstance(layer, torch.nn.Linear))
            with torch.no_grad():
                features = hidden(inputs)
            singular = torch.linalg.svdvals(features)
            facts |= {
                "rank_ratio": float(singular[1] / singular[0]),
                "stable_rank": float((singular / singular[0]).square().sum()),
                "trace": measure.hessian_trace(objective, curvature="ggn").value,
                "loss": float(objective.value()),
            }
    return records


def _threes_and_eights(count: int) -> tuple[Tensor, Tensor]:
    """Images of norm two less their mean `[count, 64]`, and 1 for a 3, -1 for an 8 `[count, 1]`."""
    import torch

    from undertow import data

    loaded = data.load("digits")
    labels = loaded.train_targets
    chosen = torch.cat([(labels == digit).nonzero()[: count // 2, 0] for digit in (3, 8)])
    images = loaded.train_inputs.flatten(1).double()
    inputs = 2 * torch.nn.functional.normalize((images - images.mean(0))[chosen])
    return inputs, 1.0 - 2.0 * (labels[chosen][:, None] == 8).double()


# ---- the verdict rule


_RUN = ("part", "activation", "inputs", "noise", "target", "lr", "seed")


def _summaries(records: pl.DataFrame) -> pl.DataFrame:
    """One row for every run that stayed finite: what it was at the start and is at the end."""
    spread, slowest = pl.col("log_spread"), pl.col("log_spread_slowest")
    taken = pl.col("step").last()
    first, last = pl.col("trace").first(), pl.col("trace").last()
    return (
        records.filter(~_lost())
        .sort("step")
        .group_by(_RUN, maintain_order=True)
        .agg(
            pl.col("rank_ratio").first().alias("rank_ratio_start"),
            pl.col("rank_ratio").last(),
            (first / pl.col("least_trace").first() - 1).alias("excess_start"),
            (last / pl.col("least_trace").first() - 1).alias("excess"),
            (spread.first() - spread.last()).alias("folds"),
            ((spread.first() - spread.last()) / taken).alias("rate"),
            ((slowest.first() - slowest.last()) / taken).alias("rate_slowest"),
            pl.col("predicted", "predicted_slowest", "predicted_at_lr").first(),
            pl.col("stable_rank").last(),
            last.alias("trace"),
        )
        .sort(_RUN)
    )


def judge(records: pl.DataFrame, config: Config) -> Verdict:
    """Every check of the claim; the thresholds were fixed before the verdict seeds ran."""
    deciding = records.filter(~pl.col("part").is_in(["beyond", "net"]))
    runs = _summaries(deciding)
    lost = deciding.filter("diverged").select(_RUN).n_unique()
    total = deciding.select(_RUN).n_unique()
    checks = [*_collapse_checks(runs), *_rate_checks(runs, config), *_sign_checks(runs)]
    summary = f"{lost} of {total} runs diverged and are left out."
    promises = config.seeds >= 8 and config.collapse_steps >= 100_000
    return decide(checks, summary, promises_verdict=promises)


def _collapse_checks(runs: pl.DataFrame) -> list[Check]:
    far = runs.filter(part="collapse", noise="label")
    still = runs.filter(part="collapse", noise="none")
    shaken = runs.filter(noise="isotropic")
    checks = []
    for inputs in ("orthonormal", "independent"):
        own = far.filter(inputs=inputs)
        checks += [
            check_below(
                f"{inputs} inputs, s2 / s1 of the features",
                over_seeds(own["rank_ratio"]),
                bound=0.05,
                rule="at most 0.05 from a random start: the feature matrix is of rank one",
            ),
            check_below(
                f"{inputs} inputs, F over its minimum, less one",
                over_seeds(own["excess"]),
                bound=0.01,
                rule="at most 0.01: the trace of the Hessian is at its global minimum",
            ),
        ]
    return [
        *checks,
        check_above(
            "without noise, s2 / s1 of the features",
            over_seeds(still["rank_ratio"]),
            bound=0.3,
            rule="at least 0.3: fitting alone does not give rank one",
            control=True,
        ),
        check_below(
            "without noise, e-folds of the spread",
            over_seeds(still["folds"].abs()),
            bound=1e-6,
            rule="at most 1e-6: nothing moves at zero loss",
            control=True,
        ),
        check_below(
            "noise on the weights in place of the labels, e-folds lost",
            over_seeds(shaken["folds"]),
            bound=0.0,
            rule="below 0, the spread grows: as much noise of another shape does not do it",
            control=True,
        ),
    ]


def _rate_checks(runs: pl.DataFrame, config: Config) -> list[Check]:
    rates = runs.filter(part="rate")
    orthonormal = rates.filter(inputs="orthonormal")
    largest = orthonormal.filter(lr=max(config.lrs))
    limit = "0.9 to 1.1 where a line through the learning rates meets 0"
    return [
        check_within(
            "orthonormal inputs, rate over 2 lr^2 s^2 phi' phi''', lr to 0",
            _at_zero(orthonormal, "rate", "predicted"),
            0.9,
            1.1,
            limit,
        ),
        check_within(
            "independent inputs, slowest rate over the eigenvalue, lr to 0",
            _at_zero(rates.filter(inputs="independent"), "rate_slowest", "predicted_slowest"),
            0.9,
            1.1,
            limit,
        ),
        check_within(
            f"rate over prediction that knows lr x curvature, lr = {max(config.lrs):g}",
            over_seeds(largest["rate"] / largest["predicted_at_lr"]),
            0.95,
            1.05,
            "0.95 to 1.05 at the largest learning rate, without extrapolation",
        ),
    ]


def _at_zero(rates: pl.DataFrame, measured: str, predicted: str) -> lab.Effect:
    """Measured over predicted, extrapolated to lr = 0 along a line for every seed."""
    ends = []
    for _, own in rates.group_by("seed", maintain_order=True):
        if len(own) > 1:
            ratio = (own[measured] / own[predicted]).to_numpy()
            ends.append(float(np.polyfit(own["lr"].to_numpy(), ratio, 1)[1]))
    return over_seeds(ends)


def _sign_checks(runs: pl.DataFrame) -> list[Check]:
    near = runs.filter(part="sign", noise="label")
    flat = near.filter(activation="quadratic")
    curved = near.filter(pl.col("activation") != "quadratic")
    tanh = curved.filter(activation="tanh", target=min(z for a, z in _SIGN_POINTS if a == "tanh"))
    rest = curved.join(tanh, on=_RUN, how="anti")
    ratio = pl.col("rate") / pl.col("predicted_at_lr")
    worst = worst_over_seeds(curved.with_columns((ratio - 1).abs().alias("off")), pl.col("off"))
    reference = near.filter(activation="cubic").sort("seed")["rate"].mean()
    drift = over_seeds((flat["rate"] / reference).abs()) if reference else over_seeds([])
    grows = lab.proportion(int((tanh["rate"] < 0).sum()), len(tanh))
    right = rest.group_by("seed").agg((pl.col("rate") * pl.col("predicted") > 0).all())
    agrees = lab.proportion(int(right["rate"].sum()), len(right))
    return [
        _in_all(
            "tanh near 0, where phi''' < 0: neurons move apart",
            grows,
            "in every seed: there equal neurons are the sharpest way to fit",
        ),
        _in_all(
            "the other signs of phi' phi''' of four activations",
            agrees,
            "all in every seed, tanh away from 0 among them",
        ),
        check_below(
            "rate against prediction, worst activation and point",
            worst,
            bound=0.15,
            rule="off by at most 0.15 of it, lr x curvature counted",
        ),
        check_below(
            "phi''' = 0, rate over that of the cubic",
            drift,
            bound=0.01,
            rule="at most 0.01: nothing draws the neurons of a quadratic",
            control=True,
        ),
    ]


def _in_all(name: str, share: lab.Effect, rule: str) -> Check:
    return Check(
        name,
        share.value,
        share.interval,
        rule,
        passed=share.value == 1.0,
        refuted=share.interval[1] < 0.9,
    )


# ---- what a reader sees


def table(records: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Rank, F and rates of every kind of run, means over seeds.

    `beyond` and `net` decide nothing; `net` has stable ranks, and no F of equal neurons.
    """
    started_near = pl.col("part").is_in(["rate", "sign"])
    return (
        _summaries(records)
        .group_by("part", "activation", "inputs", "noise", "target", "lr")
        .agg(
            pl.len().alias("runs"),
            pl.col("rank_ratio_start").mean().alias("s2/s1 at start"),
            pl.col("rank_ratio").mean().alias("s2/s1"),
            pl.col("rank_ratio").max().alias("largest s2/s1"),
            pl.col("stable_rank").mean().alias("stable rank"),
            pl.col("trace").mean().alias("F"),
            pl.col("excess").mean().alias("F over that of equal neurons, less 1"),
            *(
                pl.col(column).filter(started_near).mean().alias(label)
                for column, label in (
                    ("rate", "rate"),
                    ("predicted", "predicted"),
                    ("predicted_at_lr", "predicted at this lr"),
                )
            ),
        )
        .sort("part", "activation", "inputs", "noise", "target", "lr")
    )


def figures(records: pl.DataFrame, config: Config) -> list[Figure]:
    """The charts of the report."""
    runs = _summaries(records)
    drawn = [_sign_figure(runs, config), _rate_figure(runs), _collapse_figure(records)]
    if config.net_steps:
        drawn.append(_net_figure(records))
    return drawn


def _sign_figure(runs: pl.DataFrame, config: Config) -> Figure:
    unit = 2 * (pl.col("lr") * config.noise_std) ** 2
    rows = (
        runs.filter(part="sign", noise="label")
        .with_columns(
            pl.format("{} at {}", "activation", "target").alias("neurons"),
            (pl.col("rate") / unit).alias("measured"),
            (pl.col("predicted_at_lr") / unit).alias("predicted"),
        )
        .group_by("neurons")
        .agg(
            pl.col("predicted").mean(),
            pl.col("measured").mean(),
            (pl.col("measured").mean() - 2 * pl.col("measured").std()).alias("low"),
            (pl.col("measured").mean() + 2 * pl.col("measured").std()).alias("high"),
        )
        .sort("predicted")
    )
    ends = pl.DataFrame({"x": [-1.4, 1.4]})
    line = alt.Chart(ends).mark_line(color="grey", strokeDash=[4, 4]).encode(x="x:Q", y="x:Q")
    base = alt.Chart(rows).encode(
        x=alt.X("predicted:Q", title="predicted, over 2 lr^2 s^2"),
        color=alt.Color("neurons:N", sort=rows["neurons"].to_list(), title="at"),
    )
    points = base.mark_point(filled=True, size=80).encode(
        y=alt.Y("measured:Q", title="measured, over 2 lr^2 s^2"),
        tooltip=["neurons", "predicted", "measured"],
    )
    bars = base.mark_rule().encode(y="low:Q", y2="high:Q")
    return Figure(
        "sign",
        "Label noise draws neurons together or apart, by the sign of phi' phi'''",
        "Rate at which the spread of neurons that start near one another decays, beside its "
        "prediction; below 0 it grows. Bars are two standard deviations over seeds. The line "
        "holds no fitted number.",
        (line + bars + points).properties(width=360, height=300),
    )


def _rate_figure(runs: pl.DataFrame) -> Figure:
    rates = runs.filter(part="rate").with_columns(
        (pl.col("rate") / pl.col("predicted")).alias("ratio"),
        (pl.col("predicted_at_lr") / pl.col("predicted")).alias("expected"),
    )
    rows = (
        rates.group_by("inputs", "lr")
        .agg(
            pl.col("ratio").mean(),
            (pl.col("ratio").mean() - 2 * pl.col("ratio").std()).alias("low"),
            (pl.col("ratio").mean() + 2 * pl.col("ratio").std()).alias("high"),
            pl.col("expected").mean(),
        )
        .sort("inputs", "lr")
    )
    base = alt.Chart(rows).encode(
        x=alt.X("lr:Q", title="learning rate", scale=alt.Scale(domainMin=0)),
        color=alt.Color("inputs:N"),
    )
    measured = base.mark_point(filled=True, size=70).encode(
        y=alt.Y("ratio:Q", title="measured / predicted as lr -> 0", scale=alt.Scale(domainMin=1))
    )
    bars = base.mark_rule().encode(y="low:Q", y2="high:Q")
    known = base.mark_line(strokeDash=[4, 4]).encode(y="expected:Q")
    return Figure(
        "rate",
        "The rate tends to its parameter-free value as the learning rate falls",
        "Points: measured over 2 lr^2 s^2 phi' phi''' (for independent inputs over the mean "
        "eigenvalue), bars two standard deviations over seeds. Dashed: what the fluctuation of the "
        "residual adds, 1 / (1 - lr h / 2), known for orthonormal inputs.",
        (known + bars + measured).properties(width=360, height=260),
    )


def _collapse_figure(records: pl.DataFrame) -> Figure:
    kind = pl.format("{}, {}, {}", "activation", "inputs", _noise_words())
    rows = (
        records.filter(pl.col("part").is_in(["collapse", "beyond"]), ~_lost())
        .with_columns(kind.alias("runs"))
        .group_by("runs", "step")
        .agg(pl.col("rank_ratio").log().mean().exp().alias("s2 / s1"))
        .sort("runs", "step")
    )
    chart = (
        alt.Chart(rows)
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", axis=alt.Axis(format="~s", tickCount=5)),
            y=alt.Y(
                "s2 / s1:Q", scale=alt.Scale(type="log"), axis=alt.Axis(format=".0e", tickCount=6)
            ),
            color=alt.Color("runs:N", legend=alt.Legend(labelLimit=260)),
        )
        .properties(width=420, height=280)
    )
    return Figure(
        "collapse",
        "Features of rank one, from anywhere, by noise on the labels",
        "Second over first singular value of the pre-activations at the training inputs, geometric "
        "mean over seeds. Digits decide nothing, nor do crowded inputs (twice as many as "
        "dimensions, beyond the theorem).",
        chart,
    )


def _net_figure(records: pl.DataFrame) -> Figure:
    rows = (
        records.filter(pl.col("part") == "net", ~_lost())
        .with_columns(pl.format("{}, {}", "activation", _noise_words()).alias("networks"))
        .group_by("networks", "step")
        .agg(pl.col("stable_rank").mean(), pl.col("trace").mean())
        .sort("networks", "step")
    )
    panels = [
        alt.Chart(rows)
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", axis=alt.Axis(format="~s", tickCount=5)),
            y=alt.Y(f"{column}:Q", title=title, scale=alt.Scale(type="log")),
            color=alt.Color("networks:N"),
        )
        .properties(width=250, height=240)
        for column, title in (
            ("stable_rank", "stable rank of the features"),
            ("trace", "trace of the Gauss-Newton matrix"),
        )
    ]
    return Figure(
        "net",
        "Outside the theory: networks whose every layer trains",
        "Digits 3 and 8, 32 neurons, squared error, minibatches of 10. Decides nothing: output "
        "weights of both signs that train are outside the theorem. Noise on the labels lowers the "
        "trace; whether the rank falls with it is another matter.",
        alt.hconcat(*panels),
    )


def _lost() -> pl.Expr:
    return pl.col("diverged").any().over(_RUN)


def _noise_words() -> pl.Expr:
    return pl.when(pl.col("noise") == "none").then(pl.lit("no noise")).otherwise(pl.lit("noise"))


CLAIM = Claim(
    name="rank-one-features",
    title="Label noise drives features to rank one where phi''' > 0",
    paper="Gatmiry, Li, Reddi and Jegelka, Simplicity Bias via Global Convergence of Sharpness "
    "Minimization (arXiv 2410.16401, ICML 2024)",
    statement="In r(x) = sum_j phi(theta_j . x) with phi', phi''' > 0 and linearly independent "
    "inputs, SGD on squared error with fresh label noise walks the zero-loss set down to the "
    "global minimum of the Hessian's trace, where all neurons agree on every input: the feature "
    "matrix has rank one. For orthonormal inputs the spread of the neurons decays per step at "
    "2 lr^2 s^2 phi' phi''', with no free parameter, and grows where phi''' < 0.",
    corrections=(
        "Rank one is a statement of Theta X, the features at the training inputs, not of the "
        "weights Theta: what is orthogonal to all inputs never moves.",
        "At a finite learning rate the residual fluctuates with variance s^2 (lr h / 2) / (1 - lr "
        "h / 2), h = 2 m phi'^2, and the rate is larger by 1 / (1 - lr h / 2). That is the whole "
        "difference from the limit of a small lr here, also for lr h of 0.25.",
        "For inputs that are not orthogonal there are n rates, the eigenvalues of X X^T "
        "diag(2 lr^2 s^2 ||x_i||^2 phi'_i phi'''_i): inputs that are nearly dependent make the "
        "approach to rank one slow.",
        "Sharpness minimisation is no simplicity bias by itself: phi''' < 0, as for tanh, GELU "
        "and softplus over much of their range, makes equal neurons the sharpest way to fit, and "
        "the same noise drives them apart.",
    ),
    config=Config,
    presets={
        "smoke": Config(
            lrs=(0.005, 0.01),
            decay=0.2,
            collapse_steps=5_000,
            sign_steps=2_000,
            net_steps=1_000,
            seeds=2,
        ),
        "small": Config(),
        "paper": Config(
            samples=10,
            features=20,
            neurons=50,
            lrs=(0.0005, 0.001, 0.002),
            collapse_lr=0.001,
            collapse_steps=20_000_000,
            sign_steps=200_000,
            digits=20,
            net_steps=1_000_000,
            seeds=100,
        ),
    },
    costs={"smoke": "10 s", "small": "2 min on two cores", "paper": "half a day on two cores"},
    trials=trials,
    group=group,
    group_size=40,
    run=run,
    judge=judge,
    figures=figures,
    table=table,
)
