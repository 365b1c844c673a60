"""The infinite-depth limit of ReLU networks (Xu and Zhang, arXiv 2107.12530).

With W_n = I + P_n and summable ||P_n|| and ||b_n|| the outputs N_n(x) converge as layers are added.
How fast is read off d(n) = ||N_2n - N_n||; what it is good for is tested by training 100 layers.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

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
    worst_over_seeds,
)

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["aligned", "random", "bias", "shrinking", "mixing", "mixed-sign"]
_BURN_IN = 128  # layers before the first d(n)
_POINTS_PER_DOUBLING = 2
_BLOCK = 256  # layers whose noise is drawn at once
_STOPPED = 0.5  # ||W_n - I|| of the networks that converge without W_n -> I
_DIVERGING = (0.0, 0.4)  # powers below 1/2: even random perturbations do not converge


@dataclass(frozen=True)
class Config:
    """Knobs.

    Attributes:
        width: of the networks whose limit is taken.
        depth: their layers; d(n) is read from 128 layers to half of it.
        scale: c in ||P_n|| = c n^-power.
        aligned_powers: powers above 1 of P_n = c n^-power I; power 1, which diverges, is added.
        random_powers: powers above 1/2 of P_n random with mean zero.
        bias_powers: powers above 1/2 of b_n random with mean zero, at W_n = I.
        seeds: independent networks and inputs of each kind.
        data: what the deep networks are trained on.
        data_root: folder of a dataset that you have.
        samples: training images.
        net_width: hidden width of the trained networks.
        net_depth: their layers of equal width.
        shallow_depth: of the network that shows that He's initialisation is in order.
        lrs: learning rates that every initialisation is given.
        steps: of SGD at batch size 32.
        net_seeds: independent trainings.
    """

    width: int = 20
    depth: int = 4096
    scale: float = 0.5
    aligned_powers: tuple[float, ...] = (1.5, 2.0)
    random_powers: tuple[float, ...] = (0.75, 1.0, 1.5, 2.0)
    bias_powers: tuple[float, ...] = (1.0, 1.5)
    seeds: int = 60
    data: str = "digits"
    data_root: str | None = None
    samples: int = 1000
    net_width: int = 32
    net_depth: int = 100
    shallow_depth: int = 3
    lrs: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    steps: int = 600
    net_seeds: int = 8

    def __post_init__(self) -> None:
        if self.depth < 4 * _BURN_IN:
            raise ValueError(f"depth must be at least {4 * _BURN_IN}, got {self.depth}")
        for name, least in (("aligned_powers", 1.0), ("random_powers", 0.5), ("bias_powers", 0.5)):
            values = getattr(self, name)
            if not values or min(values) <= least:
                raise ValueError(
                    f"{name} must all exceed {least:g}, below which there is no limit; got {values}"
                )
        if not self.lrs or min(self.lrs) <= 0:
            raise ValueError(f"lrs must be positive learning rates, got {self.lrs}")
        for name in ("aligned_powers", "random_powers", "bias_powers", "lrs"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must not hold a value twice, got {values}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive, got {self.scale}")
        counts = ("width", "samples", "net_width", "net_depth", "shallow_depth", "steps")
        for name in (*counts, "seeds", "net_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.shallow_depth >= self.net_depth:
            raise ValueError(
                f"shallow_depth must be below net_depth = {self.net_depth}, got "
                f"{self.shallow_depth}"
            )


# ---- trials


@dataclass(frozen=True)
class Limit:
    """One ReLU network of great depth on one input, in float64."""

    kind: Kind
    power: float
    scale: float
    width: int
    depth: int
    seed: int


@dataclass(frozen=True)
class Training:
    """One deep plain MLP trained on real data."""

    data: str
    data_root: str | None
    samples: int
    init: Literal["identity-plus-noise", "he"]
    net_width: int
    net_depth: int
    lr: float
    steps: int
    seed: int


def trials(config: Config, seed: int) -> list[Limit | Training]:
    """Networks of each kind and power for each seed; deep networks at each learning rate."""
    kinds: list[tuple[Kind, float]] = [
        *(("aligned", power) for power in (1.0, *config.aligned_powers)),
        *(("random", power) for power in (*_DIVERGING, *config.random_powers)),
        *(("bias", power) for power in config.bias_powers),
        ("shrinking", 0.0),
        ("mixing", 0.0),
        ("mixed-sign", 0.0),
    ]
    limits = [
        Limit(kind, power, config.scale, config.width, config.depth, seed * 10_000 + index)
        for index in range(config.seeds)
        for kind, power in kinds
    ]
    nets: tuple[tuple[Literal["identity-plus-noise", "he"], int], ...] = (
        ("identity-plus-noise", config.net_depth),
        ("he", config.net_depth),
        ("he", config.shallow_depth),
    )
    trainings = [
        Training(
            config.data,
            config.data_root,
            config.samples,
            init,
            config.net_width,
            depth,
            lr,
            config.steps,
            seed * 10_000 + index,
        )
        for init, depth in nets
        for lr in config.lrs
        for index in range(config.net_seeds)
    ]
    return [*trainings, *limits]  # the longest first


def group(trial: Limit | Training) -> Hashable:
    """Networks of one size run side by side; deep networks of one architecture as an ensemble."""
    if isinstance(trial, Limit):
        return replace(trial, kind="random", power=0.0, seed=0)
    return replace(trial, lr=0.0, seed=0)


def run(group_trials: Sequence[Limit | Training]) -> list[list[dict[str, Any]]]:
    """Run one group and return the records of each trial."""
    if isinstance(group_trials[0], Limit):
        return _run_limits([trial for trial in group_trials if isinstance(trial, Limit)])
    return _run_trainings([trial for trial in group_trials if isinstance(trial, Training)])


def _generators(seed: int) -> list[Any]:
    """Independent generators of a seed's input, perturbations and biases."""
    import torch

    children = np.random.SeedSequence(seed).spawn(3)
    return [
        torch.Generator().manual_seed(int(child.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        for child in children
    ]


def _bias_power(trial: Limit) -> float:
    """Biases beside perturbations fall fast enough not to show in d(n)."""
    return trial.power if trial.kind == "bias" else max(trial.power, 1.5) + 0.5


def _run_limits(group_trials: Sequence[Limit]) -> list[list[dict[str, Any]]]:
    import torch

    first = group_trials[0]
    width, depth = first.width, first.depth
    own = {seed: _generators(seed) for seed in dict.fromkeys(t.seed for t in group_trials)}
    which = torch.tensor([list(own).index(trial.seed) for trial in group_trials])

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    def of_kind(*kinds: Kind) -> Tensor:
        return column([float(trial.kind in kinds) for trial in group_trials])

    inputs = [torch.rand(width, generator=o[0], dtype=torch.float64) for o in own.values()]
    state = torch.stack(inputs)[which]
    signs = torch.ones(width, dtype=torch.float64)
    signs[::2] = -1
    state = torch.where(of_kind("mixed-sign")[:, None] > 0, state * signs, state)
    start = state.norm(dim=1)
    average = state.mean(1, keepdim=True)

    scale = column([trial.scale for trial in group_trials])
    power = column([trial.power for trial in group_trials])
    aligned, random = of_kind("aligned"), of_kind("random")
    mixing, stopped = of_kind("mixing"), of_kind("mixing", "shrinking")
    biased = of_kind("aligned", "random", "bias")
    bias_power = column([_bias_power(trial) for trial in group_trials])

    layers = _read_at(depth)
    wanted = set(layers) | {2 * n for n in layers}
    kept: dict[int, Tensor] = {}
    excess = torch.full_like(start, -math.inf)
    log_growth, pushed = torch.zeros_like(start), start.clone()
    for before in range(0, depth, _BLOCK):
        noise, push = _noise(list(own.values()), width)
        for index in range(min(_BLOCK, depth - before)):
            n = before + index + 1
            size = scale * n**-power
            bias_norm = biased * n**-bias_power
            norm = _norm(state)
            turned = (noise[index][which] @ state[..., None])[..., 0]
            change = (size * aligned - _STOPPED * stopped)[:, None] * state
            change += (size * random)[:, None] * turned
            change += (_STOPPED * mixing * state.mean(1))[:, None]
            change += bias_norm[:, None] * push[index][which]
            after = (state + change).clamp(min=0)
            perturbation = size * (aligned + random) + _STOPPED * stopped
            over = _norm(after - state) - perturbation * norm - bias_norm
            # A state that shrinks to nothing has only rounding errors in proportion to its start.
            excess = torch.maximum(excess, over / torch.maximum(norm, start))
            log_growth += perturbation.log1p()
            pushed += bias_norm
            state = after
            if n in wanted:
                kept[n] = state
    doubling = torch.stack([_norm(kept[2 * n] - kept[n]) for n in layers])
    end = _norm(state)
    log_norm_ratio = end.log() - log_growth - pushed.log()
    off_average = _norm(state - average) / start
    lost = ~torch.isfinite(end)  # grown out of float64's range
    return [
        [
            {
                "diverged": bool(lost[e]),
                "layers": n,
                "doubling": float(doubling[row, e]),
                "slope": _slope(layers, doubling[:, e].numpy()),
                "excess": float(excess[e]),
                "log_norm_ratio": float(log_norm_ratio[e]),
                "limit_ratio": float(end[e] / start[e]),
                "off_average": float(off_average[e]),
                "last_ratio": float(doubling[-1, e] / start[e]),
            }
            for row, n in enumerate(layers)
        ]
        for e in range(len(group_trials))
    ]


def _norm(vectors: Tensor) -> Tensor:
    """Norms `[E]` of vectors `[E, m]` whose squares may overflow: constant perturbations' do."""
    import torch

    size = vectors.abs().amax(1).clamp(min=torch.finfo(vectors.dtype).tiny)
    return size * (vectors / size[:, None]).norm(dim=1)


def _read_at(depth: int) -> list[int]:
    """Depths n, equally spaced on a logarithmic scale, of which 2 n is reached too."""
    doublings = math.log2(depth / 2 / _BURN_IN)
    steps = math.floor(doublings * _POINTS_PER_DOUBLING + 1e-9)
    return [round(_BURN_IN * 2 ** (step / _POINTS_PER_DOUBLING)) for step in range(steps + 1)]


def _noise(generators: Sequence[Any], width: int) -> tuple[Tensor, Tensor]:
    """Perturbations of spectral norm one `[layers, seeds, m, m]`, and unit biases."""
    import torch

    double = torch.float64
    matrices = [torch.randn(_BLOCK, width, width, generator=g[1], dtype=double) for g in generators]
    noise = torch.stack(matrices, 1)
    noise /= torch.linalg.matrix_norm(noise, 2)[..., None, None]
    vectors = [torch.randn(_BLOCK, width, generator=g[2], dtype=double) for g in generators]
    push = torch.stack(vectors, 1)
    return noise, push / push.norm(dim=2, keepdim=True)


def _slope(layers: Sequence[int], doubling: Any) -> float | None:
    """Least-squares slope of log d on log n; None where a dead network gives d = 0, or infinity."""
    if not ((doubling > 0) & np.isfinite(doubling)).all():
        return None
    return float(np.polyfit(np.log(layers), np.log(doubling), 1)[0])


def _run_trainings(group_trials: Sequence[Training]) -> list[list[dict[str, Any]]]:
    import torch

    from undertow import data
    from undertow.models import deep_plain_mlp
    from undertow.train import Ensemble, Member

    first = group_trials[0]
    loaded = data.load(first.data, root=first.data_root, train_size=first.samples)
    inputs = loaded.train_inputs.flatten(1)
    ensemble = Ensemble(
        lambda generator: deep_plain_mlp(
            first.net_width,
            first.net_depth,
            inputs=inputs.shape[1],
            outputs=loaded.num_classes,
            init=first.init,
            generator=generator,
        ),
        torch.nn.functional.cross_entropy,
        (inputs, loaded.train_targets),
        [Member(trial.seed, trial.lr) for trial in group_trials],
        batch_size=min(32, first.samples),
        path="fused",
    )
    ensemble.train(first.steps)
    train = ensemble.evaluate(inputs, loaded.train_targets).accuracy
    test = ensemble.evaluate(loaded.test_inputs.flatten(1), loaded.test_targets).accuracy
    records: list[list[dict[str, Any]]] = []
    for e in range(len(group_trials)):
        lost = ensemble.diverged_at[e] is not None
        # A network that blew up has learned nothing.
        accuracy = {"train_accuracy": 0.0, "test_accuracy": 0.0}
        if not lost:
            accuracy = {"train_accuracy": float(train[e]), "test_accuracy": float(test[e])}
        records.append([{"diverged": lost, **accuracy}])
    return records


# ---- the verdict rule


def _near(name: str, effect: lab.Effect, target: float, margin: float, rule: str) -> Check:
    return check_within(name, effect, target - margin, target + margin, rule)


def judge(records: pl.DataFrame, config: Config) -> Verdict:
    """Every check of the claim; the thresholds were fixed before the verdict seeds ran."""
    every = records.filter(pl.col("layers") == _BURN_IN)  # one row a network
    limits, trained = (
        every.filter(~pl.col("diverged")),
        records.filter(pl.col("init").is_not_null()),
    )
    checks = [
        *_rate_checks(limits, config),
        *_bound_checks(limits),
        *_counterexample_checks(limits),
        *_training_checks(trained, config),
    ]
    rated = every.filter(pl.col("kind").is_in(["aligned", "random", "bias"]))
    dead, lost = rated["slope"].null_count(), int(every["diverged"].sum())
    proper = limits.filter(pl.col("kind") != "mixed-sign")["excess"].to_list()
    summary = (
        f"{dead} of {len(rated)} networks died or overflowed and have no slope; {lost} overflowed. "
        f"The largest excess over the one-step bound is {max(proper, default=0):.1g} of a state's "
        "norm."
    )
    # A best learning rate is only the best where all were run.
    complete = len(every) + len(trained) == len(trials(config, 0))
    enough = min(config.seeds, config.net_seeds) >= 8 and complete
    return decide(checks, summary, promises_verdict=enough)


def _rate_checks(limits: pl.DataFrame, config: Config) -> list[Check]:
    def slopes(kind: Kind, power: float) -> lab.Effect:
        rows = limits.filter(kind=kind, power=power).sort("seed")
        known = rows["slope"].drop_nulls()
        # The survivors of many that died are no fair sample.
        return over_seeds(known if len(known) >= 0.9 * config.seeds else [])

    within = "within 0.05 of"
    checks = [
        _near(
            f"aligned perturbations n^-{power:g}, slope of d(n)",
            slopes("aligned", power),
            1 - power,
            0.05,
            f"{within} 1 - {power:g}",
        )
        for power in config.aligned_powers
    ]
    checks.append(
        _near(
            "aligned perturbations n^-1, slope of d(n)",
            slopes("aligned", 1.0),
            config.scale,
            0.05,
            f"{within} c = {config.scale:g}: not summable, and it diverges",
        )
    )
    for power in config.random_powers:
        extra = "" if power > 1 else ": not summable, and it converges"
        checks.append(
            _near(
                f"random perturbations n^-{power:g}, slope of d(n)",
                slopes("random", power),
                0.5 - power,
                0.05,
                f"{within} 1/2 - {power:g}{extra}",
            )
        )
    checks += [
        _near(
            f"random biases n^-{power:g}, slope of d(n)",
            slopes("bias", power),
            0.5 - power,
            0.05,
            f"{within} 1/2 - {power:g}",
        )
        for power in config.bias_powers
    ]
    for power in _DIVERGING:
        effect = slopes("random", power)
        checks.append(
            check_above(
                f"random perturbations n^-{power:g}, slope of d(n)",
                effect,
                bound=0.0,
                rule="above 0: perturbations that fall slower than n^-1/2 do not converge",
                control=True,
            )
        )
    return checks


def _seeds_above(limits: pl.DataFrame, column: str, bound: float) -> tuple[lab.Effect, bool]:
    """The share of seeds with a network above `bound` (NaN is), and whether none is, of any."""
    above = limits.group_by("seed").agg((~(pl.col(column) <= bound)).any().alias("above"))["above"]
    return lab.proportion(int(above.sum()), len(above)), not above.any() and len(above) > 0


def _bound_checks(limits: pl.DataFrame) -> list[Check]:
    proper = limits.filter(pl.col("kind") != "mixed-sign")
    step, step_holds = _seeds_above(proper, "excess", 1e-12)
    size, size_holds = _seeds_above(proper, "log_norm_ratio", 1e-9)
    mixed = over_seeds(limits.filter(kind="mixed-sign").sort("seed")["excess"])
    return [
        Check(
            "one-step bound violated",
            step.value,
            step.interval,
            "in no seed, by more than 1e-12 of the norm in any layer of any of "
            f"{len(proper)} networks: ||h_n+1 - h_n|| <= ||P|| ||h_n|| + ||b||",
            passed=step_holds,
            refuted=step.value > 0,
        ),
        Check(
            "norm bound violated",
            size.value,
            size.interval,
            "in no seed, by more than 1e-9: ||N_n|| <= prod(1 + ||P_i||) (||x|| + sum ||b_i||)",
            passed=size_holds,
            refuted=size.value > 0,
        ),
        check_above(
            "one-step bound, mixed-sign input, excess",
            mixed,
            bound=0.01,
            rule="at least 0.01 at W_n = I: the bound needs h >= 0, so the first ReLU breaks it",
            control=True,
        ),
    ]


def _counterexample_checks(limits: pl.DataFrame) -> list[Check]:
    stopped = limits.filter(pl.col("kind").is_in(["shrinking", "mixing"]))
    mixing = limits.filter(kind="mixing").sort("seed")
    moved = worst_over_seeds(stopped, pl.col("last_ratio"))
    limit, off = over_seeds(mixing["limit_ratio"]), over_seeds(mixing["off_average"])
    return [
        check_below(
            "W_n stays 0.5 away from I, d(n) over ||x||",
            moved,
            bound=1e-12,
            rule="at most 1e-12: W_n = I/2 and W_n = (I + 11'/m)/2 converge, so W_n -> I is not "
            "necessary for pointwise convergence",
        ),
        check_above(
            "the same, ||limit|| over ||x|| of the second",
            limit,
            bound=0.5,
            rule="at least 0.5: its limit is not zero",
        ),
        check_below(
            "the same, ||limit - mean of x|| over ||x||",
            off,
            bound=1e-12,
            rule="at most 1e-12: the limit depends on x",
        ),
    ]


def _training_checks(trained: pl.DataFrame, config: Config) -> list[Check]:
    deep = _at_best_lr(trained.filter(init="identity-plus-noise", net_depth=config.net_depth))
    he = _at_best_lr(trained.filter(init="he", net_depth=config.net_depth))
    shallow = _at_best_lr(trained.filter(init="he", net_depth=config.shallow_depth))
    pairs = deep.join(he, on="seed", suffix="_he").sort("seed")
    gain = over_seeds(pairs["test_accuracy"] - pairs["test_accuracy_he"])
    results = {
        "deep": over_seeds(deep["train_accuracy"]),
        "he": over_seeds(he["train_accuracy"]),
        "shallow": over_seeds(shallow["train_accuracy"]),
    }
    layers = f"{config.net_depth} layers"
    best = "at the learning rate of the best mean"
    return [
        check_above(
            f"{layers}, I + c n^-p G, training accuracy",
            results["deep"],
            bound=0.9,
            rule=f"at least 0.9 {best}",
        ),
        check_above(
            f"{layers}, test accuracy, I + c n^-p G less He",
            gain,
            bound=0.4,
            rule="at least 0.4 by seed, each at its own best learning rate",
        ),
        check_below(
            f"{layers}, He, training accuracy",
            results["he"],
            bound=0.5,
            rule=f"at most 0.5 {best}: without the initialisation it does not train",
            control=True,
        ),
        check_above(
            f"{config.shallow_depth} layers, He, training accuracy",
            results["shallow"],
            bound=0.9,
            rule=f"at least 0.9 {best}: the recipe trains a shallow network",
            control=True,
        ),
    ]


def _at_best_lr(trained: pl.DataFrame) -> pl.DataFrame:
    """The runs at the learning rate whose mean training accuracy is the highest."""
    means = trained.group_by("lr").agg(pl.col("train_accuracy").mean())
    best = means.sort("train_accuracy", "lr", descending=[True, False]).head(1)
    return trained.join(best.select("lr"), on="lr").sort("seed")


# ---- what a reader sees


def _predicted(config: Config) -> pl.Expr:
    """The power of n as which d(n) goes; null where there is only no limit."""
    aligned, power = pl.col("kind") == "aligned", pl.col("power")
    return (
        pl.when(aligned, power == 1)
        .then(pl.lit(config.scale))
        .when(aligned)
        .then(1 - power)
        .when(power > 0.5)
        .then(0.5 - power)
    )


def table(records: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Slopes beside their predictions, then accuracies at each learning rate."""
    limits = records.filter(
        pl.col("layers") == _BURN_IN, pl.col("kind").is_in(["aligned", "random", "bias"])
    )
    slopes = (
        limits.group_by("kind", "power")
        .agg(
            pl.col("slope").mean().alias("slope of d(n)"),
            pl.col("slope").std().alias("spread over seeds"),
        )
        .with_columns(_predicted(config).alias("predicted"))
        .sort("kind", "power")
    )
    nets = (
        records.filter(pl.col("init").is_not_null())
        .group_by(pl.col("init").alias("kind"), "net_depth", "lr")
        .agg(
            pl.col("train_accuracy").mean().alias("train accuracy"),
            pl.col("test_accuracy").mean().alias("test accuracy"),
            pl.col("diverged").sum(),
        )
        .sort("kind", "net_depth", "lr")
    )
    return pl.concat([slopes, nets], how="diagonal")


def figures(records: pl.DataFrame, config: Config) -> list[Figure]:
    """The charts of the report."""
    return [_rate_figure(records, config), _training_figure(records, config)]


_MEASURED, _PREDICTED = "measured", "predicted"


def _rate_figure(records: pl.DataFrame, config: Config) -> Figure:
    measured = (
        records.filter(
            pl.col("kind").is_in(["aligned", "random", "bias"]),
            pl.col("doubling") > 0,
            pl.col("doubling").is_finite(),
            pl.col("power") > 0,
        )
        .group_by("kind", "power", "layers")
        .agg(pl.col("doubling").log().mean().exp().alias("d(n)"))
        .sort("kind", "power", "layers")
    )
    predicted = measured.with_columns(
        pl.col("d(n)").first().over("kind", "power")
        * (pl.col("layers") / pl.col("layers").first().over("kind", "power")).pow(
            _predicted(config)
        )
    ).filter(pl.col("d(n)").is_not_null())
    rows = pl.concat(
        [
            measured.with_columns(pl.lit(_MEASURED).alias("line")),
            predicted.with_columns(pl.lit(_PREDICTED).alias("line")),
        ]
    ).with_columns(pl.format("{}", pl.col("power")).alias("power p"))
    powers = [f"{power}" for power in measured["power"].unique().sort()]
    panels = []
    for kind, title in (
        ("aligned", "aligned perturbations"),
        ("random", "random perturbations"),
        ("bias", "random biases"),
    ):
        own = rows.filter(kind=kind)
        base = alt.Chart(own).encode(
            x=alt.X(
                "layers:Q",
                scale=alt.Scale(type="log"),
                title="n, layers",
                axis=alt.Axis(values=[128, 512, 2048, 8192]),
            ),
            y=alt.Y(
                "d(n):Q", scale=alt.Scale(type="log"), axis=alt.Axis(format=".0e", tickCount=6)
            ),
            color=alt.Color("power p:N", sort=powers, legend=alt.Legend(orient="top")),
        )
        points = base.transform_filter(alt.datum.line == _MEASURED).mark_point(filled=True, size=40)
        line = base.transform_filter(alt.datum.line == _PREDICTED).mark_line(strokeDash=[5, 3])
        panels.append((line + points).properties(width=175, height=240, title=title))
    return Figure(
        "rates",
        "How fast the outputs settle as layers are added",
        "d(n) = ||N_2n - N_n||: points are geometric means over networks, dashed lines the "
        "predicted powers through the first point (none at p = 0.4, which must not converge). "
        "Aligned perturbations need powers above 1 and fall by the power less one; random ones "
        "need powers above 1/2 only and fall by the power less one half.",
        alt.hconcat(*panels),
    )


def _training_figure(records: pl.DataFrame, config: Config) -> Figure:
    rows = (
        records.filter(pl.col("init").is_not_null())
        .with_columns(pl.format("{}, {} layers", "init", "net_depth").alias("network"))
        .group_by("network", "lr")
        .agg(
            pl.col("train_accuracy").mean().alias("training accuracy"),
            pl.col("train_accuracy").min().alias("least"),
            pl.col("train_accuracy").max().alias("most"),
        )
        .sort("network", "lr")
    )
    chart = alt.Chart(rows).encode(
        x=alt.X(
            "lr:Q",
            scale=alt.Scale(type="log"),
            title="learning rate",
            axis=alt.Axis(values=list(config.lrs), format="~g"),
        ),
        color=alt.Color("network:N", legend=alt.Legend(orient="top", labelLimit=240)),
    )
    lines = chart.mark_line(point=True).encode(
        y=alt.Y("training accuracy:Q", scale=alt.Scale(domain=[0, 1]))
    ) + chart.mark_rule().encode(y=alt.Y("least:Q", title="training accuracy"), y2="most:Q")
    return Figure(
        "training",
        "Starting near the identity makes a very deep plain network trainable",
        "Training accuracy after the same number of steps, mean and range over seeds; a network "
        "that blew up counts as 0.",
        lines.properties(width="container", height=240),
    )


CLAIM = Claim(
    name="deep-relu-limit",
    title="Deep ReLU networks converge in depth when their layers approach the identity",
    paper="Xu and Zhang, Convergence of Deep ReLU Networks (arXiv 2107.12530)",
    statement="A ReLU network of fixed width whose layers are W_n = I + P_n with summable "
    "perturbations ||P_n|| and biases ||b_n|| converges at every input as layers are added. Each "
    "layer moves a state h >= 0 by at most ||P_n|| ||h|| + ||b_n||. Perturbations c n^-p that are "
    "all aligned give ||N_2n - N_n|| ~ n^-(p - 1). As an initialisation, I + c n^-p G makes a "
    "plain network of 100 layers trainable.",
    corrections=(
        "Summability is sufficient and not necessary: independent perturbations with mean zero and "
        "norm c n^-p converge for p > 1/2, at the rate n^-(p - 1/2). Their sum from n to 2n is a "
        "martingale while no ReLU cuts in, so that its mean square is of the order of the sum of "
        "c^2 i^-2p, not of the square of the sum of c i^-p; the same holds for biases. Norms alone "
        "do not decide: at p = 1 aligned perturbations diverge as n^c and random ones converge.",
        "W_n -> I is not necessary for pointwise convergence: W_n = I/2 without biases converges "
        "to zero, and W_n = (I + 11'/m)/2 to the mean of x, each at 2^-n. A necessary condition "
        "needs a stronger notion of convergence, such as that of every product of activation "
        "matrices and weights to an invertible limit.",
    ),
    config=Config,
    presets={
        "smoke": Config(
            depth=1024,
            aligned_powers=(2.0,),
            random_powers=(1.0, 2.0),
            bias_powers=(1.0,),
            seeds=3,
            samples=200,
            net_depth=20,
            lrs=(0.01,),
            steps=60,
            net_seeds=2,
        ),
        "small": Config(),
        "paper": Config(width=100, depth=16_384, seeds=100, net_width=100, steps=3_000),
    },
    costs={"smoke": "7 s", "small": "1 to 2 min on two cores", "paper": "2 h on two cores"},
    trials=trials,
    group=group,
    group_size=64,
    run=run,
    judge=judge,
    figures=figures,
    table=table,
)
