"""The marginal value of momentum (Wang, Malladi, Wang, Lyu, Li, 2023; arXiv 2307.15196).

In the small-step regime heavy-ball momentum is plain SGD at another learning rate. Tested as a weak
error with its order, as a stationary variance, and on a network at equal effective learning rates;
where the two part it is curvature, and SVAG, which shrinks curvature alone, closes the gap.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import polars as pl

from undertow import lab
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
)

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Generator, Tensor

_ORDERS = (0.0, 0.5, 1.0)  # alpha in 1 - momentum = scale x lr^alpha
_SCALES = (0.5, 2.0, 8.0)
_NOISES = ("additive", "state-dependent")
_EXACT_EXPONENTS = (8, 9, 10, 11, 12, 13, 14)  # lr = 2^-n
_TIMES = 4  # equal parts of the horizon at which moments are compared
_CURVATURES = (0.1, 0.5, 1.0, 1.5)  # lr x sharpness of the stationary runs
_RIDGE = 1e-2  # of the top eigenvalue
_BURN_IN = 200  # steps; 20 relaxation times at the smallest curvature
_LEAST_SEEDS = 8  # for a verdict
_REGRESSION_BATCH = 32  # of the stationary runs
_LOSS_MARGIN, _ACCURACY_MARGIN = 0.02, 0.01


@dataclass(frozen=True)
class Config:
    """Knobs.

    Attributes:
        data: digits, fashion-mnist, mnist-5k or cifar10.
        data_root: folder of a dataset that you have.
        samples: training images; None for all.
        regression_samples: of the stationary runs, whose shuffled epochs must be short; None for
            as many as `samples`.
        momentum: beta, of the stationary runs and the network.
        replicas: simulated paths a seed.
        path_exponents: learning rates 2^-n of the simulated paths.
        width: of the network's hidden layer.
        batch_size: of the network.
        steps: of the network, at l = 1.
        lrs: effective learning rates of the network.
        small_lr: the one at which the two must be equivalent.
        large_lr: the one at which they must not.
        svag_levels: l of the SVAG runs at `large_lr`, beside 1.
        seeds: independent repetitions.
    """

    data: str = "digits"
    data_root: str | None = None
    samples: int | None = None
    regression_samples: int | None = None
    momentum: float = 0.9
    replicas: int = 40_000
    path_exponents: tuple[int, ...] = (6, 7, 8, 9, 10)
    width: int = 64
    batch_size: int = 64
    steps: int = 300
    lrs: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
    small_lr: float = 0.05
    large_lr: float = 2.0
    svag_levels: tuple[int, ...] = (2, 4, 8)
    seeds: int = 24

    def __post_init__(self) -> None:
        if not 0 < self.momentum < 1:
            raise ValueError(f"momentum must lie between 0 and 1, got {self.momentum}")
        for name in ("small_lr", "large_lr"):
            if getattr(self, name) not in self.lrs:
                raise ValueError(f"{name} must be one of lrs {self.lrs}, got {getattr(self, name)}")
        if min(self.svag_levels, default=0) <= 1:
            raise ValueError(f"svag_levels must lie above 1, got {self.svag_levels}")
        for name in ("lrs", "svag_levels", "path_exponents"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must hold no number twice, got {values}")
        if len(self.path_exponents) < 2 or 2.0 ** -min(self.path_exponents) * max(_SCALES) > 1:
            raise ValueError(
                f"path_exponents must hold at least two numbers from 3 on, got "
                f"{self.path_exponents}"
            )
        for name, least in (("replicas", 1), ("steps", 1), ("seeds", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("regression_samples", "samples"):
            count = getattr(self, name)
            if count is not None and count < _REGRESSION_BATCH:
                raise ValueError(
                    f"{name} must be at least {_REGRESSION_BATCH}, one batch of the stationary "
                    f"runs, got {count}"
                )


# ---- trials


@dataclass(frozen=True)
class Moments:
    """E x^2 of both methods on x^2 / 2, by the exact recursion of second moments."""

    noise: str
    exponents: tuple[int, ...]


@dataclass(frozen=True)
class Paths:
    """Simulated paths on a loss that is not quadratic, under the same two-point noise."""

    replicas: int
    exponents: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Stationary:
    """Minibatch SGD on least squares: the variance along the top eigenvector of the Hessian.

    `order` is `replacement` (independent batches, as in the theory) or `epochs` (shuffled).
    """

    data: str
    data_root: str | None
    samples: int | None
    momentum: float
    order: str
    seed: int


@dataclass(frozen=True)
class Training:
    """A network trained by sgd, by momentum at lr x (1 - beta), or by raw: momentum at lr."""

    data: str
    data_root: str | None
    samples: int | None
    width: int
    batch_size: int
    steps: int
    momentum: float
    lr: float
    method: str
    level: int
    seed: int


Trial = Moments | Paths | Stationary | Training


def trials(config: Config, seed: int) -> list[Trial]:
    """The exact recursions, and for every seed paths, stationary runs and networks."""
    seeds = [seed * 10_000 + index for index in range(config.seeds)]
    source = (config.data, config.data_root, config.samples)
    cells = [(lr, method, 1) for lr in config.lrs for method in ("sgd", "momentum", "raw")]
    cells += [
        (config.large_lr, method, level)
        for level in config.svag_levels
        for method in ("sgd", "momentum")
    ]
    # The long ones first, so that no worker ends with them.
    cells.sort(key=lambda cell: -cell[2])
    return [
        *(
            Training(
                *source,
                config.width,
                config.batch_size,
                config.steps,
                config.momentum,
                *cell,
                own,
            )
            for cell in cells
            for own in seeds
        ),
        *(Paths(config.replicas, config.path_exponents, own) for own in seeds),
        *(
            Stationary(*source[:2], config.regression_samples or config.samples, *run, own)
            for run in ((config.momentum, "replacement"), (config.momentum, "epochs"))
            for own in seeds
        ),
        *(Moments(noise, _EXACT_EXPONENTS) for noise in _NOISES),
    ]


def group(trial: Trial) -> Hashable:
    """Networks of one cell are one ensemble; anything else runs on its own."""
    return replace(trial, seed=0) if isinstance(trial, Training) else trial


def run(group_trials: Sequence[Trial]) -> list[list[dict[str, Any]]]:
    """Run one group and return the records of each trial."""
    if isinstance(group_trials[0], Training):
        return _train([trial for trial in group_trials if isinstance(trial, Training)])
    records = []
    for trial in group_trials:
        if isinstance(trial, Moments):
            records.append(_moments(trial))
        elif isinstance(trial, Paths):
            records.append(_paths(trial))
        elif isinstance(trial, Stationary):
            records.append(_stationary(trial))
    return records


def _moments(trial: Moments) -> list[dict[str, Any]]:
    spread = 0.5 if trial.noise == "state-dependent" else 0.0
    return [
        {
            "exact_gap": exact_gap(2.0**-exponent, alpha, scale, spread=spread),
            "exponent": exponent,
            "alpha": alpha,
        }
        for alpha, scale in zip(_ORDERS, _SCALES, strict=True)
        for exponent in trial.exponents
    ]


def exact_gap(lr: float, alpha: float, scale: float, *, spread: float = 0.0) -> float:
    """The largest |E x^2 - E x_sgd^2| over the horizon 2, both from x = 1, on x^2 / 2.

    1 - momentum is scale x lr^alpha in the averaged form; the noise has variance
    (1 + spread x^2) / lr, the most that the theorem allows.
    """
    steps = round(2 / lr) // _TIMES
    ends = []
    for kept in (1 - scale * lr**alpha, 0.0):
        power = np.linalg.matrix_power(_moment_step(lr, kept, spread), steps)
        moments = np.array([1.0, 0.0, 0.0, 1.0])
        seen = []
        for _ in range(_TIMES):
            moments = power @ moments
            seen.append(moments[0])
        ends.append(np.array(seen))
    return float(np.abs(ends[0] - ends[1]).max())


def _moment_step(lr: float, momentum: float, spread: float) -> np.ndarray:
    """One step of (E x^2, E x m, E m^2, 1) under m' = beta m + (1 - beta) g, x' = x - lr m'."""
    new = 1 - momentum
    by_x, by_m = 1 - lr * new, -lr * momentum  # of x'; those of m' are new and momentum
    step = np.zeros((4, 4))
    step[0, :3] = by_x**2, 2 * by_x * by_m, by_m**2
    step[1, :3] = by_x * new, by_x * momentum + by_m * new, by_m * momentum
    step[2, :3] = new**2, 2 * new * momentum, momentum**2
    step[3, 3] = 1
    push = np.array([lr**2, -lr, 1.0]) * new**2 / lr  # the noise, by its variance (1 + s x^2) / lr
    step[:3, 3] += push
    step[:3, 0] += push * spread
    return step


def _paths(trial: Paths) -> list[dict[str, Any]]:
    """Both methods on L = x^2 / 2 - cos(2x) / 4 from x = 1 to time 1, for all orders at once."""
    import torch

    generator = torch.Generator().manual_seed(trial.seed)
    rows = []
    for exponent in trial.exponents:
        lr = 2.0**-exponent
        kept = torch.tensor(
            [0.0, *(1 - s * lr**a for a, s in zip(_ORDERS, _SCALES, strict=True))],
            dtype=torch.float64,
        )[:, None]
        place = torch.ones(len(kept), trial.replicas, dtype=torch.float64)
        velocity = torch.zeros_like(place)
        steps = 2**exponent
        gaps = []
        for step in range(1, steps + 1):
            sign = torch.randint(0, 2, (trial.replicas,), generator=generator, dtype=torch.int8)
            noise = sign.double().mul_(2).sub_(1).div_(math.sqrt(lr))
            amplitude = torch.sin(place).square_().mul_(0.5).add_(1).sqrt_()
            gradient = torch.sin(2 * place).mul_(0.5).add_(place).addcmul_(amplitude, noise)
            velocity.mul_(kept).addcmul_(gradient, 1 - kept)
            place.sub_(velocity, alpha=lr)
            if step % (steps // _TIMES) == 0:
                squares = place.square().mean(1)
                gaps.append(squares[1:] - squares[0])
        rows += [
            {
                "path_gaps": [float(gap[index]) for gap in gaps],
                "exponent": exponent,
                "alpha": alpha,
            }
            for index, alpha in enumerate(_ORDERS)
        ]
    return rows


def _stationary(trial: Stationary) -> list[dict[str, Any]]:
    """Ridge regression of the label's parity, 50 replicas, the same batches for all settings."""
    import torch

    from undertow import predict

    inputs, labels = _load(trial)
    inputs = torch.cat([inputs.double(), torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    targets = 1.0 - 2.0 * (labels % 2).double()
    hessian = inputs.T @ inputs / len(inputs)
    ridge = _RIDGE * float(torch.linalg.eigvalsh(hessian)[-1])
    hessian += ridge * torch.eye(len(hessian), dtype=torch.float64)
    sharpness, top = (part[..., -1] for part in torch.linalg.eigh(hessian))
    best = torch.linalg.solve(hessian, inputs.T @ targets / len(inputs))

    generator = torch.Generator().manual_seed(trial.seed)
    settings = [(c, kept) for c in _CURVATURES for kept in (trial.momentum, 0.0)]
    rates = torch.tensor([c / float(sharpness) for c, _ in settings]).double()[:, None, None]
    kept = torch.tensor([beta for _, beta in settings]).double()[:, None, None]
    replicas, batch_size, steps = 50, _REGRESSION_BATCH, 400
    if trial.order == "epochs":
        batches = _epochs(len(inputs), batch_size, replicas, generator)
    else:
        batches = iter(
            lambda: torch.randint(0, len(inputs), (replicas, batch_size), generator=generator),
            None,
        )
    place = best.repeat(len(settings), replicas, 1)
    velocity, total = torch.zeros_like(place), torch.zeros(len(settings), dtype=torch.float64)
    for step in range(_BURN_IN + steps):
        drawn = next(batches)
        batch = inputs[drawn]
        residuals = torch.bmm(batch, place.permute(1, 2, 0)) - targets[drawn][:, :, None]
        gradient = torch.bmm(batch.transpose(1, 2), residuals).permute(2, 0, 1) / batch_size
        gradient += ridge * place
        velocity = kept * velocity + (1 - kept) * gradient
        place = place - rates * velocity
        if step >= _BURN_IN:
            total += ((place - best) @ top).square().mean(1)
    variances = total.view(len(_CURVATURES), 2)
    return [
        {
            "curvature": curvature,
            "measured_ratio": float(with_momentum / without),
            "predicted_ratio": predict.momentum_equivalent(
                curvature, trial.momentum, form="ema", sharpness=1.0
            ).variance_ratio,
        }
        for curvature, (with_momentum, without) in zip(_CURVATURES, variances, strict=True)
    ]


def _epochs(
    count: int, batch_size: int, replicas: int, generator: Generator
) -> Iterator[Int[Tensor, "replicas batch"]]:
    """Batches without replacement; what an epoch leaves over after whole batches is dropped."""
    import torch

    while True:
        keys = torch.rand(replicas, count, generator=generator)
        shuffled = keys.argsort(dim=1)
        whole = count // batch_size * batch_size
        yield from shuffled[:, :whole].split(batch_size, dim=1)


def _load(trial: Stationary | Training) -> tuple[Tensor, Tensor]:
    from undertow import data

    loaded = data.load(trial.data, root=trial.data_root, train_size=trial.samples)
    return loaded.train_inputs.flatten(1), loaded.train_targets


def _train(group_trials: Sequence[Training]) -> list[list[dict[str, Any]]]:
    """One cell: all seeds, with the loss that SGD had where momentum's lag leaves it."""
    from torch.nn import functional

    from undertow import data, measure, models, predict
    from undertow.objective import Objective
    from undertow.train import Ensemble, Member, rules

    first = group_trials[0]
    loaded = data.load(first.data, root=first.data_root, train_size=first.samples)
    inputs, targets = loaded.train_inputs.flatten(1), loaded.train_targets
    test = loaded.test_inputs.flatten(1), loaded.test_targets
    sizes = (inputs.shape[1], first.width, loaded.num_classes)
    kept = 0.0 if first.method == "sgd" else first.momentum
    lr = first.lr if first.method == "raw" else (1 - kept) * first.lr
    rule = rules.sgd if first.method == "sgd" else rules.momentum
    ensemble = Ensemble(
        lambda generator: models.mlp(sizes, generator=generator),
        functional.cross_entropy,
        (inputs, targets),
        # Independent batches, as the theory has them: over shuffled epochs noise cancels.
        [Member(trial.seed, lr, momentum=kept, order="replacement") for trial in group_trials],
        batch_size=first.batch_size,
        rule=rules.svag(rule, first.level),
        path="fused",
    )
    steps = first.steps * first.level
    every_row: list[dict[str, Any]] = [{} for _ in group_trials]
    moved = predict.averaged_lr(np.full(steps, (1 - first.momentum) * first.lr), first.momentum)
    early = steps // 4 if first.level == 1 else None
    behind = round(float(moved.sum()) / first.lr) if first.method == "sgd" else None
    # In short runs with much momentum the lag is longer than what follows the first quarter.
    for reading in sorted({step for step in (early, behind) if step is not None}):
        ensemble.train(reading - ensemble.steps_taken)
        if reading == early:
            for e, row in enumerate(every_row):
                if ensemble.diverged_at[e] is None:
                    objective = Objective(
                        ensemble.module(e), functional.cross_entropy, (inputs, targets)
                    )
                    found = measure.sharpness(objective, rtol=0.05)
                    row["edge"] = first.lr * float(found.eigenvalues[0])
        if reading == behind:
            losses = ensemble.evaluate(inputs, targets).loss
            for row, lagged in zip(every_row, losses.tolist(), strict=True):
                row["lagged_loss"] = lagged
    ensemble.train(steps - ensemble.steps_taken)
    loss = ensemble.evaluate(inputs, targets).loss
    accuracy = ensemble.evaluate(*test).accuracy
    for e, row in enumerate(every_row):
        row |= {
            "diverged": ensemble.diverged_at[e] is not None,
            "loss": float(loss[e]),
            "accuracy": float(accuracy[e]),
        }
    return [[row] for row in every_row]


# ---- the verdict rule


def judge(records: pl.DataFrame, config: Config) -> Verdict:
    """Every check of the claim; the thresholds were fixed before the verdict seeds ran."""
    trained = records.filter(pl.col("loss").is_not_null())
    lost = trained.filter("diverged")["trial"].n_unique()
    summary = (
        f"{lost} of {trained['trial'].n_unique()} networks diverged; the networks are compared at "
        f"effective learning rates {config.small_lr:g} and {config.large_lr:g}."
    )
    checks = [
        *_order_checks(records),
        *_variance_checks(records),
        *_network_checks(trained, config),
    ]
    return decide(checks, summary, promises_verdict=config.seeds >= _LEAST_SEEDS)


def _order_checks(records: pl.DataFrame) -> list[Check]:
    checks = []
    for alpha in _ORDERS:
        order, control = 1 - alpha, alpha == 1
        exact = [exact_slope(records, noise, alpha) for noise in _NOISES]
        farther = max(exact, key=lambda effect: abs(effect.value - order))
        for kind, effect in (("exact", farther), ("simulated", simulated_slope(records, alpha))):
            name = f"order of the weak error, alpha = {alpha:g}, {kind}"
            if control:
                checks.append(
                    check_below(
                        name,
                        effect,
                        bound=0.1,
                        rule="at most 0.1: the gap does not close",
                        control=True,
                    )
                )
                continue
            rule = f"{order - 0.1:g} to {order + 0.1:g}: 1 - alpha"
            checks.append(check_within(name, effect, order - 0.1, order + 0.1, rule))
    return checks


def exact_slope(records: pl.DataFrame, noise: str, alpha: float) -> lab.Effect:
    """The slope of log gap on log lr of the exact recursion."""
    rows = records.filter(pl.col("noise") == noise, pl.col("alpha") == alpha).sort("exponent")
    logs = -math.log(2) * rows["exponent"].to_numpy()
    return lab.slope(logs, np.log(rows["exact_gap"].to_numpy()))


def _simulated_gaps(records: pl.DataFrame, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """The exponents of the rates, and the signed gaps `[seeds, rates, times]`."""
    rows = records.filter(pl.col("path_gaps").is_not_null(), pl.col("alpha") == alpha)
    by_seed = rows.sort("seed", "exponent").partition_by("seed", maintain_order=True)
    gaps = np.stack([np.array(own["path_gaps"].to_list()) for own in by_seed])
    return rows["exponent"].unique().sort().to_numpy(), gaps


def simulated_slope(records: pl.DataFrame, alpha: float) -> lab.Effect:
    """The same of the simulated paths, averaged over seeds before the largest gap is taken."""
    exponents, gaps = _simulated_gaps(records, alpha)

    def slope(chosen: np.ndarray) -> float:
        largest = np.abs(gaps[chosen.astype(int)].mean(0)).max(1)
        return float(np.polyfit(-math.log(2) * exponents, np.log(largest), 1)[0])

    every = np.arange(len(gaps))
    if len(gaps) < _LEAST_SEEDS:
        return lab.Effect(slope(every), (math.nan, math.nan), None, len(gaps), "too few seeds")
    return lab.bootstrap_interval(every, slope, resamples=1000)


def _variance_checks(records: pl.DataFrame) -> list[Check]:
    rows = records.filter(pl.col("measured_ratio").is_not_null()).sort("seed")
    relative = pl.col("measured_ratio") / pl.col("predicted_ratio")
    agreement = [
        over_seeds(
            rows.filter(curvature=curvature, order="replacement").select(relative).to_series()
        )
        for curvature in _CURVATURES
    ]
    worst = max(agreement, key=lambda effect: abs(effect.value - 1))
    edge = over_seeds(rows.filter(curvature=1.0, order="replacement")["measured_ratio"])
    shuffled = over_seeds(rows.filter(curvature=0.1, order="epochs")["measured_ratio"])
    return [
        check_within(
            "stationary variance ratio over its closed form",
            worst,
            0.95,
            1.05,
            f"0.95 to 1.05 at the worst of lr x sharpness {_CURVATURES}",
        ),
        check_below(
            "stationary variance ratio at lr x sharpness 1",
            edge,
            bound=0.8,
            rule="at most 0.8: there the two are not alike",
            control=True,
        ),
        check_below(
            "stationary variance ratio over shuffled epochs, lr x sharpness 0.1",
            shuffled,
            bound=0.9,
            rule="at most 0.9, where independent batches have 0.95: the noise must be independent",
            control=True,
        ),
    ]


def _difference(
    trained: pl.DataFrame, column: str, methods: tuple[str, str], **cell: float
) -> dict[int, float]:
    """By seed, the first method's value minus the second's in one cell."""
    kept = trained.filter(~pl.col("diverged"), **cell)
    first, second = (kept.filter(method=name).select("seed", column) for name in methods)
    pairs = first.join(second, on="seed", suffix="_other").sort("seed")
    return dict(zip(pairs["seed"], pairs[column] - pairs[f"{column}_other"], strict=True))


def _log_gaps(trained: pl.DataFrame, config: Config, level: int) -> dict[int, float]:
    """By seed, log train loss of momentum minus that of SGD at one SVAG level."""
    logs = trained.with_columns(pl.col("loss").log())
    return _difference(logs, "loss", ("momentum", "sgd"), lr=config.large_lr, level=level)


def _share_left(trained: pl.DataFrame, config: Config) -> lab.Effect:
    """The log gap at the finest SVAG level, in parts of the mean without SVAG."""
    before = _log_gaps(trained, config, 1)
    after = _log_gaps(trained, config, max(config.svag_levels))
    seeds = sorted(before.keys() & after.keys())
    whole = np.mean([before[own] for own in seeds]) if seeds else math.nan
    return over_seeds([after[own] / whole for own in seeds])


def _network_checks(trained: pl.DataFrame, config: Config) -> list[Check]:
    alike: dict[str, float] = {"lr": config.small_lr, "level": 1}
    apart: dict[str, float] = {"lr": config.large_lr, "level": 1}
    pair = ("momentum", "sgd")

    def gap_in(column: str, methods: tuple[str, str], cell: dict[str, float]) -> lab.Effect:
        return over_seeds([*_difference(trained, column, methods, **cell).values()])

    same_loss, same_accuracy = (gap_in(column, pair, alike) for column in ("loss", "accuracy"))
    raw, gap = gap_in("loss", ("raw", "sgd"), alike), gap_in("loss", pair, apart)
    edge = trained.filter(~pl.col("diverged"), method="momentum", **apart).sort("seed")["edge"]
    finest = max(config.svag_levels)
    limit: dict[str, float] = {"lr": config.large_lr, "level": finest}
    closed = gap_in("loss", pair, limit)
    return [
        check_within(
            f"train loss, momentum - SGD, lr {config.small_lr:g}",
            same_loss,
            -_LOSS_MARGIN,
            _LOSS_MARGIN,
            f"within +-{_LOSS_MARGIN:g}: equivalent",
        ),
        check_within(
            f"test accuracy, momentum - SGD, lr {config.small_lr:g}",
            same_accuracy,
            -_ACCURACY_MARGIN,
            _ACCURACY_MARGIN,
            f"within +-{_ACCURACY_MARGIN:g}: equivalent",
        ),
        _check_outside(
            f"train loss at the same raw lr, momentum - SGD, lr {config.small_lr:g}",
            raw,
            _LOSS_MARGIN,
            f"outside +-{_LOSS_MARGIN:g}: without the factor 1 - beta they are not equivalent",
        ),
        check_below(
            f"train loss, momentum - SGD, lr {config.large_lr:g}",
            gap,
            bound=-0.05,
            rule="at most -0.05: with large steps momentum is better",
        ),
        check_above(
            f"lr x sharpness of the momentum runs, lr {config.large_lr:g}",
            over_seeds(edge.drop_nulls()),
            bound=2.0,
            rule="at least 2: they go where plain descent is unstable",
        ),
        check_within(
            f"share of the log-loss gap left under SVAG, l = {finest}",
            _share_left(trained, config),
            -0.25,
            0.25,
            f"within +-0.25 at lr {config.large_lr:g}: SVAG closes the gap",
        ),
        check_within(
            f"train loss, momentum - SGD, lr {config.large_lr:g}, SVAG l = {finest}",
            closed,
            -_LOSS_MARGIN,
            _LOSS_MARGIN,
            f"within +-{_LOSS_MARGIN:g}: equivalent",
        ),
    ]


def _check_outside(name: str, effect: lab.Effect, margin: float, rule: str) -> Check:
    """A control that two things are not equivalent: the whole interval lies outside the margin."""
    low, high = effect.interval
    apart = high < -margin or low > margin
    return Check(name, effect.value, effect.interval, rule, passed=apart, control=True)


# ---- what a reader sees


def table(records: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Loss, accuracy and lr x sharpness of the networks, by learning rate, level and method."""
    trained = records.filter(pl.col("loss").is_not_null(), ~pl.col("diverged"))
    return (
        trained.group_by("lr", "level", "method")
        .agg(
            pl.col("loss").mean().alias("train loss"),
            pl.col("lagged_loss").mean().alias("loss at momentum's lag"),
            pl.col("accuracy").mean().alias("test accuracy"),
            pl.col("edge").median().alias("lr x sharpness"),
            pl.len().alias("runs"),
        )
        .sort("level", "lr", "method")
    )


def figures(records: pl.DataFrame, config: Config) -> list[Figure]:
    """The charts of the report."""
    trained = records.filter(pl.col("loss").is_not_null(), ~pl.col("diverged"))
    drawn = [_order_figure(records), _variance_figure(records, config)]
    if not trained.is_empty():
        drawn.append(_network_figure(trained, config))
    closing = _svag_gaps(trained, config)
    if not closing.is_empty():
        drawn.append(_svag_figure(closing, config))
    return drawn


_LEGEND = alt.Legend(orient="top", title=None, labelLimit=0)


def _order_figure(records: pl.DataFrame) -> Figure:
    rows = []
    for alpha in _ORDERS:
        name = f"alpha = {alpha:g}"
        exact = records.filter(
            pl.col("exact_gap").is_not_null(),
            pl.col("noise") == _NOISES[1],
            pl.col("alpha") == alpha,
        ).sort("exponent")
        finest = exact.row(-1, named=True)
        for exponent, gap in exact.select("exponent", "exact_gap").iter_rows():
            predicted = finest["exact_gap"] * 2.0 ** ((finest["exponent"] - exponent) * (1 - alpha))
            rows.append((name, "exact, quadratic", 2.0**-exponent, gap))
            rows.append((name, "lr^(1 - alpha)", 2.0**-exponent, predicted))
        exponents, gaps = _simulated_gaps(records, alpha)
        for exponent, gap in zip(exponents, np.abs(gaps.mean(0)).max(1), strict=True):
            rows.append((name, "simulated, not quadratic", 2.0 ** -float(exponent), float(gap)))
    frame = pl.DataFrame(rows, schema=["order", "what", "lr", "gap"], orient="row")
    base = alt.Chart(frame).encode(
        x=alt.X("lr:Q", scale=alt.Scale(type="log"), title="learning rate"),
        y=alt.Y("gap:Q", scale=alt.Scale(type="log"), title="largest gap of E x^2"),
        color=alt.Color("order:N", legend=_LEGEND),
    )
    predicted = base.transform_filter("datum.what == 'lr^(1 - alpha)'").mark_line(strokeDash=[5, 4])
    points = base.transform_filter("datum.what != 'lr^(1 - alpha)'").mark_point(
        filled=True, size=45
    )
    chart = (predicted + points.encode(shape=alt.Shape("what:N", legend=_LEGEND))).properties(
        width=560, height=300
    )
    return Figure(
        "order",
        "The weak error falls as lr^(1 - alpha), and not at all at alpha = 1",
        "Largest difference of E x^2 between momentum and SGD at equal effective learning rate, "
        "with 1 - momentum in proportion to lr^alpha and noise of variance 1 / lr. Dashed: the "
        "order 1 - alpha. The theorem guarantees half of it.",
        chart,
    )


def _variance_figure(records: pl.DataFrame, config: Config) -> Figure:
    from undertow import predict

    grid = np.linspace(0.01, 1.9, 80)
    curve = pl.DataFrame(
        {
            "curvature": grid,
            "ratio": [
                predict.momentum_equivalent(
                    float(c), config.momentum, form="ema", sharpness=1.0
                ).variance_ratio
                for c in grid
            ],
        }
    )
    rows = []
    for curvature in _CURVATURES:
        for order, name in (("replacement", "independent batches"), ("epochs", "shuffled epochs")):
            values = records.filter(pl.col("curvature") == curvature, pl.col("order") == order)[
                "measured_ratio"
            ]
            effect = over_seeds(values)
            rows.append((name, curvature, effect.value, *effect.interval))
    points = pl.DataFrame(
        rows, schema=["batches", "curvature", "ratio", "low", "high"], orient="row"
    )
    x = alt.X("curvature:Q", title="learning rate x sharpness")
    line = alt.Chart(curve).mark_line().encode(x=x, y=alt.Y("ratio:Q", title="variance ratio"))
    color = alt.Color("batches:N", legend=_LEGEND)
    dots = alt.Chart(points).mark_point(filled=True, size=50)
    bars = alt.Chart(points).mark_rule()
    chart = (
        line
        + bars.encode(x=x, y="low:Q", y2="high:Q", color=color)
        + dots.encode(x=x, y="ratio:Q", color=color)
    ).properties(width=560, height=260)
    return Figure(
        "variance",
        "What momentum does to the stationary noise is set by lr x sharpness",
        "Stationary variance along the top eigenvector, momentum over SGD, of minibatch least "
        "squares on real inputs (points, with 95% intervals) and the closed form for independent "
        "batches (line). Over shuffled epochs momentum averages the noise away.",
        chart,
    )


def _network_figure(trained: pl.DataFrame, config: Config) -> Figure:
    names = {
        "sgd": "SGD",
        "momentum": "momentum, lr x (1 - beta)",
        "raw": "momentum, same raw lr",
    }
    runs = trained.filter(pl.col("level") == 1)
    means = (
        runs.group_by("method", "lr")
        .agg(pl.col("loss").mean())
        .with_columns(pl.col("method").replace_strict(names))
        .sort("method", "lr")
    )
    x = alt.X("lr:Q", scale=alt.Scale(type="log", nice=False), title="effective learning rate")
    losses = (
        alt.Chart(means)
        .mark_line(point=True)
        .encode(
            x=x,
            y=alt.Y("loss:Q", scale=alt.Scale(type="log"), title="train loss"),
            color=alt.Color("method:N", sort=[*names.values()], legend=_LEGEND),
        )
        .properties(width=265, height=260)
    )
    rows = []
    for lr in config.lrs:
        gaps = _difference(runs, "loss", ("momentum", "sgd"), lr=lr)
        stopped = runs.filter(method="sgd", lr=lr).sort("seed")
        for name, values in (
            ("measured", list(gaps.values())),
            ("predicted by the lag", (stopped["lagged_loss"] - stopped["loss"]).to_list()),
        ):
            if len(values) >= 2:
                effect = over_seeds(values)
                rows.append((name, lr, effect.value, *effect.interval))
    frame = pl.DataFrame(rows, schema=["gap", "lr", "value", "low", "high"], orient="row")
    y = alt.Y(
        "value:Q",
        scale=alt.Scale(domain=[-0.05, 0.03]),
        title="train loss, momentum - SGD",
    )
    color = alt.Color(
        "gap:N", scale=alt.Scale(range=["black", "#e45756"]), legend=_LEGEND, title=None
    )
    measured = alt.Chart(frame).mark_line(point=True, clip=True).encode(x=x, y=y, color=color)
    bars = alt.Chart(frame).mark_rule(clip=True).encode(x=x, y="low:Q", y2="high:Q", color=color)
    gap = (measured + bars).properties(width=265, height=260)
    return Figure(
        "network",
        "On a network: alike while steps are small, then only momentum is stable",
        f"Train loss after {config.steps} steps, mean over seeds. Right: what is left between the "
        "two, cut off where SGD fails, and the lag predicted from SGD itself, stopped beta / (1 - "
        "beta) steps earlier. Without the factor 1 - beta nothing agrees.",
        # Without pairs that both stayed finite there is no gap, and an empty panel has no size.
        losses if frame.is_empty() else (losses | gap).resolve_scale(color="independent"),
    )


def _svag_gaps(trained: pl.DataFrame, config: Config) -> pl.DataFrame:
    """The log gap with its interval, for each level of which pairs are left."""
    rows = []
    for level in (1, *sorted(config.svag_levels)):
        gaps = _log_gaps(trained, config, level)
        if len(gaps) >= 2:
            effect = over_seeds([*gaps.values()])
            rows.append((level, effect.value, *effect.interval))
    return pl.DataFrame(rows, schema=["l", "gap", "low", "high"], orient="row")


def _svag_figure(frame: pl.DataFrame, config: Config) -> Figure:
    x = alt.X(
        "l:Q",
        scale=alt.Scale(type="log", base=2),
        axis=alt.Axis(values=[1, *config.svag_levels]),
        title="l of SVAG",
    )
    y = alt.Y("gap:Q", title="log train loss, momentum - SGD")
    line = alt.Chart(frame).mark_line(point=True).encode(x=x, y=y)
    bars = alt.Chart(frame).mark_rule().encode(x=x, y="low:Q", y2="high:Q")
    return Figure(
        "svag",
        "SVAG closes the gap",
        "Log train loss of momentum minus that of SGD at effective learning rate "
        f"{config.large_lr:g}, with 95% intervals. SVAG divides what curvature adds to a step by "
        "l and leaves the noise.",
        (line + bars).properties(width=560, height=260),
    )


CLAIM = Claim(
    name="momentum",
    title="With small steps, momentum is SGD at another learning rate",
    paper="Wang, Malladi, Wang, Lyu and Li, The Marginal Value of Momentum for Small Learning Rate "
    "SGD, 2023 (arXiv 2307.15196)",
    statement="At equal effective learning rate, lr / (1 - beta) in PyTorch's form, SGD with and "
    "without momentum have the same distribution up to a weak error that vanishes with lr, as long "
    "as 1 - beta falls slower than lr. Where momentum does better, steps are large against the "
    "curvature, and SVAG, which shrinks what curvature adds to a step and not the noise, takes the "
    "advantage away.",
    corrections=(
        "With 1 - beta in proportion to lr^alpha the theorem guarantees half of the order 1 - "
        "alpha that problems with an exact solution have; at alpha = 1 the gap does not close.",
        "Equal effective learning rates at equal numbers of steps leave momentum behind by its "
        "lag, beta / (1 - beta) steps. In short runs at small rates that lag is most of the "
        "difference.",
        "The theorem's noise is independent from step to step. Over shuffled epochs it is not, and "
        "momentum, which averages over steps, keeps less of it than SGD even at small steps; the "
        "networks here draw their batches with replacement.",
    ),
    config=Config,
    presets={
        "smoke": Config(
            samples=200,
            replicas=500,
            path_exponents=(5, 6, 7),
            steps=40,
            lrs=(0.05, 2.0),
            svag_levels=(2,),
            seeds=2,
        ),
        "small": Config(),
        "paper": Config(
            data="fashion-mnist",
            regression_samples=1_400,
            lrs=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
            small_lr=0.01,
            large_lr=1.0,
            width=256,
            batch_size=128,
            steps=10_000,
            replicas=200_000,
            seeds=50,
        ),
    },
    costs={"smoke": "10 s", "small": "1 min on two cores", "paper": "two days on two cores"},
    trials=trials,
    group=group,
    group_size=24,
    run=run,
    judge=judge,
    figures=figures,
    table=table,
)
