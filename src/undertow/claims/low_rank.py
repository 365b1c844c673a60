"""SGD with weight decay makes weights low-rank (Galanti, Siegel, Gupte and Poggio, 2206.05794).

What is tested: rank against batch size, learning rate and weight decay; the exact rank identity
behind the paper's bound; and whether batch size matters beyond the decay exponent
E = sum lr x weight_decay, by which the initial weights have been forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
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
    ratio_over_seeds,
)

if TYPE_CHECKING:
    from undertow.data import Dataset

Rule = Literal["sgd", "momentum", "adamw"]
RULES: tuple[Rule, ...] = ("sgd", "momentum", "adamw")
_MOMENTUM = 0.9
_ADAM_LR = 5e-4
_FINE_THRESHOLD = 1e-3  # the paper's default; `threshold` is coarser so that `small` can resolve it
_SNAPSHOTS = (
    0.08,
    0.16,
    0.25,
    0.38,
    0.5,
    0.62,
    0.75,
    0.88,
    1.0,
)  # fractions of the steps at which ranks are taken


@dataclass(frozen=True)
class Config:
    """Knobs. The middle learning rate and the middle positive weight decay are the baseline.

    Attributes:
        data: digits, fashion-mnist, mnist-5k or cifar10.
        data_root: folder of a dataset that you have.
        train_size: training images to keep; 0 keeps all.
        image_size: average-pool images to this side; 0 leaves them.
        widths: hidden widths; ranks are those of the matrices between hidden layers.
        batch_sizes: compared at fixed epochs and at fixed steps.
        lr: compared at the smallest batch size.
        weight_decay: compared at the smallest batch size; 0 is the control.
        epochs: of the fixed-epochs comparison.
        seeds: independent repetitions.
        threshold: singular values above threshold x ||W||_F count.
        fit: training accuracy that a run must reach to be counted.
        identity_steps: steps over which the exact rank identity is checked.
        device: where to train.
    """

    data: str = "digits"
    data_root: str | None = None
    train_size: int = 0
    image_size: int = 0
    widths: tuple[int, ...] = (128, 128, 128)
    batch_sizes: tuple[int, ...] = (4, 16, 64)
    lr: tuple[float, ...] = (0.02, 0.04, 0.06)
    weight_decay: tuple[float, ...] = (0.0, 1e-3, 2.5e-3, 4e-3)
    epochs: int = 70
    seeds: int = 12
    threshold: float = 1e-2
    fit: float = 0.99
    identity_steps: int = 5
    device: str = "cpu"

    def __post_init__(self) -> None:
        if len(self.widths) < 2:
            raise ValueError(f"widths needs at least two hidden layers, got {self.widths}")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes must be positive, got {self.batch_sizes}")
        if not self.lr or min(self.lr) <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if min(self.weight_decay, default=0) < 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if not any(self.weight_decay):
            raise ValueError("weight_decay needs at least one positive value")
        if self.epochs < 1 or self.seeds < 1:
            raise ValueError(
                f"epochs and seeds must be at least 1, got {self.epochs} and {self.seeds}"
            )

    @property
    def baseline_lr(self) -> float:
        """The middle learning rate."""
        return sorted(self.lr)[len(self.lr) // 2]

    @property
    def baseline_decay(self) -> float:
        """The middle positive weight decay."""
        positive = sorted(value for value in self.weight_decay if value > 0)
        return positive[len(positive) // 2]


# ---- trials


@dataclass(frozen=True)
class Problem:
    """The data and the network that a trial trains."""

    data: str
    data_root: str | None
    train_size: int
    image_size: int
    widths: tuple[int, ...]
    device: str


@dataclass(frozen=True)
class Training:
    """One network trained from scratch, its ranks taken on the way.

    It takes as many steps as batches of `steps_as` samples need for the epochs: its own batch size
    at fixed epochs, another one's where steps are matched.
    """

    problem: Problem
    rule: Rule
    batch_size: int
    lr: float
    weight_decay: float
    epochs: int
    steps_as: int
    threshold: float
    seed: int


@dataclass(frozen=True)
class Identity:
    """A few steps in float64, before and after which the weights are compared."""

    problem: Problem
    network: Literal["mlp", "conv"]
    rule: Rule
    batch_size: int
    lr: float
    weight_decay: float
    burn_in: int
    steps: int
    seed: int


def _hyper(rule: Rule, lr: float, weight_decay: float) -> tuple[float, float]:
    """(lr, weight_decay) with which a rule forgets at the same rate per step as SGD does."""
    if rule == "momentum":
        return lr * (1 - _MOMENTUM), weight_decay
    if rule == "adamw":
        return _ADAM_LR, lr * weight_decay / _ADAM_LR
    return lr, weight_decay


def trials(config: Config, seed: int) -> list[Training | Identity]:
    """Fixed epochs over batch sizes, rates and decays; fixed steps over batch sizes; the rules."""
    problem = Problem(
        config.data,
        config.data_root,
        config.train_size,
        config.image_size,
        config.widths,
        config.device,
    )
    lr, decay, smallest = config.baseline_lr, config.baseline_decay, min(config.batch_sizes)
    cells: list[tuple[Rule, int, float, float, int]] = []
    for batch_size in config.batch_sizes:
        cells += [
            ("sgd", batch_size, lr, decay, batch_size),
            ("sgd", batch_size, lr, 0.0, batch_size),
            ("sgd", batch_size, lr, decay, smallest),
        ]
    cells += [("sgd", smallest, rate, decay, smallest) for rate in config.lr]
    cells += [("sgd", smallest, lr, value, smallest) for value in config.weight_decay]
    cells += [(rule, smallest, *_hyper(rule, lr, decay), smallest) for rule in RULES]
    seeds = [seed * 10_000 + index for index in range(config.seeds)]
    training = [
        Training(problem, rule, size, rate, value, config.epochs, steps_as, config.threshold, own)
        for rule, size, rate, value, steps_as in dict.fromkeys(cells)
        for own in seeds
    ]
    probes: list[tuple[Literal["mlp", "conv"], int, int]] = [
        ("mlp", 4, config.identity_steps),
        ("conv", 1, 2),
    ]
    identity = [
        Identity(problem, network, rule, batch, *_hyper(rule, lr, decay), 200, steps, own)
        for network, batch, steps in probes
        for rule in RULES
        for own in seeds
    ]
    return [*training, *identity]


def group(trial: Training | Identity) -> Hashable:
    """Trials that differ in seed, learning rate and decay alone train as one ensemble."""
    return replace(trial, seed=0, lr=0.0, weight_decay=0.0)


def run(group_trials: Sequence[Training | Identity]) -> list[list[dict[str, Any]]]:
    """Run one group and return the records of each trial."""
    if isinstance(group_trials[0], Training):
        return _run_training([trial for trial in group_trials if isinstance(trial, Training)])
    return _run_identity([trial for trial in group_trials if isinstance(trial, Identity)])


def _load(problem: Problem) -> Dataset:
    from undertow import data

    return data.load(
        problem.data,
        root=problem.data_root,
        train_size=problem.train_size or None,
        image_size=problem.image_size or None,
    )


def _members(group_trials: Iterable[Training | Identity]) -> list[Any]:
    from undertow.train import Member

    return [
        Member(
            trial.seed,
            trial.lr,
            trial.weight_decay,
            momentum=_MOMENTUM if trial.rule == "momentum" else 0.0,
        )
        for trial in group_trials
    ]


def _run_training(group_trials: Sequence[Training]) -> list[list[dict[str, Any]]]:
    from torch.nn import functional

    from undertow import models
    from undertow.train import Ensemble, rules

    first = group_trials[0]
    data = _load(first.problem)
    inputs = math.prod(data.input_shape)
    sizes = (inputs, *first.problem.widths, data.num_classes)
    ensemble = Ensemble(
        lambda generator: models.mlp(sizes, generator=generator),
        functional.cross_entropy,
        (data.train_inputs.flatten(1), data.train_targets),
        _members(group_trials),
        batch_size=first.batch_size,
        rule=getattr(rules, first.rule),
        path="fused",  # fixed, so that the same trials give the same records
        device=first.problem.device,
    )
    names = [name for name in ensemble.parameters() if name.endswith("weight")][1:-1]
    start = {name: ensemble.parameters()[name].double().cpu() for name in names}
    total = first.epochs * -(-len(data.train_inputs) // first.steps_as)
    records: list[list[dict[str, Any]]] = [[] for _ in group_trials]
    for fraction in _SNAPSHOTS:
        step = round(fraction * total)
        ensemble.train(step - ensemble.steps_taken)
        train = ensemble.evaluate(data.train_inputs.flatten(1), data.train_targets)
        test = ensemble.evaluate(data.test_inputs.flatten(1), data.test_targets)
        now = ensemble.parameters()
        for e, trial in enumerate(group_trials):
            run_facts = {
                "step": step,
                "final": fraction == _SNAPSHOTS[-1],
                "diverged": ensemble.diverged_at[e] is not None,
                "train_loss": float(train.loss[e]),
                "train_accuracy": float(train.accuracy[e]),
                "test_accuracy": float(test.accuracy[e]),
            }
            for layer, name in enumerate(names, start=2):
                facts: dict[str, Any] = {"layer": layer}
                if not run_facts["diverged"]:
                    weight = now[name][e].double().cpu()
                    facts |= _decompose(trial, step, start[name][e], weight)
                records[e].append(run_facts | facts)
    return records


def _decompose(trial: Training, step: int, start: Any, weight: Any) -> dict[str, Any]:
    """Ranks of a weight `[rows, cols]`, of its initial residue, and of what was learned."""
    import torch

    from undertow import measure

    beta = _MOMENTUM if trial.rule == "momentum" else 0.0
    exponent = predict.decay_exponent(trial.lr, trial.weight_decay, step, momentum=beta)
    factor = (
        math.exp(-exponent)
        if trial.rule == "momentum"  # an approximation; exact for the other two
        else predict.decay_factor(trial.lr, trial.weight_decay, step)
    )
    measured, learned, initial = measure.matrix_spectrum(
        torch.stack([weight, weight - factor * start, start])
    ).numpy()
    norm = float(np.linalg.norm(measured))
    rows, cols = weight.shape
    theory = predict.initial_spectrum(rows, cols, predict.initial_std("pytorch", fan_in=cols))
    shared = {"final_norm": norm, "decay_factor": factor}
    facts: dict[str, Any] = {
        "decay_exponent": exponent,
        "rows": rows,
        "cols": cols,
        "norm": norm,
        "stable_rank": norm**2 / measured[0] ** 2,
        "spectrum": (measured / norm).tolist(),
        "residue_spectrum": (factor * initial / norm).tolist(),
        "learned_spectrum": (learned / norm).tolist(),
    }
    for suffix, threshold in (("", trial.threshold), ("_fine", _FINE_THRESHOLD)):
        survivors = predict.surviving_rank(initial, threshold=threshold, **shared)
        facts |= {
            f"rank{suffix}": int((measured > threshold * norm).sum()),
            f"learned_rank{suffix}": int((learned > threshold * norm).sum()),
            f"survivors{suffix}": survivors,
            f"survivors_theory{suffix}": predict.surviving_rank(
                theory, threshold=threshold, **shared
            ),
            f"survivors_unforgotten{suffix}": int((initial > threshold * norm).sum()),
            f"initial_rank{suffix}": int((initial > threshold * np.linalg.norm(initial)).sum()),
        }
    return facts


def _run_identity(group_trials: Sequence[Identity]) -> list[list[dict[str, Any]]]:
    import torch
    from torch.nn import functional

    from undertow import models
    from undertow.train import Ensemble, rules

    first = group_trials[0]
    data = _load(first.problem)
    patches = 1
    if first.network == "conv":
        channels, side = (16, 64), data.input_shape[1]
        pixels = data.train_inputs
        while side > 8:  # a larger image than 8 x 8 would have too many patches to bound anything
            pixels, side = functional.avg_pool2d(pixels, 2, ceil_mode=True), math.ceil(side / 2)
        shape = (data.input_shape[0], side, side)
        for _ in channels:
            patches = predict.patch_count((side, side), 3, stride=2, padding=1)
            side = math.isqrt(patches)

        def build(generator: torch.Generator) -> torch.nn.Module:
            return models.conv_net(shape, channels, data.num_classes, generator=generator)
    else:
        pixels = data.train_inputs.flatten(1)
        sizes = (pixels.shape[1], *first.problem.widths, data.num_classes)

        def build(generator: torch.Generator) -> torch.nn.Module:
            return models.mlp(sizes, generator=generator)

    ensemble = Ensemble(
        build,
        functional.cross_entropy,
        (pixels, data.train_targets),
        _members(group_trials),
        batch_size=first.batch_size,
        rule=getattr(rules, first.rule),
        path="fused" if first.network == "mlp" else "loop",
        dtype=torch.float64,
    )
    ensemble.train(first.burn_in)
    name = [name for name in ensemble.parameters() if name.endswith("weight")][-2]
    earlier = ensemble.parameters()[name].flatten(2).numpy()
    later = ensemble.train(first.steps).parameters()[name].flatten(2).numpy()
    records = []
    for e, trial in enumerate(group_trials):
        found = predict.rank_identity(
            later[e],
            earlier[e],
            lr=trial.lr,
            weight_decay=trial.weight_decay,
            steps=trial.steps,
            batch_size=trial.batch_size,
            patches=patches,
        )
        records.append(
            [
                {
                    "residual_rank": found.rank,
                    "residual_bound": found.bound,
                    "rows": later.shape[1],
                    "cols": later.shape[2],
                    "patches": patches,
                }
            ]
        )
    return records


# ---- the verdict rule


def _trained(records: pl.DataFrame) -> pl.DataFrame:
    """Training records with a column that says whether the run had fitted by then."""
    return records.filter(pl.col("step").is_not_null())


def _fitted(records: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Training records of networks that had fitted the training set by then."""
    return _trained(records).filter(~pl.col("diverged") & (pl.col("train_accuracy") >= config.fit))


def _by_seed(frame: pl.DataFrame, column: str, **where: Any) -> dict[int, float]:
    """Each seed's mean of a column over the layers, at the end of the runs selected."""
    chosen = frame.filter(pl.col("final"), **where).group_by("seed").agg(pl.col(column).mean())
    return dict(chosen.select("seed", column).iter_rows())


def _cells(config: Config) -> dict[str, dict[str, Any]]:
    """The selections that the checks compare."""
    small, large = min(config.batch_sizes), max(config.batch_sizes)
    base = {
        "rule": "sgd",
        "lr": config.baseline_lr,
        "weight_decay": config.baseline_decay,
    }
    return {
        "base": base,
        "small batch": base | {"batch_size": small, "steps_as": small},
        "large batch": base | {"batch_size": large, "steps_as": large},
        "large batch, same steps": base | {"batch_size": large, "steps_as": small},
    }


def judge(records: pl.DataFrame, config: Config) -> Verdict:
    """Every check of the claim; the thresholds were fixed before the verdict seeds ran."""
    trained, fitted, cells = _trained(records), _fitted(records, config), _cells(config)
    checks = [
        *_published_checks(fitted, config, cells),
        *_identity_checks(records),
        *_forgetting_checks(fitted, config, cells),
    ]
    ends = trained.filter("final").unique(["trial"])
    kept = fitted.filter("final").unique(["trial"])
    summary = (
        f"{len(ends) - len(kept)} of {len(ends)} runs had not fitted the training set and were "
        "left out."
    )
    enough = config.seeds >= 8 and len(kept) >= len(ends) / 2
    return decide(checks, summary, promises_verdict=enough)


def _published_checks(
    fitted: pl.DataFrame, config: Config, cells: dict[str, dict[str, Any]]
) -> list[Check]:
    """What the paper predicts, at a fixed number of epochs."""
    small = cells["small batch"]
    ratio = ratio_over_seeds(
        _by_seed(fitted, "rank", **small), _by_seed(fitted, "rank", **cells["large batch"])
    )
    checks = [
        check_below(
            "rank, small over large batch, same epochs",
            ratio,
            bound=0.65,
            rule=f"at most 0.65 (batch size {min(config.batch_sizes)} over "
            f"{max(config.batch_sizes)})",
        )
    ]
    for knob, label in (("lr", "learning rate"), ("weight_decay", "weight decay")):
        levels = sorted(value for value in getattr(config, knob) if value > 0)
        if len(levels) < 2:
            continue
        ratio = ratio_over_seeds(
            _by_seed(fitted, "rank", **(small | {knob: levels[-1]})),
            _by_seed(fitted, "rank", **(small | {knob: levels[0]})),
        )
        checks.append(
            check_below(
                f"rank, high over low {label}",
                ratio,
                bound=0.8,
                rule=f"at most 0.8 ({levels[-1]:g} over {levels[0]:g})",
            )
        )
    undecayed = fitted.filter(pl.col("weight_decay") == 0, pl.col("rule") == "sgd", "final")
    kept = (
        undecayed.group_by("seed")
        .agg((pl.col("rank_fine") / pl.col("initial_rank_fine")).min().alias("kept"))
        .sort("seed")["kept"]
    )
    share = over_seeds(kept)
    checks.append(
        check_above(
            "initial rank kept without decay",
            share,
            bound=0.98,
            rule="at least 0.98 of it at threshold 1e-3, in the worst layer and batch size",
            control=True,
        )
    )
    accuracy = [
        _by_seed(fitted, "test_accuracy", **cells[name]) for name in ("small batch", "large batch")
    ]
    both = sorted(accuracy[0].keys() & accuracy[1].keys())
    change = over_seeds([accuracy[0][seed] - accuracy[1][seed] for seed in both])
    checks.append(
        check_within(
            "test accuracy, small less large batch",
            change,
            -0.03,
            0.03,
            "within 0.03 either way, though the ranks differ",
        )
    )
    return checks


def _identity_checks(records: pl.DataFrame) -> list[Check]:
    """W_T - (1 - lr weight_decay)^n W_(T-n) has rank at most n m_l B: exactly, for SGD alone."""
    probes = records.filter(pl.col("residual_rank").is_not_null())
    checks = []
    for rule in RULES:
        own = probes.filter(pl.col("rule") == rule)
        broken = int((own["residual_rank"] > own["residual_bound"]).sum())
        count = len(own)
        share = lab.proportion(broken, count)
        is_sgd = rule == "sgd"
        checks.append(
            Check(
                f"rank identity broken, {rule}",
                share.value,
                share.interval,
                f"{'none' if is_sgd else 'all'} of {count} runs leave a residual of rank above "
                "n m_l B",
                passed=count > 0 and broken == (0 if is_sgd else count),
                refuted=is_sgd and broken > 0,
                control=not is_sgd,
            )
        )
    return checks


def _survived(fitted: pl.DataFrame, rule: Rule) -> pl.DataFrame:
    """Records in which the initial residue dominates: survivors at least twice the learned part."""
    return fitted.filter(
        pl.col("rule") == rule,
        pl.col("weight_decay") > 0,
        pl.col("survivors") > 0,
        pl.col("survivors") >= 2 * pl.col("learned_rank"),
    )


def _forecast_error(frame: pl.DataFrame, forecast: str) -> lab.Effect:
    """Mean over records of |forecast - rank| / rank, with an interval over seeds."""
    error = (pl.col(forecast).cast(pl.Float64) - pl.col("rank")).abs() / pl.col("rank")
    return over_seeds(frame.group_by("seed").agg(error.mean().alias("error")).sort("seed")["error"])


def _forgetting_checks(
    fitted: pl.DataFrame, config: Config, cells: dict[str, dict[str, Any]]
) -> list[Check]:
    """Whether rank is what survives of the initial weights, whatever the batch size."""
    ratio = ratio_over_seeds(
        _by_seed(fitted, "rank", **cells["small batch"]),
        _by_seed(fitted, "rank", **cells["large batch, same steps"]),
    )
    checks = [
        check_above(
            "rank, small over large batch, same E",
            ratio,
            bound=0.95,
            rule="at least 0.95: no pull of small batches beyond E",
        )
    ]
    runs = (
        fitted.filter(pl.col("rule") == "sgd")
        .group_by("trial", "seed", "step")
        .agg(pl.col("rank").mean(), pl.col("decay_exponent").first())
        .sort("trial", "step")
    )
    if runs["decay_exponent"].n_unique() > 2:
        link = lab.spearman(runs["decay_exponent"], runs["rank"], clusters=runs["seed"].to_list())
        checks.append(
            check_below(
                "rank against E (Spearman)",
                link,
                bound=-0.85,
                rule=f"at most -0.85 over {len(runs)} snapshots: the runs collapse on E",
            )
        )
    for rule in RULES:
        own = _survived(fitted, rule)
        error = _forecast_error(own, "survivors")
        checks.append(
            check_below(
                f"survivor forecast error, {rule}",
                error,
                bound=0.1,
                rule=f"at most 0.1 over the {len(own)} records where survivors are at least twice "
                "the learned part",
            )
        )
    forgetful = _survived(fitted, "sgd").filter(pl.col("decay_exponent") > 1.5)
    error = _forecast_error(forgetful, "survivors_unforgotten")
    checks.append(
        check_above(
            "forecast error, forgetting left out",
            error,
            bound=0.2,
            rule="at least 0.2 at E > 1.5: without E the same forecast fails",
            control=True,
        )
    )
    small = cells["small batch"]
    lr, decay = _hyper("adamw", config.baseline_lr, config.baseline_decay)
    adamw = small | {"rule": "adamw", "lr": lr, "weight_decay": decay}
    ratio = ratio_over_seeds(
        _by_seed(fitted, "learned_rank", **small), _by_seed(fitted, "learned_rank", **adamw)
    )
    checks.append(
        check_below(
            "learned rank, SGD over AdamW",
            ratio,
            bound=0.8,
            rule="at most 0.8 at the same E",
        )
    )
    return checks


# ---- what a reader sees


def table(records: pl.DataFrame, config: Config) -> pl.DataFrame:
    """One row a setting: E, ranks, the bound of the paper, accuracies, runs that fitted."""
    ends = _trained(records).filter("final")
    fitted = (~pl.col("diverged") & (pl.col("train_accuracy") >= config.fit)).cast(pl.Float64)
    rows = (
        ends.group_by("rule", "batch_size", "lr", "weight_decay", "step")
        .agg(
            pl.col("decay_exponent").drop_nulls().first().alias("E"),
            pl.col("rank").mean(),
            pl.col("survivors").mean(),
            pl.col("survivors_theory").mean().alias("forecast"),
            pl.col("learned_rank").mean().alias("learned"),
            pl.col("test_accuracy").mean().alias("test"),
            fitted.mean().alias("fitted"),
            pl.col("rows").max(),
            pl.col("cols").max(),
        )
        .sort("rule", "batch_size", "lr", "weight_decay", "step", descending=[True, *[False] * 4])
    )
    bounds = [_bound(row, config) for row in rows.iter_rows(named=True)]
    return rows.drop("rows", "cols").with_columns(pl.Series("paper's bound", bounds))


def _bound(row: Mapping[str, Any], config: Config) -> str:
    if row["rule"] != "sgd" or row["rows"] is None:
        return "does not apply"
    bound = predict.rank_bound(
        batch_size=row["batch_size"],
        lr=row["lr"],
        weight_decay=row["weight_decay"],
        shape=(row["rows"], row["cols"]),
        threshold=config.threshold,
    )
    return f"{bound.rank:.3g}{' (vacuous)' if bound.vacuous else ''}"


def figures(records: pl.DataFrame, config: Config) -> list[Figure]:
    """The charts of the report."""
    fitted, cells = _fitted(records, config), _cells(config)
    drawn = [
        _batch_size_figure(fitted, config, cells),
        _collapse_figure(fitted),
        _survivor_figure(fitted, config, cells),
        _spectrum_figure(fitted, config, cells),
        _accuracy_figure(fitted),
    ]
    return [figure for figure in drawn if figure is not None]


def _batch_size_figure(
    fitted: pl.DataFrame, config: Config, cells: dict[str, dict[str, Any]]
) -> Figure | None:
    base, rows = cells["base"], []
    smallest = min(config.batch_sizes)
    for batch_size in config.batch_sizes:
        for label, steps_as in (
            ("same epochs (E differs)", batch_size),
            ("same steps (same E)", smallest),
        ):
            where = base | {"batch_size": batch_size, "steps_as": steps_as}
            ranks = list(_by_seed(fitted, "rank", **where).values())
            if len(ranks) > 1:
                effect = over_seeds(ranks)
                low, high = effect.interval
                rows.append(
                    {
                        "batch size": batch_size,
                        "compared at": label,
                        "rank": effect.value,
                        "low": low,
                        "high": high,
                    }
                )
    if not rows:
        return None
    chart = alt.Chart(pl.DataFrame(rows)).encode(
        x=alt.X("batch size:Q", scale=alt.Scale(type="log", base=2)),
        color=alt.Color("compared at:N", legend=alt.Legend(orient="top")),
    )
    layers = chart.mark_line(point=True).encode(
        y=alt.Y("rank:Q", scale=alt.Scale(zero=True))
    ) + chart.mark_rule().encode(y=alt.Y("low:Q", title="rank"), y2="high:Q")
    return Figure(
        "batch-size",
        "Smaller batches give lower rank, until the steps are matched",
        "Mean threshold rank of the hidden matrices with 95% intervals over seeds. At the same "
        "number of epochs a smaller batch takes more steps, so weight decay shrinks the initial "
        "weights further. At the same number of steps the effect of the batch size is gone.",
        layers.properties(width="container", height=280),
    )


def _collapse_figure(fitted: pl.DataFrame) -> Figure | None:
    rows = (
        fitted.group_by("trial", "step", "rule", "batch_size", "decay_exponent")
        .agg(pl.col("rank").mean())
        .sort("rule", "batch_size", "decay_exponent")
        .select(
            pl.col("decay_exponent").alias("E"),
            "rank",
            pl.col("rule").alias("optimizer"),
            pl.col("batch_size").cast(pl.String).alias("batch size"),
        )
    )
    if rows.is_empty():
        return None
    sizes = sorted(rows["batch size"].unique().to_list(), key=int)
    chart = (
        alt.Chart(rows)
        .mark_point(filled=True, opacity=0.5, size=45)
        .encode(
            x=alt.X("E:Q", title="decay exponent E"),
            y=alt.Y("rank:Q"),
            color=alt.Color("batch size:N", sort=sizes, legend=alt.Legend(orient="top")),
            shape=alt.Shape("optimizer:N", legend=alt.Legend(orient="top")),
            tooltip=["optimizer", "batch size", "E", "rank"],
        )
        .properties(width="container", height=320)
    )
    return Figure(
        "collapse",
        "Rank follows the decay exponent, not the batch size",
        "Every snapshot of every run that had fitted, at all batch sizes, learning rates, weight "
        "decays and numbers of steps. E = sum of lr x weight decay (over 1 - momentum).",
        chart,
    )


def _survivor_figure(
    fitted: pl.DataFrame, config: Config, cells: dict[str, dict[str, Any]]
) -> Figure | None:
    small, wanted = cells["small batch"], []
    for rule in RULES:
        lr, decay = _hyper(rule, config.baseline_lr, config.baseline_decay)
        wanted.append(small | {"rule": rule, "lr": lr, "weight_decay": decay})
    series = {
        "measured rank": "rank",
        "survivors of the initial weights": "survivors",
        "the same, forecast without training": "survivors_theory",
        "learned part": "learned_rank",
    }
    rows = (
        pl.concat([fitted.filter(**where) for where in wanted])
        .group_by("rule", "decay_exponent")
        .agg([pl.col(column).mean().alias(label) for label, column in series.items()])
        .unpivot(index=["rule", "decay_exponent"], variable_name="what", value_name="rank")
        .rename({"rule": "optimizer", "decay_exponent": "E"})
        .sort("optimizer", "what", "E")
    )
    if rows.is_empty():
        return None
    chart = (
        alt.Chart(rows)
        .mark_line(point=True)
        .encode(
            x=alt.X("E:Q", title="decay exponent E"),
            y=alt.Y("rank:Q"),
            color=alt.Color(
                "what:N",
                sort=list(series),
                legend=alt.Legend(orient="top", columns=2, title=None, labelLimit=0),
            ),
            strokeDash=alt.StrokeDash("what:N", sort=list(series), legend=None),
        )
        .properties(width=210, height=240)
        .facet(column=alt.Column("optimizer:N", sort=list(RULES), title=None))
    )
    return Figure(
        "survivors",
        "What is left of the initial weights, and what was learned",
        "W = f W_0 + G: the initial residue keeps as many directions above the threshold as the "
        "survivor law says, until the learned part G takes over. The forecast without training "
        "uses the Marchenko-Pastur spectrum of the initialiser, E and the final norm.",
        chart,
    )


def _spectrum_figure(
    fitted: pl.DataFrame, config: Config, cells: dict[str, dict[str, Any]]
) -> Figure | None:
    rows = []
    for label in ("small batch", "large batch", "large batch, same steps"):
        found = fitted.filter(pl.col("final"), **cells[label]).sort("seed", "layer").head(1)
        for record in found.iter_rows(named=True):
            rows += [
                {"index": i + 1, "singular value / norm": value, "network": label}
                for i, value in enumerate(record["spectrum"])
            ]
    if not rows:
        return None
    chart = alt.Chart(pl.DataFrame(rows))
    line = chart.mark_line().encode(
        x=alt.X("index:Q"),
        y=alt.Y("singular value / norm:Q", scale=alt.Scale(type="log")),
        color=alt.Color("network:N", legend=alt.Legend(orient="top")),
    )
    rule = (
        alt.Chart(pl.DataFrame({"threshold": [config.threshold]}))
        .mark_rule(strokeDash=[4, 4])
        .encode(y=alt.Y("threshold:Q", title="singular value / norm"))
    )
    return Figure(
        "spectra",
        "Singular values of one hidden matrix at the end of training",
        "One seed; the dashed line is the rank threshold.",
        (line + rule).properties(width="container", height=280),
    )


def _accuracy_figure(fitted: pl.DataFrame) -> Figure | None:
    rows = (
        fitted.filter("final")
        .group_by("trial", "rule", "test_accuracy")
        .agg(pl.col("rank").mean())
        .sort("rule", "rank")
        .rename({"rule": "optimizer", "test_accuracy": "test accuracy"})
    )
    if rows.is_empty():
        return None
    chart = (
        alt.Chart(rows)
        .mark_point(filled=True, opacity=0.6)
        .encode(
            x=alt.X("rank:Q"),
            y=alt.Y("test accuracy:Q", scale=alt.Scale(zero=False)),
            color=alt.Color("optimizer:N", legend=alt.Legend(orient="top")),
            tooltip=["optimizer", "rank", "test accuracy"],
        )
        .properties(width="container", height=260)
    )
    return Figure(
        "accuracy",
        "Rank and test accuracy are only loosely linked",
        "One point a run that fitted the training set.",
        chart,
    )


CLAIM = Claim(
    name="low-rank",
    title="SGD with weight decay makes weight matrices low-rank",
    paper="Galanti, Siegel, Gupte and Poggio, SGD and Weight Decay Provably Induce a Low-Rank Bias "
    "in Deep Neural Networks (arXiv 2206.05794)",
    statement="At a fixed number of epochs, smaller batches, higher learning rates and stronger "
    "weight decay leave hidden weight matrices of lower rank, and without weight decay nothing "
    "of the sort happens. The rank is what survives of the initial weights after the decay "
    "exponent E = sum of lr x weight decay, plus what was learned; at equal E the batch size has "
    "no effect of its own.",
    corrections=(
        "The bound m_l B log(2/eps) / (lr weight_decay) grows with the batch size B, and small "
        "batches do have lower rank at fixed epochs. But they also take more steps. At equal "
        "steps, hence equal E, the effect of B vanishes or reverses: W_T = f W_0 + G_T with "
        "f = prod (1 - lr_t weight_decay), and the threshold rank counts the singular values of "
        "f W_0 that are still above threshold x ||W_T||_F until the rank of G_T is the larger.",
        "The bound exceeds the width of every layer in every setting here (see the table), so "
        "it cannot be what makes the rank low.",
        "The identity rank(W_T - (1 - lr weight_decay)^n W_(T-n)) <= n m_l B is exact, for plain "
        "SGD with coupled decay only: momentum and AdamW break it, and AdamW learns a part of "
        "higher rank.",
    ),
    config=Config,
    presets={
        "smoke": Config(
            train_size=300,
            widths=(32, 32),
            batch_sizes=(4, 16),
            lr=(0.1,),
            weight_decay=(0.0, 4e-3),
            epochs=12,
            seeds=2,
            fit=0.9,
        ),
        "small": Config(),
        "paper": Config(
            data="cifar10",
            widths=(500, 500, 500, 500, 500),
            batch_sizes=(4, 8, 16, 32, 64, 128),
            lr=(0.01, 0.1, 0.5),
            weight_decay=(0.0, 1e-4, 2e-4, 4e-4, 8e-4),
            epochs=500,
            threshold=1e-3,
            device="cuda",
        ),
    },
    costs={
        "smoke": "10 s",
        "small": "3 min on two cores",
        "paper": "days on a GPU; needs --data-root with CIFAR-10",
    },
    trials=trials,
    group=group,
    group_size=16,
    run=run,
    judge=judge,
    figures=figures,
    table=table,
)
