"""The Janus effects of SGD against gradient descent (Xu, Galanti, Rangamani, Rosasco, Poggio 2023).

With weight decay, what the data cannot see of the initial weights decays by 1 - lr weight_decay
a step, in SGD and in gradient descent alike; and SGD, unlike gradient descent, never comes to rest.
Tested on linear regression, where both can be proved, and on a deep network.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
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
    worst_over_seeds,
)

if TYPE_CHECKING:
    from torch import Tensor

Order = Literal["epochs", "cyclic", "replacement", "full"]
_OUTPUTS = 10
_READINGS = (0.25, 0.5, 0.75, 1.0)  # fractions of the steps at which the null space is read
_LATE = 40  # updates over which the fluctuation at the end of training is taken


@dataclass(frozen=True)
class Config:
    """Knobs. The batch size that equals `samples` is gradient descent.

    Attributes:
        data: real data for the second regression and the deep network.
        data_root: folder of a dataset that you have.
        samples: training samples of the regressions.
        dimension: of the Gaussian inputs; above `samples`, so that there is a null space.
        batch_sizes: SGD's, each below `samples`.
        lr: learning rate of the regressions; inputs have norm 1 and the loss is the mean square
            over samples and outputs.
        weight_decay: of the regressions; 0 is the control and the middle positive one the baseline.
        epochs: at which the null-space component is read.
        late_steps: after which the updates' fluctuation is read.
        width: of the deep network's two hidden layers.
        deep_samples: training images of the deep network.
        deep_steps: of the deep network.
        deep_weight_decay: of the deep network; 0 is the control.
        seeds: independent repetitions.
    """

    data: str = "digits"
    data_root: str | None = None
    samples: int = 40
    dimension: int = 200
    batch_sizes: tuple[int, ...] = (1, 4, 10)
    lr: float = 2.0
    weight_decay: tuple[float, ...] = (0.0, 2e-5, 6e-5, 2e-4, 2e-3)
    epochs: int = 60
    late_steps: int = 20_000
    width: int = 32
    deep_samples: int = 400
    deep_steps: int = 6_000
    deep_weight_decay: tuple[float, ...] = (0.0, 5e-3, 1e-2, 2e-2)
    seeds: int = 20

    def __post_init__(self) -> None:
        if self.dimension <= self.samples:
            raise ValueError(
                f"dimension must exceed samples, or the data leave no null space; got "
                f"{self.dimension} and {self.samples}"
            )
        if not all(1 <= size < self.samples for size in self.batch_sizes) or not self.batch_sizes:
            raise ValueError(
                f"batch_sizes must lie between 1 and samples - 1 = {self.samples - 1} (gradient "
                f"descent is always included), got {self.batch_sizes}"
            )
        for name in ("weight_decay", "deep_weight_decay"):
            values = getattr(self, name)
            if min(values, default=0) < 0 or not any(values):
                raise ValueError(f"{name} must hold a positive value and no negative, got {values}")

    @property
    def baseline_decay(self) -> float:
        """The largest weight decay, at which the null space is forgotten soonest."""
        return max(self.weight_decay)


# ---- trials


@dataclass(frozen=True)
class Regression:
    """Linear regression from random initial weights, in float64."""

    inputs: Literal["gaussian", "real"]
    data: str
    data_root: str | None
    samples: int
    dimension: int
    batch_size: int
    order: Order
    lr: float
    weight_decay: float
    steps: int
    seed: int


@dataclass(frozen=True)
class Deep:
    """A two-hidden-layer ReLU network on real data, in float64."""

    data: str
    data_root: str | None
    samples: int
    width: int
    batch_size: int
    lr: float
    weight_decay: float
    steps: int
    seed: int


def trials(config: Config, seed: int) -> list[Regression | Deep]:
    """Regressions at equal epochs, at equal steps and late in training; deep networks."""
    seeds = [seed * 10_000 + index for index in range(config.seeds)]
    samples, strong = config.samples, config.baseline_decay

    def regressions() -> Iterator[tuple[Literal["gaussian", "real"], int, Order, float, int]]:
        matched = config.epochs * samples  # as many steps as batch size 1 takes
        for inputs in ("gaussian", "real"):
            for batch_size in (*config.batch_sizes, samples):
                orders: tuple[Order, ...] = ("epochs", "cyclic", "replacement")
                for order in ("full",) if batch_size == samples else orders:
                    steps = config.epochs * -(-samples // batch_size)
                    yield inputs, batch_size, order, strong, steps
                    yield inputs, batch_size, order, 0.0, steps
                    yield inputs, batch_size, order, strong, matched
        smallest = min(config.batch_sizes)
        for decay in config.weight_decay:
            for batch_size, order in (
                (smallest, "epochs"),
                (smallest, "cyclic"),
                (samples, "full"),
            ):
                yield "gaussian", batch_size, order, decay, config.late_steps

    linear = [
        Regression(
            inputs,
            config.data if inputs == "real" else "",
            config.data_root if inputs == "real" else None,
            samples,
            config.dimension,
            batch_size,
            order,
            config.lr,
            decay,
            steps,
            own,
        )
        for inputs, batch_size, order, decay, steps in dict.fromkeys(regressions())
        for own in seeds
    ]
    deep = [
        Deep(
            config.data,
            config.data_root,
            config.deep_samples,
            config.width,
            batch_size,
            0.1,
            decay,
            config.deep_steps,
            own,
        )
        for batch_size in (8, config.deep_samples)
        for decay in config.deep_weight_decay
        for own in seeds[: max(8, len(seeds) // 2)]
    ]
    return [*linear, *deep]


def group(trial: Regression | Deep) -> Hashable:
    """Trials that share the data train as one ensemble: decays of one seed, or deep networks."""
    if isinstance(trial, Regression):
        # The Gaussian data are drawn from the seed; the real ones are the same for all.
        return replace(trial, weight_decay=0.0, seed=trial.seed if trial.data == "" else 0)
    return replace(trial, weight_decay=0.0, seed=0)


def run(group_trials: Sequence[Regression | Deep]) -> list[list[dict[str, Any]]]:
    """Run one group and return the records of each trial."""
    if isinstance(group_trials[0], Regression):
        return _run_regression([trial for trial in group_trials if isinstance(trial, Regression)])
    return _run_deep([trial for trial in group_trials if isinstance(trial, Deep)])


def _null_projector(inputs: Tensor) -> Tensor:
    """Projector `[d, d]` on what inputs `[n, d]` do not span, in float64."""
    import torch

    _, singular, right = torch.linalg.svd(inputs, full_matrices=False)
    span = right[singular > 1e-10 * singular[0]]
    return torch.eye(inputs.shape[1], dtype=inputs.dtype) - span.mT @ span


def _regression_data(trial: Regression) -> tuple[Tensor, Tensor]:
    """Unit-norm inputs and targets; drawn from another stream than the initial weights."""
    import torch

    if trial.inputs == "real":
        from undertow import data

        loaded = data.load(trial.data, root=trial.data_root, train_size=trial.samples)
        inputs = loaded.train_inputs.flatten(1).double()
        targets = torch.nn.functional.one_hot(loaded.train_targets, loaded.num_classes).double()
    else:
        generator = torch.Generator().manual_seed(2**40 + trial.seed)
        shape = (trial.samples, trial.dimension)
        inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
        targets = torch.randn((trial.samples, _OUTPUTS), generator=generator, dtype=torch.float64)
    return inputs / inputs.norm(dim=1, keepdim=True), targets


def _run_regression(group_trials: Sequence[Regression]) -> list[list[dict[str, Any]]]:
    import torch

    from undertow.models import mlp
    from undertow.train import Ensemble, Member

    first = group_trials[0]
    inputs, targets = _regression_data(first)
    projector = _null_projector(inputs)
    sizes = (inputs.shape[1], targets.shape[1])
    ensemble = Ensemble(
        lambda generator: mlp(sizes, bias=False, generator=generator),
        torch.nn.functional.mse_loss,
        (inputs, targets),
        [
            Member(trial.seed, trial.lr, trial.weight_decay, order=trial.order)
            for trial in group_trials
        ],
        batch_size=first.batch_size,
        path="fused",
        dtype=torch.float64,
    )

    def weight() -> Tensor:
        (found,) = ensemble.parameters().values()
        return found

    def unseen() -> list[float]:
        return torch.linalg.norm(weight() @ projector, dim=(1, 2)).tolist()

    start = unseen()
    records: list[list[dict[str, Any]]] = [[] for _ in group_trials]
    for fraction in _READINGS:
        step = round(fraction * first.steps)
        ensemble.train(step - ensemble.steps_taken)
        now = unseen()
        for e, trial in enumerate(group_trials):
            left = predict.null_space_decay(trial.lr, trial.weight_decay, step)
            records[e].append(
                {
                    "step": step,
                    "epochs": step * trial.batch_size / trial.samples,
                    "final": fraction == _READINGS[-1],
                    "diverged": ensemble.diverged_at[e] is not None,
                    "null_dimension": round(float(projector.trace())),
                    "null_ratio": now[e] / start[e],
                    "null_predicted": float(left),
                }
            )
    end = weight()
    stable = end.square().sum((1, 2)) / torch.linalg.matrix_norm(end, 2).square()
    seen = torch.eye(len(projector), dtype=torch.float64) - projector
    path = [end @ seen]
    for _ in range(_LATE):
        ensemble.train(1)
        path.append(weight() @ seen)
    updates = torch.stack(path).diff(dim=0)  # in the span of the data, [late, E, outputs, d]
    spread = (updates - updates.mean(0)).square().sum((2, 3)).mean(0).sqrt()
    size = torch.linalg.norm(end @ seen, dim=(1, 2))
    for e, rows in enumerate(records):
        rows[-1] |= {
            "stable_rank": float(stable[e]),
            "fluctuation": float(spread[e] / size[e]),
        }
    return records


def _run_deep(group_trials: Sequence[Deep]) -> list[list[dict[str, Any]]]:
    import torch

    from undertow import data, measure
    from undertow.models import mlp
    from undertow.train import Ensemble, Member

    first = group_trials[0]
    loaded = data.load(first.data, root=first.data_root, train_size=first.samples)
    inputs = loaded.train_inputs.flatten(1).double()
    projector = _null_projector(inputs)
    sizes = (inputs.shape[1], first.width, first.width, loaded.num_classes)
    order: Order = "full" if first.batch_size == first.samples else "epochs"
    ensemble = Ensemble(
        lambda generator: mlp(sizes, generator=generator),
        torch.nn.functional.cross_entropy,
        (inputs, loaded.train_targets),
        [Member(trial.seed, trial.lr, trial.weight_decay, order=order) for trial in group_trials],
        batch_size=first.batch_size,
        path="fused",
        dtype=torch.float64,
    )
    names = [name for name in ensemble.parameters() if name.endswith("weight")]
    start = ensemble.parameters()[names[0]]
    ensemble.train(first.steps)
    end = ensemble.parameters()
    unseen = [
        torch.linalg.norm(weight @ projector, dim=(1, 2)) for weight in (start, end[names[0]])
    ]
    accuracy = ensemble.evaluate(inputs, loaded.train_targets).accuracy
    records = []
    for e, trial in enumerate(group_trials):
        lost = ensemble.diverged_at[e] is not None
        facts: dict[str, Any] = {
            "final": True,
            "diverged": lost,
            "train_accuracy": float(accuracy[e]),
        }
        if not lost:
            spectrum = measure.matrix_spectrum(end[names[1]][e])
            facts |= {
                "deep_rank": int((spectrum > 1e-3 * spectrum.norm()).sum()),
                "null_dimension": round(float(projector.trace())),
                "null_ratio": float(unseen[1][e] / unseen[0][e]),
                "null_predicted": float(
                    predict.null_space_decay(trial.lr, trial.weight_decay, trial.steps)
                ),
            }
        records.append([facts])
    return records


# ---- the verdict rule


def _column(frame: pl.DataFrame, column: str, **where: Any) -> dict[int, float]:
    ends = frame.filter(pl.col("final"), **where)
    return dict(ends.select("seed", column).sort("seed").iter_rows())


def judge(records: pl.DataFrame, config: Config) -> Verdict:
    """Every check of the claim; the thresholds were fixed before the verdict seeds ran."""
    kept = records.filter(~pl.col("diverged"))
    linear = kept.filter(pl.col("inputs").is_not_null())
    deep = kept.filter(pl.col("deep_rank").is_not_null())
    checks = [
        *_null_space_checks(linear, config),
        *_noise_checks(linear, config),
        *_deep_checks(deep, config),
    ]
    lost, runs = (frame["trial"].n_unique() for frame in (records.filter("diverged"), records))
    summary = f"{lost} of {runs} runs diverged and were left out."
    return decide(checks, summary, promises_verdict=config.seeds >= 8)


def _null_space_checks(linear: pl.DataFrame, config: Config) -> list[Check]:
    # Where less is left than this, rounding error is what is measured.
    decayed = linear.filter(pl.col("weight_decay") > 0, pl.col("null_predicted") > 1e-9)
    slope = pl.col("null_ratio").log() / pl.col("null_predicted").log()
    rate = worst_over_seeds(decayed, (slope - 1).abs())
    samples, strong = config.samples, config.baseline_decay
    smallest = min(config.batch_sizes)
    per_epoch = (pl.col("null_ratio").log() / pl.col("epochs")).alias("per_epoch")
    at_epochs = linear.with_columns(per_epoch).filter(inputs="gaussian", weight_decay=strong)
    sgd = _column(
        at_epochs,
        "per_epoch",
        batch_size=smallest,
        order="epochs",
        steps=config.epochs * -(-samples // smallest),
    )
    descent = _column(at_epochs, "per_epoch", batch_size=samples, steps=config.epochs)
    gap = ratio_over_seeds(
        {seed: -value for seed, value in sgd.items()},
        {seed: -value for seed, value in descent.items()},
    )
    expected = -(-samples // smallest)
    without = linear.filter(pl.col("weight_decay") == 0)
    undecayed = worst_over_seeds(without, (pl.col("null_ratio") - 1).abs())
    matched = linear.filter(inputs="gaussian", weight_decay=strong, steps=config.epochs * samples)
    sgd_rows = {"batch_size": smallest, "order": "epochs"}
    unseen = ratio_over_seeds(
        _column(matched, "null_ratio", **sgd_rows),
        _column(matched, "null_ratio", batch_size=samples),
    )
    stable = ratio_over_seeds(
        _column(matched, "stable_rank", **sgd_rows),
        _column(matched, "stable_rank", batch_size=samples),
    )
    return [
        check_below(
            "null-space decay rate, error",
            rate,
            bound=1e-6,
            rule=f"at most 1e-6 of log(1 - lr weight_decay), worst of {len(decayed)} readings by "
            "seed (every batch size and order; more than 1e-9 left)",
        ),
        check_within(
            "decay per epoch, SGD over GD",
            gap,
            expected * (1 - 1e-6),
            expected * (1 + 1e-6),
            f"{expected} = N / B, to 1e-6",
        ),
        check_below(
            "null space lost without decay",
            undecayed,
            bound=1e-12,
            rule="at most 1e-12: without decay nothing is forgotten",
            control=True,
        ),
        check_within(
            "null space, SGD over GD, same steps",
            unseen,
            1 - 1e-6,
            1 + 1e-6,
            "1 to 1e-6: at equal steps the gap is gone",
            control=True,
        ),
        check_within(
            "stable rank, SGD over GD, same steps",
            stable,
            0.9,
            1.1,
            "between 0.9 and 1.1: no rank bias of SGD's own in the linear model",
        ),
    ]


def _noise_checks(linear: pl.DataFrame, config: Config) -> list[Check]:
    late = linear.filter(pl.col("final"), inputs="gaussian", steps=config.late_steps)
    sgd = late.filter(batch_size=min(config.batch_sizes))
    decayed = pl.col("weight_decay") > 0
    weakest = min(value for value in config.weight_decay if value > 0)
    floor = over_seeds(
        sgd.filter(weight_decay=weakest)
        .group_by("seed")
        .agg(pl.col("fluctuation").min())["fluctuation"]
    )
    ratios = []
    small = [value for value in sorted(config.weight_decay) if 0 < value <= 2e-4]
    shuffled = sgd.filter(order="epochs")
    for decay in config.weight_decay:
        if decay > 0:
            pair = [
                _column(sgd, "fluctuation", order=order, weight_decay=decay)
                for order in ("cyclic", "epochs")
            ]
            ratios.append(ratio_over_seeds(*pair))
    fixed = max(ratios, key=lambda ratio: abs(math.log(ratio.value)))
    growth = shuffled.filter(pl.col("weight_decay").is_in(small))
    checks = [
        check_above(
            "SGD's fluctuation with decay",
            floor,
            bound=1e-6,
            rule=f"at least 1e-6 of ||W|| an update at the weakest decay ({weakest:g}), shuffled "
            "and in fixed order",
        ),
        check_within(
            "fluctuation, fixed order over shuffled",
            fixed,
            0.8,
            1.25,
            "between 0.8 and 1.25 at every decay: it is not the shuffling",
        ),
    ]
    if len(small) > 1:
        slope = lab.slope(
            np.log(growth["weight_decay"].to_numpy()),
            np.log(growth["fluctuation"].to_numpy()),
            clusters=growth["seed"].to_list(),
        )
        checks.append(
            check_within(
                "fluctuation's power of the decay",
                slope,
                0.85,
                1.15,
                f"between 0.85 and 1.15 for decays up to {small[-1]:g}",
            )
        )
    for name, frame in (
        ("GD's fluctuation with decay", late.filter(decayed, batch_size=config.samples)),
        ("SGD's fluctuation without decay", sgd.filter(~decayed)),
    ):
        rest = worst_over_seeds(frame, pl.col("fluctuation"))
        checks.append(
            check_below(
                name,
                rest,
                bound=1e-12,
                rule="at most 1e-12 of ||W||: it comes to rest",
                control=True,
            )
        )
    return checks


def _deep_checks(deep: pl.DataFrame, config: Config) -> list[Check]:
    decayed = deep.filter(pl.col("weight_decay") > 0)
    slope = pl.col("null_ratio").log() / pl.col("null_predicted").log()
    rate = worst_over_seeds(decayed, (slope - 1).abs())
    fitted = deep.filter(pl.col("train_accuracy") >= 0.95)
    descent = fitted.filter(batch_size=config.deep_samples)
    strongest = max(config.deep_weight_decay)
    strong = {"weight_decay": strongest}
    fall = ratio_over_seeds(
        _column(descent, "deep_rank", **strong),
        _column(descent, "deep_rank", weight_decay=0.0),
    )
    compared = ratio_over_seeds(
        _column(fitted.filter(pl.col("batch_size") != config.deep_samples), "deep_rank", **strong),
        _column(descent, "deep_rank", **strong),
    )
    return [
        check_below(
            "deep net, null-space rate, error",
            rate,
            bound=1e-6,
            rule="at most 1e-6: exact in the first layer of a deep net too, SGD and GD",
        ),
        check_below(
            "deep net, GD's rank, strongest over no decay",
            fall,
            bound=0.8,
            rule=f"at most 0.8 at weight decay {strongest:g}: full-batch descent gets low rank too",
        ),
        check_above(
            "deep net, rank, SGD over GD, same steps",
            compared,
            bound=0.95,
            rule="at least 0.95: at equal steps SGD's rank is no lower",
        ),
    ]


# ---- what a reader sees


def table(records: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Regressions by batch size: what is left of the null space, and the fluctuation at the end."""
    linear = records.filter(pl.col("inputs").is_not_null(), ~pl.col("diverged"), pl.col("final"))
    return (
        linear.group_by("inputs", "batch_size", "weight_decay", "steps")
        .agg(
            pl.col("null_ratio").mean().alias("null space left"),
            pl.col("null_predicted").first().alias("predicted"),
            pl.col("fluctuation").mean(),
            pl.col("stable_rank").mean().alias("stable rank"),
        )
        .sort("inputs", "steps", "batch_size", "weight_decay")
    )


def figures(records: pl.DataFrame, config: Config) -> list[Figure]:
    """The charts of the report."""
    kept = records.filter(~pl.col("diverged"))
    linear = kept.filter(pl.col("inputs").is_not_null())
    deep = kept.filter(pl.col("deep_rank").is_not_null())
    return [_null_space_figure(linear, config), _noise_figure(linear, config), _deep_figure(deep)]


def _null_space_figure(linear: pl.DataFrame, config: Config) -> Figure:
    measured = (
        linear.filter(
            pl.col("inputs") == "gaussian",
            pl.col("weight_decay") == config.baseline_decay,
            pl.col("steps") <= config.epochs * config.samples,
        )
        .group_by("batch_size", "order", "step", "epochs")
        .agg(pl.col("null_ratio").mean(), pl.col("null_predicted").first())
        .with_columns(
            pl.when(pl.col("batch_size") == config.samples)
            .then(pl.lit("GD"))
            .otherwise(pl.format("SGD, batch {}", pl.col("batch_size")))
            .alias("trained by")
        )
        .sort("batch_size", "order", "step")
    )
    panels = []
    for field, title, top in (
        ("epochs", "epochs", config.epochs),
        ("step", "steps", config.epochs * config.samples),
    ):
        base = alt.Chart(measured.filter(pl.col(field) <= top)).encode(
            x=alt.X(f"{field}:Q", title=title),
            color=alt.Color("trained by:N", legend=alt.Legend(orient="top")),
        )
        y = alt.Y("null_ratio:Q", scale=alt.Scale(type="log"), title="null-space component left")
        points = base.mark_point(filled=True, size=50, opacity=0.8).encode(
            y=y, shape=alt.Shape("order:N", legend=alt.Legend(orient="top"))
        )
        predicted = base.mark_line(strokeWidth=1).encode(y=alt.Y("null_predicted:Q"))
        panels.append((predicted + points).properties(width=310, height=250))
    return Figure(
        "null-space",
        "What the data cannot see is forgotten at one rate per step",
        "Points are measured, lines are (1 - lr weight_decay)^steps. At equal epochs SGD has "
        "forgotten N / B times as many e-folds; at equal steps all batch sizes and orders agree.",
        alt.hconcat(*panels),
    )


def _noise_figure(linear: pl.DataFrame, config: Config) -> Figure:
    rows = (
        linear.filter(pl.col("final"), inputs="gaussian", steps=config.late_steps)
        .group_by("batch_size", "order", "weight_decay")
        .agg(pl.col("fluctuation").mean())
        .with_columns(
            pl.when(pl.col("batch_size") == config.samples)
            .then(pl.lit("GD"))
            .otherwise(pl.format("SGD, batch {}, {}", pl.col("batch_size"), pl.col("order")))
            .alias("trained by"),
            pl.col("fluctuation").clip(lower_bound=1e-17),
            pl.when(pl.col("weight_decay") == 0)
            .then(pl.lit("0"))
            .otherwise(pl.col("weight_decay").cast(pl.String))
            .alias("weight decay"),
        )
        .sort("weight_decay")
    )
    order = rows["weight decay"].unique(maintain_order=True).to_list()
    chart = (
        alt.Chart(rows)
        .mark_line(point=True)
        .encode(
            x=alt.X("weight decay:O", sort=order, axis=alt.Axis(labelAngle=0)),
            y=alt.Y(
                "fluctuation:Q",
                scale=alt.Scale(type="log"),
                title="fluctuation of updates / ||W||",
            ),
            color=alt.Color("trained by:N", legend=alt.Legend(orient="top")),
        )
        .properties(width="container", height=260)
    )
    return Figure(
        "noise",
        "With weight decay SGD never comes to rest",
        f"Spread of the updates after {config.late_steps:,} steps, in the span of the data. "
        "Gradient descent, and SGD without decay, stop at rounding error; a fixed order of the "
        "data changes nothing.",
        chart,
    )


def _deep_figure(deep: pl.DataFrame) -> Figure:
    rows = (
        deep.with_columns(
            pl.when(pl.col("batch_size") == pl.col("samples"))
            .then(pl.lit("GD"))
            .otherwise(pl.format("SGD, batch {}", pl.col("batch_size")))
            .alias("trained by")
        )
        .group_by("trained by", "weight_decay")
        .agg(pl.col("deep_rank").mean().alias("rank"))
        .sort("trained by", "weight_decay")
    )
    chart = (
        alt.Chart(rows)
        .mark_line(point=True)
        .encode(
            x=alt.X("weight_decay:Q", title="weight decay"),
            y=alt.Y("rank:Q"),
            color=alt.Color("trained by:N", legend=alt.Legend(orient="top")),
        )
        .properties(width="container", height=240)
    )
    return Figure(
        "deep",
        "A deep network: gradient descent gets low rank as well",
        "Threshold rank (1e-3) of the middle matrix on real data, at equal steps.",
        chart,
    )


CLAIM = Claim(
    name="janus",
    title="SGD with weight decay forgets the null space and never rests",
    paper="Xu, Galanti, Rangamani, Rosasco and Poggio, The Janus effects of SGD vs GD: high noise "
    "and low rank (CBMM Memo 144, 2023)",
    statement="With weight decay, the part of the initial weights that the training inputs cannot "
    "see decays by exactly 1 - lr x weight decay a step, for every batch size and order of the "
    "data; per epoch SGD forgets N / B times as fast as gradient descent. SGD's updates keep "
    "fluctuating, also in a fixed order, while gradient descent, and SGD without decay, come to "
    "rest.",
    corrections=(
        "An abstract of this work has SGD's null-space component decay exponentially and that of "
        "gradient descent linearly. Both are geometric: the gradient of any minibatch lies in the "
        "span of its inputs, so W_perp <- (1 - lr weight_decay) W_perp at every step of either. "
        "The gap is N / B per epoch and none per step.",
        "Low rank is not SGD's alone: at equal steps the linear model has the same stable rank "
        "under both, and full-batch descent with decay lowers the rank of a deep network too.",
    ),
    config=Config,
    presets={
        "smoke": Config(
            batch_sizes=(4, 10),
            weight_decay=(0.0, 2e-4, 2e-3),
            epochs=20,
            late_steps=2_000,
            deep_samples=100,
            deep_steps=300,
            deep_weight_decay=(0.0, 1e-2),
            seeds=2,
        ),
        "small": Config(),
        "paper": Config(seeds=100, batch_sizes=(1, 2, 4, 8, 10, 20), deep_steps=20_000),
    },
    costs={"smoke": "10 s", "small": "2 min on two cores", "paper": "1 h on two cores"},
    trials=trials,
    group=group,
    group_size=64,
    run=run,
    judge=judge,
    figures=figures,
    table=table,
)
