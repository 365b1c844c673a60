"""SGD noise and implicit low-rank bias (Galanti and Poggio, CBMM Memo 134, 2022).

A batch gradient has rank at most m_l B, so with weight decay what weight_decay x W has beyond that
rank is a floor under every minibatch's regularised gradient, and so under the noise. Tested where
full-batch descent has come to rest, and against what is only shrinkage.
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
_SHRINK_BATCH = 16
_GD_THERE = "GD from SGD"
_ORDERS = 16  # data orders from the same weights: one pair of them tells little of their spread
_OTHER_ORDER = 2**32  # between the seeds of two data orders, so that no two networks share one


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
        fit: training accuracy that a network at rest must have to be counted.
        batch_sizes: whose gradients are held against the floor; 1 is compared most closely.
        batches: minibatches drawn for each batch size above 1.
        shrink_samples: training images of the displacement experiment.
        shrink_decay: its weight decay.
        fit_steps: steps without decay before it.
        late_epochs: epochs of SGD with decay after which the displacement is read again.
        seeds: independent repetitions.
    """

    data: str = "digits"
    data_root: str | None = None
    samples: int = 100
    width: int = 32
    weight_decay: tuple[float, ...] = (0.0, 1e-3, 5e-3, 1e-2, 2e-2)
    steps: int = 8_000
    fit: float = 0.99
    batch_sizes: tuple[int, ...] = (1, 4)
    batches: int = 100
    shrink_samples: int = 400
    shrink_decay: float = 1e-3
    fit_steps: int = 20_000
    late_epochs: int = 600
    seeds: int = 10

    def __post_init__(self) -> None:
        decays = self.weight_decay
        if not all(0 <= decay < 1 / _REST_LR for decay in decays) or not any(decays):
            raise ValueError(
                "weight_decay must hold a positive value, no negative and none from "
                f"{1 / _REST_LR:g} on, got {decays}"
            )
        if 0 not in decays:
            raise ValueError(f"weight_decay must hold 0, the control, got {decays}")
        if not all(1 <= size < self.samples for size in self.batch_sizes):
            raise ValueError(
                f"batch_sizes must lie between 1 and samples - 1 = {self.samples - 1}, got "
                f"{self.batch_sizes}"
            )
        if 1 not in self.batch_sizes:
            raise ValueError(
                f"batch_sizes must hold 1, where the floor is close, got {self.batch_sizes}"
            )
        for name in ("weight_decay", "batch_sizes"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must not hold a value twice, got {values}")
        if not 0 < self.shrink_decay < 1 / _SHRINK_LR:
            raise ValueError(
                f"shrink_decay must be positive and below {1 / _SHRINK_LR:g}, got "
                f"{self.shrink_decay}"
            )
        if not 0 <= self.fit <= 1:
            raise ValueError(f"fit must lie between 0 and 1, got {self.fit}")
        least = {"width": 2, "shrink_samples": _SHRINK_BATCH}
        counts = (
            "width",
            "steps",
            "batches",
            "shrink_samples",
            "fit_steps",
            "late_epochs",
            "seeds",
        )
        for name in counts:
            if getattr(self, name) < least.get(name, 1):
                raise ValueError(
                    f"{name} must be at least {least.get(name, 1)}, got {getattr(self, name)}"
                )


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
                    # Where a batch can have full rank the floor is 0, and nothing is tested.
                    "pairs": len(noise) if floor > 0 else 0,
                    "violations": int((~(noise >= floor * (1 - 1e-9))).sum()),
                    "floor": floor,
                    "least": float(noise.min()),
                    "rms": float(noise.square().mean().sqrt()),
                    "residual": float(rest.norm()),
                }
            )
    return rows


def _displacement(trial: Displacement) -> list[dict[str, Any]]:
    """One epoch's movement of all weights, by SGD in several data orders and by full-batch descent.

    Of SGD the root mean square over the orders, and their spread about their mean: the noise.
    """
    import torch
    from torch.nn import functional

    from undertow import models
    from undertow.train import Ensemble, Member

    loaded = _load(trial)
    inputs, targets = loaded.train_inputs.flatten(1).double(), loaded.train_targets
    sizes = (inputs.shape[1], 64, 64, loaded.num_classes)
    per_epoch = len(inputs) // _SHRINK_BATCH

    def going(model: Any, decay: float, *seeds: int, full: bool = False) -> Ensemble:
        return Ensemble(
            model,
            functional.cross_entropy,
            (inputs, targets),
            [Member(seed, _SHRINK_LR, decay, order="full" if full else "epochs") for seed in seeds],
            batch_size=len(inputs) if full else _SHRINK_BATCH,
            path="fused",
            dtype=torch.float64,
        )

    def at(model: Any, decay: float, epochs: int, *, full: bool = False) -> tuple[nn.Module, bool]:
        """Where an ensemble of one gets to, and whether it diverged on the way."""
        ensemble = going(model, decay, trial.seed, full=full).train(epochs * per_epoch)
        return ensemble.module(0), unfit or ensemble.diverged_at[0] is not None

    fitted = going(lambda generator: models.mlp(sizes, generator=generator), 0.0, trial.seed)
    start = fitted.train(trial.fit_steps).module(0)
    unfit = fitted.diverged_at[0] is not None
    orders = [trial.seed + k * _OTHER_ORDER for k in range(1, _ORDERS + 1)]
    readings: list[tuple[str, int, nn.Module, bool]] = [
        (method, 0, start, unfit) for method in ("SGD", "GD")
    ]
    if trial.weight_decay:
        there, lost = at(start, trial.weight_decay, trial.late_epochs)
        rest, lost_too = at(start, trial.weight_decay, trial.late_epochs, full=True)
        readings += [
            ("SGD", trial.late_epochs, there, lost),
            ("GD", trial.late_epochs, rest, lost_too),
            (_GD_THERE, trial.late_epochs, there, lost),
        ]
    rows = []
    for method, epoch, model, lost in readings:
        sgd = method == "SGD"
        seeds = orders if sgd else [trial.seed]
        ensemble = going(model, trial.weight_decay, *seeds, full=not sgd)
        before = _flat(ensemble.parameters())
        moved = _flat(ensemble.train(per_epoch).parameters()) - before
        norm = before[0].norm()
        radial = float((moved @ before[0]).mean() / norm**2)
        total = float(moved.square().sum(1).mean().sqrt() / norm)
        stopped = any(step is not None for step in ensemble.diverged_at)
        spread = float(moved.var(0, correction=1).sum().sqrt() / norm) if sgd else None
        rows.append(
            {
                "method": method,
                "epoch": epoch,
                "diverged": lost or stopped or not math.isfinite(total),
                "displacement": total,
                "radial": radial,
                "tangential": math.sqrt(max(total**2 - radial**2, 0.0)),
                "of_the_order": spread,
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
    values = (
        frame.group_by("seed").agg(expression.alias("value")).sort("seed")["value"].drop_nulls()
    )
    # A ratio to nothing is unknown; to leave it out would leave out what speaks against.
    return over_seeds(values if values.is_finite().all() else [])


def _kept(records: pl.DataFrame, config: Config) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Networks at rest that have fitted, as a collapsed one has no rank to speak of; the moved."""
    kept = records.filter(~pl.col("diverged"))
    rest = kept.filter(pl.col("floor").is_not_null(), pl.col("train_accuracy") >= config.fit)
    return rest, kept.filter(pl.col("displacement").is_not_null())


def judge(records: pl.DataFrame, config: Config) -> Verdict:
    """Every check of the claim; the thresholds were fixed before the verdict seeds ran."""
    rest, moved = _kept(records, config)
    wanted = len(trials(config, 0))
    left = rest["trial"].n_unique() + moved["trial"].n_unique()
    lost = records.filter("diverged")["trial"].n_unique()
    summary = (
        f"{left} of {wanted} runs were kept; {lost} diverged, the others failed or had not fitted."
    )
    checks = [*_floor_checks(rest, config), *_displacement_checks(moved, config)]
    enough = config.seeds >= 8 and left >= 0.9 * wanted
    return decide(checks, summary, promises_verdict=enough)


def _in_seeds(frame: pl.DataFrame, expression: pl.Expr) -> lab.Effect:
    """The share of the seeds in which something holds; a seed's networks and batches are not
    independent of one another.
    """
    holds = frame.group_by("seed").agg(expression.alias("holds"))["holds"].drop_nulls()
    return lab.proportion(int(holds.sum()), len(holds))


def _floor_checks(rest: pl.DataFrame, config: Config) -> list[Check]:
    decayed = rest.filter(pl.col("weight_decay") > 0)
    pairs, violations = int(decayed["pairs"].sum()), int(decayed["violations"].sum())
    violated = _in_seeds(decayed, pl.col("violations").sum() > 0)
    hidden = decayed.filter(pl.col("floor") > 0, batch_size=1, layer=2)
    tight = _per_seed(hidden, (pl.col("least") / pl.col("floor")).mean())
    noise = (
        rest.filter(batch_size=1)
        .group_by("seed", "weight_decay")
        .agg(pl.col("rms").pow(2).sum().sqrt().alias("noise"))
        .sort("seed", "weight_decay")
    )
    positive = sorted(value for value in config.weight_decay if value > 0)
    whole = noise.filter(pl.len().over("seed") == len(config.weight_decay))
    if len(positive) < 2:
        whole = whole.clear()  # one decay has no trend
    monotone = _in_seeds(whole, (pl.col("noise").diff().drop_nulls() > 0).all())
    weakest = positive[0]
    quiet = _per_seed(
        noise,
        pl.col("noise").filter(pl.col("weight_decay") == 0).first()
        / pl.col("noise").filter(pl.col("weight_decay") == weakest).first(),
    )
    doubled = _in_seeds(hidden, (pl.col("least") < 2 * pl.col("floor")).all())
    resting = _per_seed(decayed, (pl.col("residual") / pl.col("least")).max())
    return [
        Check(
            "guaranteed floor violated",
            violated.value,
            violated.interval,
            f"in no seed, by none of {pairs:,} (layer, batch) pairs, at least 1,000",
            passed=violations == 0 and pairs >= 1000,
            refuted=violations > 0,
        ),
        check_below(
            "measured minimum over floor, hidden matrix",
            tight,
            bound=1.5,
            rule="at most 1.5 at batch size 1, mean over the decays: the floor is not far below",
        ),
        Check(
            "noise rises with decay",
            monotone.value,
            monotone.interval,
            "in every seed, over all the decays",
            passed=monotone.value == 1.0,
            refuted=monotone.interval[1] < 0.5,  # false where there is no interval
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
            rule="at every decay in most seeds: lambda is not weight_decay but half of it",
            control=True,
        ),
    ]


def _displacement_checks(moved: pl.DataFrame, config: Config) -> list[Check]:
    early = moved.filter(pl.col("epoch") == 0)
    late = moved.filter(pl.col("epoch") > 0, pl.col("weight_decay") > 0)
    decayed = early.filter(pl.col("weight_decay") > 0)
    sgd, descent = (pl.col("method") == method for method in ("SGD", "GD"))

    def over(frame: pl.DataFrame, column: str) -> lab.Effect:
        return _per_seed(
            frame, pl.col(column).filter(sgd).first() / pl.col(column).filter(descent).first()
        )

    plateau = _per_seed(decayed.filter(sgd), (pl.col("displacement") / pl.col("shrinkage")).first())
    same = over(decayed, "displacement")
    per_epoch = config.shrink_samples // _SHRINK_BATCH
    reference = config.shrink_decay * _SHRINK_LR * per_epoch
    still = _per_seed(
        early.filter(sgd, pl.col("weight_decay") == 0), pl.col("displacement").first() / reference
    )
    tangential = over(late, "tangential")
    share = (pl.col("of_the_order") / pl.col("displacement")).first()
    order, late_order = (_per_seed(frame.filter(sgd), share) for frame in (decayed, late))
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
            "noise over displacement, after fitting",
            order,
            bound=0.1,
            rule="at most 0.1 depends on the order of the data",
        ),
        check_above(
            "tangential displacement, SGD over GD, late",
            tangential,
            bound=1.5,
            rule=f"at least 1.5 after {config.late_epochs:,} epochs of each: descent comes nearer "
            "to rest",
        ),
        check_above(
            "noise over displacement, late",
            late_order,
            bound=0.5,
            rule=f"at least 0.5 depends on the order of the data after {config.late_epochs:,} "
            "epochs: there the noise shows",
        ),
    ]


# ---- what a reader sees


def table(records: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Floor, least and typical noise of each matrix, by weight decay and batch size."""
    rest, _ = _kept(records, config)
    return (
        rest.group_by("batch_size", "layer", "weight_decay")
        .agg(
            pl.col("floor").mean(),
            pl.col("least").mean().alias("measured minimum"),
            (pl.col("least") / pl.col("floor")).mean().alias("minimum over floor"),
            pl.col("rms").mean().alias("rms"),
            pl.col("residual").mean().alias("full batch"),
            pl.col("train_accuracy").min().alias("least train accuracy"),
        )
        .with_columns(pl.col("minimum over floor").replace(math.inf, None))
        .sort("batch_size", "layer", "weight_decay")
    )


def figures(records: pl.DataFrame, config: Config) -> list[Figure]:
    """The charts of the report."""
    rest, moved = _kept(records, config)
    rest, moved = rest.filter(pl.col("floor") > 0), moved.filter(pl.col("weight_decay") > 0)
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


_PARTS = ["predicted shrinkage", "radial", "tangential", "of the order"]


def _displacement_figure(moved: pl.DataFrame, config: Config) -> Figure:
    rows = (
        moved.with_columns(
            pl.when(pl.col("epoch") == 0)
            .then(pl.lit("after fitting"))
            .otherwise(pl.lit(f"{config.late_epochs} epochs later"))
            .alias("when"),
            pl.col("radial").abs().alias("radial"),
        )
        .rename({"shrinkage": _PARTS[0], "of_the_order": _PARTS[3]})
        .group_by("method", "when")
        .agg(pl.col(_PARTS).mean())
        .unpivot(index=["method", "when"], variable_name="part", value_name="displacement")
        .drop_nulls("displacement")
        .sort("when", "method", "part")
    )
    chart = (
        alt.Chart(rows)
        .mark_bar()
        .encode(
            x=alt.X("displacement:Q", title="displacement in an epoch / ||W||"),
            y=alt.Y("part:N", title=None, sort=_PARTS, axis=alt.Axis(labelLimit=0)),
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
        "does SGD move more than descent, and then sideways: the part that depends on the order of "
        "the data is the noise. Descent from where SGD got to moves sideways too.",
        chart,
    )


CLAIM = Claim(
    name="sgd-noise",
    title="Weight decay forces a floor under SGD's noise",
    paper="Galanti and Poggio, SGD Noise and Implicit Low-Rank Bias in Deep Neural Networks (CBMM "
    "Memo 134, 2022)",
    statement="With weight decay, weights of rank above m_l B bring no minibatch's regularised "
    "gradient to zero: its norm is at least weight_decay x sqrt(sum over k > m_l B of s_k(W)^2), "
    "for every batch of B, also where full-batch descent is at rest. The noise grows with the "
    "decay and is gone without.",
    corrections=(
        "The floor is two lines: W + grad L_S / weight_decay = G_S / weight_decay, and grad L_S "
        "has rank at most m_l B, so G_S / weight_decay is at least as far from zero as W is from "
        "that rank (Eckart and Young). Noise and rank excess are one number.",
        "A flat plateau of ||W_(e+1) - W_e|| / ||W_e|| in proportion to the weight decay has been "
        "shown as evidence of noise. Just after fitting it is shrinkage: its size is lr x "
        "weight_decay x steps, its direction is -W, and full-batch descent has the same. Noise is "
        "the part that depends on the order of the data. It is tangential, but not all that is "
        "tangential is noise: from the same weights full-batch descent moves sideways too.",
        "A convolution's m_l is the number of its output positions. Where m_l B reaches the "
        "smaller side of the kernel matrix the floor is 0 and says nothing: 1,024 positions "
        "against 64 channels in the first stage of a ResNet-18 on 32 x 32 images, so at every B.",
        "Batch norm in training mode leaves the floor as it is, since the gradient of a batch of B "
        "still has rank at most m_l B. It breaks the further step that only zero functions are at "
        "rest for every batch: that swaps one sample and takes the other samples' gradients as "
        "given, and batch statistics couple them.",
    ),
    config=Config,
    presets={
        "smoke": Config(
            samples=40,
            width=16,
            weight_decay=(0.0, 5e-3, 2e-2),
            steps=500,
            fit_steps=300,
            late_epochs=5,
            seeds=2,
        ),
        "small": Config(),
        "paper": Config(width=256, samples=1_000, steps=100_000, seeds=20),
    },
    costs={"smoke": "10 s", "small": "2 to 3 min on two cores", "paper": "a day on two cores"},
    trials=trials,
    group=group,
    group_size=25,
    run=run,
    judge=judge,
    figures=figures,
    table=table,
)
