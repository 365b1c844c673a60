"""SGD noise and implicit low-rank bias (Galanti and Poggio, CBMM Memo 134, 2022).

With weight decay no weights make every minibatch's regularised gradient vanish: a batch gradient
has rank at most m_l B, so what weight_decay x W has beyond that rank is a floor under the noise.
Tested at points where full-batch descent has come to rest, and against what is only shrinkage.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import altair as alt
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
    from torch import Tensor, nn

    from undertow.data import Dataset

_REST_LR, _REST_MOMENTUM = 0.1, 0.95  # heavy ball comes to rest at the same points as descent
_SHRINK_LR = 0.1


@dataclass(frozen=True)
class Config:
    """Knobs.

    Attributes:
        data: digits, fashion-mnist, mnist-5k or cifar10.
        data_root: folder of a dataset that you have.
        samples: training images of the networks that come to rest.
        width: of their two hidden layers.
        weight_decay: of those networks; 0 is the control.
        steps: full-batch steps that bring them to rest.
        batch_sizes: whose gradients are held against the floor.
        batches: minibatches drawn for each batch size above 1.
        shrink_samples: training images of the displacement experiment.
        shrink_decay: its weight decay.
        fit_steps: steps without decay before it.
        late_epochs: epochs with decay after which the displacement is read again.
        seeds: independent repetitions.
    """

    data: str = "digits"
    data_root: str | None = None
    samples: int = 100
    width: int = 32
    weight_decay: tuple[float, ...] = (0.0, 1e-3, 5e-3, 1e-2, 2e-2)
    steps: int = 8_000
    batch_sizes: tuple[int, ...] = (1, 4)
    batches: int = 100
    shrink_samples: int = 400
    shrink_decay: float = 1e-3
    fit_steps: int = 20_000
    late_epochs: int = 600
    seeds: int = 10

    def __post_init__(self) -> None:
        if min(self.weight_decay, default=-1) < 0 or not any(self.weight_decay):
            raise ValueError(
                f"weight_decay must hold a positive value and no negative, got {self.weight_decay}"
            )
        if not all(1 <= size < self.samples for size in self.batch_sizes):
            raise ValueError(
                f"batch_sizes must lie between 1 and samples - 1 = {self.samples - 1}, got "
                f"{self.batch_sizes}"
            )
        if self.shrink_decay <= 0:
            raise ValueError(f"shrink_decay must be positive, got {self.shrink_decay}")


# ---- trials


@dataclass(frozen=True)
class Rest:
    """A network brought to rest by full-batch descent, then its minibatch gradients."""

    data: str
    data_root: str | None
    samples: int
    width: int
    weight_decay: float
    steps: int
    batch_sizes: tuple[int, ...]
    batches: int
    seed: int


@dataclass(frozen=True)
class Displacement:
    """A fitted network trained on with decay: how far an epoch moves it, and in which direction."""

    data: str
    data_root: str | None
    samples: int
    weight_decay: float
    fit_steps: int
    late_epochs: int
    seed: int


def trials(config: Config, seed: int) -> list[Rest | Displacement]:
    """Networks at rest over weight decays, and displacements with decay and without."""
    seeds = [seed * 10_000 + index for index in range(config.seeds)]
    source = (config.data, config.data_root)
    rest = [
        Rest(
            *source,
            config.samples,
            config.width,
            decay,
            config.steps,
            config.batch_sizes,
            config.batches,
            own,
        )
        for decay in config.weight_decay
        for own in seeds
    ]
    moved = [
        Displacement(
            *source, config.shrink_samples, decay, config.fit_steps, config.late_epochs, own
        )
        for decay in (0.0, config.shrink_decay)
        for own in seeds
    ]
    return [*rest, *moved]


def group(trial: Rest | Displacement) -> Hashable:
    """Networks at rest differ in decay and seed alone; displacements share the fit."""
    return replace(trial, weight_decay=0.0, seed=0)


def run(group_trials: Sequence[Rest | Displacement]) -> list[list[dict[str, Any]]]:
    """Run one group and return the records of each trial."""
    if isinstance(group_trials[0], Rest):
        return _run_rest([trial for trial in group_trials if isinstance(trial, Rest)])
    moved = [trial for trial in group_trials if isinstance(trial, Displacement)]
    return [_displacement(trial) for trial in moved]


def _load(trial: Rest | Displacement) -> Dataset:
    from undertow import data

    return data.load(trial.data, root=trial.data_root, train_size=trial.samples)


def _run_rest(group_trials: Sequence[Rest]) -> list[list[dict[str, Any]]]:
    import torch
    from torch.nn import functional

    from undertow import models
    from undertow.train import Ensemble, Member, rules

    first = group_trials[0]
    loaded = _load(first)
    inputs, targets = loaded.train_inputs.flatten(1).double(), loaded.train_targets
    sizes = (inputs.shape[1], first.width, first.width, loaded.num_classes)
    ensemble = Ensemble(
        lambda generator: models.mlp(sizes, activation="tanh", generator=generator),
        functional.cross_entropy,
        (inputs, targets),
        [
            Member(trial.seed, _REST_LR, trial.weight_decay, _REST_MOMENTUM, order="full")
            for trial in group_trials
        ],
        batch_size=len(inputs),
        rule=rules.momentum,
        path="fused",
        dtype=torch.float64,
    ).train(first.steps)
    accuracy = ensemble.evaluate(inputs, targets).accuracy
    records = []
    for e, trial in enumerate(group_trials):
        facts = {
            "diverged": ensemble.diverged_at[e] is not None,
            "train_accuracy": float(accuracy[e]),
        }
        if facts["diverged"]:
            records.append([facts])
            continue
        rows = _minibatch_gradients(trial, ensemble.module(e), inputs, targets)
        records.append([facts | row for row in rows])
    return records


def _minibatch_gradients(
    trial: Rest, module: nn.Module, inputs: Tensor, targets: Tensor
) -> list[dict[str, Any]]:
    """Regularised minibatch gradients of every matrix against the floor of its spectrum."""
    import torch
    from torch.func import functional_call, grad, vmap
    from torch.nn import functional

    from undertow import measure

    params = {name: value.detach() for name, value in module.named_parameters()}

    def sample_loss(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(module, own, (x[None],)), y[None])

    gradients = vmap(grad(sample_loss), in_dims=(None, 0, 0))(params, inputs, targets)
    generator = torch.Generator().manual_seed(trial.seed)
    rows = []
    for batch_size in trial.batch_sizes:
        if batch_size == 1:
            batches = torch.arange(len(inputs))[:, None]
        else:
            weights = torch.ones(trial.batches, len(inputs))
            batches = torch.multinomial(weights, batch_size, generator=generator)
        guaranteed = measure.noise_floor(
            module, weight_decay=trial.weight_decay, batch_size=batch_size
        ).table
        for layer, (name, floor) in enumerate(guaranteed.select("name", "floor").iter_rows(), 1):
            decay = trial.weight_decay * params[name]
            noise = (gradients[name][batches].mean(1) + decay).flatten(1).norm(dim=1)
            rest = gradients[name].mean(0) + decay
            rows.append(
                {
                    "layer": layer,
                    "batch_size": batch_size,
                    "pairs": len(noise),
                    "violations": int((noise < floor * (1 - 1e-9)).sum()),
                    "floor": floor,
                    "least": float(noise.min()),
                    "rms": float(noise.square().mean().sqrt()),
                    "residual": float(rest.norm()),
                }
            )
    return rows


def _displacement(trial: Displacement) -> list[dict[str, Any]]:
    """One epoch's movement of all weights, by SGD in two data orders and by full-batch descent."""
    import torch
    from torch.nn import functional

    from undertow import models
    from undertow.train import Ensemble, Member

    loaded = _load(trial)
    inputs, targets = loaded.train_inputs.flatten(1).double(), loaded.train_targets
    sizes = (inputs.shape[1], 64, 64, loaded.num_classes)
    batch_size, data = 16, (inputs, targets)
    shared: dict[str, Any] = {"path": "fused", "dtype": torch.float64}
    fitted = Ensemble(
        lambda generator: models.mlp(sizes, generator=generator),
        functional.cross_entropy,
        data,
        [Member(trial.seed, _SHRINK_LR)],
        batch_size=batch_size,
        **shared,
    ).train(trial.fit_steps)
    start = fitted.module(0)
    per_epoch = len(inputs) // batch_size
    going = {
        "SGD": Ensemble(
            start,
            functional.cross_entropy,
            data,
            [Member(trial.seed + k, _SHRINK_LR, trial.weight_decay) for k in (0, 1)],
            batch_size=batch_size,
            **shared,
        ),
        "GD": Ensemble(
            start,
            functional.cross_entropy,
            data,
            [Member(trial.seed, _SHRINK_LR, trial.weight_decay, order="full")],
            batch_size=len(inputs),
            **shared,
        ),
    }
    rows = []
    for epoch in (0, trial.late_epochs) if trial.weight_decay else (0,):
        for method, ensemble in going.items():
            ensemble.train(epoch * per_epoch - ensemble.steps_taken)
            before = _flat(ensemble.parameters())
            moved = _flat(ensemble.train(per_epoch).parameters()) - before
            norm = before[0].norm()
            radial = float(moved[0] @ before[0] / norm**2)
            total = float(moved[0].norm() / norm)
            order = float((moved[0] - moved[-1]).norm() / norm / math.sqrt(2))
            rows.append(
                {
                    "method": method,
                    "epoch": epoch,
                    "diverged": False,
                    "displacement": total,
                    "radial": radial,
                    "tangential": math.sqrt(max(total**2 - radial**2, 0.0)),
                    "of_the_order": order if method == "SGD" and epoch == 0 else None,
                    "shrinkage": per_epoch * _SHRINK_LR * trial.weight_decay,
                }
            )
    return rows


def _flat(params: dict[str, Tensor]) -> Tensor:
    """All weight matrices of each member as one vector, `[E, p]`."""
    import torch

    weights = [value.flatten(1) for name, value in params.items() if name.endswith("weight")]
    return torch.cat(weights, dim=1)


# ---- the verdict rule


def _per_seed(frame: pl.DataFrame, expression: pl.Expr) -> lab.Effect:
    values = frame.group_by("seed").agg(expression.alias("value")).sort("seed")["value"]
    return over_seeds(values.drop_nulls())


def judge(records: pl.DataFrame, config: Config) -> Verdict:
    """Every check of the claim; the thresholds were fixed before the verdict seeds ran."""
    kept = records.filter(~pl.col("diverged"))
    rest = kept.filter(pl.col("floor").is_not_null())
    moved = kept.filter(pl.col("displacement").is_not_null())
    lost = records.filter("diverged")["trial"].n_unique()
    pairs = int(rest["pairs"].sum())
    summary = f"{lost} runs diverged; {pairs:,} (layer, batch) pairs were held against the floor."
    checks = [*_floor_checks(rest, config), *_displacement_checks(moved, config)]
    return decide(checks, summary, promises_verdict=config.seeds >= 8)


def _floor_checks(rest: pl.DataFrame, config: Config) -> list[Check]:
    decayed = rest.filter(pl.col("weight_decay") > 0)
    pairs, violations = int(decayed["pairs"].sum()), int(decayed["violations"].sum())
    violated = lab.proportion(violations, pairs)
    single = decayed.filter(batch_size=1)
    hidden = single.filter(layer=2)
    tight = _per_seed(hidden, (pl.col("least") / pl.col("floor")).mean())
    noise = (
        rest.filter(batch_size=1)
        .group_by("seed", "weight_decay")
        .agg(pl.col("rms").pow(2).sum().sqrt().alias("noise"))
        .sort("seed", "weight_decay")
    )
    rising = noise.group_by("seed").agg((pl.col("noise").diff().drop_nulls() > 0).all())
    monotone = lab.proportion(int(rising["noise"].sum()), len(rising))
    weakest = min(value for value in config.weight_decay if value > 0)
    quiet = _per_seed(
        noise,
        pl.col("noise").filter(pl.col("weight_decay") == 0).first()
        / pl.col("noise").filter(pl.col("weight_decay") == weakest).first(),
    )
    doubled = lab.proportion(int((hidden["least"] < 2 * hidden["floor"]).sum()), len(hidden))
    resting = _per_seed(decayed, (pl.col("residual") / pl.col("least")).max())
    return [
        Check(
            "guaranteed floor violated",
            violated.value,
            violated.interval,
            f"by none of {pairs:,} (layer, batch) pairs, at least 1,000",
            passed=violations == 0 and pairs >= 1000,
            refuted=violations > 0,
        ),
        check_below(
            "measured minimum over floor, hidden matrix",
            tight,
            bound=1.5,
            rule="at most 1.5 at batch size 1: the floor is not far below",
        ),
        Check(
            "noise rises with decay",
            monotone.value,
            monotone.interval,
            "in every seed, over all the decays",
            passed=monotone.value == 1.0,
            refuted=monotone.interval[1] < 0.5,
        ),
        check_below(
            "noise without decay over weakest decay",
            quiet,
            bound=1 / 30,
            rule=f"at most 1/30 of that at {weakest:g}: no decay, no noise",
            control=True,
        ),
        check_below(
            "full-batch gradient over least batch gradient",
            resting,
            bound=0.1,
            rule="at most 0.1 in the worst layer: full-batch descent is at rest, no batch is",
            control=True,
        ),
        check_above(
            "twice the floor broken, hidden matrix",
            doubled,
            bound=0.5,
            rule="in most runs: lambda is not weight_decay but half of it",
            control=True,
        ),
    ]


def _displacement_checks(moved: pl.DataFrame, config: Config) -> list[Check]:
    early = moved.filter(pl.col("epoch") == 0)
    late = moved.filter(pl.col("epoch") > 0, pl.col("weight_decay") > 0)
    decayed = early.filter(pl.col("weight_decay") > 0)
    sgd = pl.col("method") == "SGD"

    def over(frame: pl.DataFrame, column: str) -> lab.Effect:
        return _per_seed(
            frame, pl.col(column).filter(sgd).first() / pl.col(column).filter(~sgd).first()
        )

    plateau = _per_seed(decayed.filter(sgd), (pl.col("displacement") / pl.col("shrinkage")).first())
    same = over(decayed, "displacement")
    reference = config.shrink_decay * _SHRINK_LR * (config.shrink_samples // 16)
    still = _per_seed(
        early.filter(sgd, pl.col("weight_decay") == 0), pl.col("displacement").first() / reference
    )
    tangential = over(late, "tangential")
    order = _per_seed(
        decayed.filter(sgd), (pl.col("of_the_order") / pl.col("displacement")).first()
    )
    return [
        check_within(
            "displacement over shrinkage, after fitting",
            plateau,
            0.9,
            1.1,
            "0.9 to 1.1 times lr x weight_decay x steps: the plateau is shrinkage",
        ),
        check_within(
            "displacement, SGD over GD, after fitting",
            same,
            0.95,
            1.05,
            "0.95 to 1.05: full-batch descent has the same plateau, so it shows no noise",
            control=True,
        ),
        check_below(
            "displacement without decay over shrinkage",
            still,
            bound=0.1,
            rule="at most 0.1 of what the decay would shrink",
            control=True,
        ),
        check_below(
            "noise's share of that displacement",
            order,
            bound=0.1,
            rule="at most 0.1 depends on the order of the data",
        ),
        check_above(
            "tangential displacement, SGD over GD, late",
            tangential,
            bound=1.5,
            rule=f"at least 1.5 after {config.late_epochs:,} epochs: there the noise shows",
        ),
    ]


# ---- what a reader sees


def table(records: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Floor, least and typical noise of each matrix, by weight decay and batch size."""
    rest = records.filter(pl.col("floor").is_not_null(), ~pl.col("diverged"))
    return (
        rest.group_by("batch_size", "layer", "weight_decay")
        .agg(
            pl.col("floor").mean(),
            pl.col("least").mean().alias("measured minimum"),
            (pl.col("least") / pl.col("floor")).mean().alias("minimum over floor"),
            pl.col("rms").mean().alias("rms"),
            pl.col("residual").mean().alias("full batch"),
        )
        .with_columns(pl.col("minimum over floor").replace(math.inf, None))
        .sort("batch_size", "layer", "weight_decay")
    )


def figures(records: pl.DataFrame, config: Config) -> list[Figure]:
    """The charts of the report."""
    kept = records.filter(~pl.col("diverged"))
    rest = kept.filter(pl.col("floor") > 0)
    moved = kept.filter(pl.col("displacement").is_not_null(), pl.col("weight_decay") > 0)
    drawn = []
    if not rest.is_empty():
        drawn.append(_floor_figure(rest))
    if not moved.is_empty():
        drawn.append(_displacement_figure(moved, config))
    return drawn


def _floor_figure(rest: pl.DataFrame) -> Figure:
    series = {"least": "least batch gradient", "rms": "rms batch gradient", "floor": "floor"}
    rows = (
        rest.filter(batch_size=1)
        .with_columns(pl.format("matrix {}", pl.col("layer")).alias("matrix"))
        .group_by("matrix", "weight_decay")
        .agg([pl.col(column).mean().alias(label) for column, label in series.items()])
        .unpivot(index=["matrix", "weight_decay"], variable_name="what", value_name="norm")
        .sort("matrix", "what", "weight_decay")
    )
    chart = (
        alt.Chart(rows)
        .mark_line(point=True)
        .encode(
            x=alt.X("weight_decay:Q", scale=alt.Scale(type="log"), title="weight decay"),
            y=alt.Y("norm:Q", scale=alt.Scale(type="log"), title="norm at batch size 1"),
            color=alt.Color(
                "what:N",
                sort=list(series.values()),
                legend=alt.Legend(orient="top", title=None, labelLimit=0),
            ),
        )
        .properties(width=210, height=230)
        .facet(column=alt.Column("matrix:N", title=None))
    )
    return Figure(
        "floor",
        "At rest, no minibatch is: the floor under its gradient",
        "Regularised gradients of single samples where the full-batch gradient is nearly zero. The "
        "floor needs no data: weight_decay times what the weights have beyond rank 1.",
        chart,
    )


def _displacement_figure(moved: pl.DataFrame, config: Config) -> Figure:
    rows = (
        moved.with_columns(
            pl.when(pl.col("epoch") == 0)
            .then(pl.lit("after fitting"))
            .otherwise(pl.lit(f"{config.late_epochs} epochs later"))
            .alias("when"),
            pl.col("radial").abs().alias("radial"),
        )
        .group_by("method", "when")
        .agg(pl.col("radial", "tangential", "shrinkage").mean())
        .unpivot(index=["method", "when"], variable_name="part", value_name="displacement")
        .sort("when", "method", "part")
    )
    chart = (
        alt.Chart(rows)
        .mark_bar()
        .encode(
            x=alt.X("displacement:Q", title="displacement in an epoch / ||W||"),
            y=alt.Y("part:N", title=None, sort=["shrinkage", "radial", "tangential"]),
            color=alt.Color("part:N", legend=None),
            row=alt.Row("method:N", title=None),
            column=alt.Column("when:N", title=None, sort=["after fitting"]),
        )
        .properties(width=300, height=80)
    )
    return Figure(
        "displacement",
        "A plateau of displacement is shrinkage first, noise much later",
        "Just after fitting, an epoch moves the weights by lr x weight_decay x steps, straight "
        "toward zero, under SGD and full-batch descent alike. Only once decay and gradient balance "
        "does SGD move more than descent, and then sideways.",
        chart,
    )


CLAIM = Claim(
    name="sgd-noise",
    title="Weight decay forces a floor under SGD's noise",
    paper="Galanti and Poggio, SGD Noise and Implicit Low-Rank Bias in Deep Neural Networks (CBMM "
    "Memo 134, 2022)",
    statement="With weight decay, no weights bring every minibatch's regularised gradient to zero: "
    "its norm is at least weight_decay x sqrt(sum over k > m_l B of s_k(W)^2), for every batch, "
    "also where full-batch descent is at rest. The noise grows with the decay and is gone without.",
    corrections=(
        "The floor is two lines: W + grad L_S / weight_decay = G_S / weight_decay, and grad L_S "
        "has rank at most m_l B, so G_S / weight_decay is at least as far from zero as W is from "
        "that rank (Eckart and Young). Noise and rank excess are one number.",
        "A flat plateau of ||W_(e+1) - W_e|| / ||W_e|| in proportion to the weight decay has been "
        "shown as evidence of noise. Just after fitting it is shrinkage: its size is lr x "
        "weight_decay x steps, its direction is -W, and full-batch descent has the same. Noise is "
        "the part that is tangential, or that depends on the order of the data.",
    ),
    config=Config,
    presets={
        "smoke": Config(
            samples=40,
            width=16,
            weight_decay=(0.0, 5e-3, 2e-2),
            steps=1_000,
            fit_steps=500,
            late_epochs=10,
            seeds=2,
        ),
        "small": Config(),
        "paper": Config(width=256, samples=1_000, steps=100_000, seeds=20),
    },
    costs={"smoke": "10 s", "small": "2 min on two cores", "paper": "a day on two cores"},
    trials=trials,
    group=group,
    group_size=25,
    run=run,
    judge=judge,
    figures=figures,
    table=table,
)
