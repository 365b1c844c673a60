"""What the memo predicts of SGD's noise and rank, and where the effect must be gone."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.janus import DEEP_BATCH, Janus
from undertow.claims.janus.experiments import LINEAR
from undertow.lab import KEPT, Prediction, Reading, at_most, greatest, no_less, of, within

MOVES = pl.col("fluctuation")
ORDERS = {"epochs": "shuffled", "cyclic": "fixed order"}
_FITTED = pl.col("train_accuracy").last().over("trial") >= 0.95


def predictions(knobs: Janus) -> dict[str, Prediction]:
    """Of regressions, then of deep networks: noise, and ranks per epoch and per step."""
    return linear_noise(knobs) | linear_rank(knobs) | deep_noise(knobs) | deep_rank(knobs)


def linear_noise(knobs: Janus) -> dict[str, Prediction]:
    """What is left of the updates late in training, computed from the data alone."""
    late = (KEPT, "final", pl.col("steps") >= knobs.late_steps)
    off = (MOVES / pl.col("orbit") - 1).abs()
    orbit = greatest(of(kind, off, *late, how="max", order="cyclic") for kind in LINEAR)
    found = {
        "fixed order, off its exact periodic orbit": lab.every_seed(
            orbit <= 1e-6, "at most 1e-6, at every batch size and decay", exact=True
        )
    }
    decays = sorted(filter(None, knobs.weight_decay))
    cells: list[dict[str, Any]] = [
        {"batch_size": size, "weight_decay": decay}
        for size in knobs.batch_sizes
        for decay in decays
    ]
    for order, name in ORDERS.items():
        ratios = [
            of("gaussian", MOVES / pl.col("ridge"), *late, order=order, **cell) for cell in cells
        ]
        found[f"fluctuation over the gradients' at the ridge solution, {name}"] = within(
            *(0.95, 1.05, lab.worst(ratios, 1, of_ratios=True), "the worst batch size and decay"),
            against=(0.5, 2),
        )
    still: dict[str, dict[str, Any]] = {
        "GD's fluctuation with decay": {"order": "full"},
        "SGD's fluctuation without decay": {"weight_decay": 0.0},
    }
    for name, cell in still.items():
        moves = of("gaussian", MOVES, *late, how="max", **cell)
        note = "at most 1e-12 of ||W||: it comes to rest"
        found[name] = lab.every_seed(moves <= 1e-12, note, control=True)
    return found


def linear_rank(knobs: Janus) -> dict[str, Prediction]:
    """The stable rank of the regression, after as many steps."""
    sgd, gd = (
        of(
            "gaussian",
            "stable_rank",
            *(KEPT, "final", pl.col("order") != "cyclic"),
            weight_decay=knobs.strongest,
            batch_size=size,
            steps=knobs.steps_of(1),
        )
        for size in (knobs.smallest, knobs.samples)
    )
    return {
        "stable rank, SGD over GD, same steps": within(
            0.9, 1.1, sgd / gd, "no bias of SGD's own", against=math.inf
        )
    }


def deep_noise(knobs: Janus) -> dict[str, Prediction]:
    """That SGD's noise stays, is as large as the gradients say where descent rests, and grows."""
    decays = sorted(filter(None, knobs.deep_weight_decay))
    strongest, steps = decays[-1], knobs.deep_steps
    found = {}
    for order, name in ORDERS.items():
        ratios = [
            moving(knobs, order, decay) / descent(knobs, "predicted", decay) for decay in decays
        ]
        found[f"deep: fluctuation over the gradients' where GD rests, {name}"] = within(
            0.8,
            1.25,
            lab.worst(ratios, 1, of_ratios=True),
            "to first order in the steps, at the worst decay",
            against=(0.5, 2),
        )
    sgd, gd = moving(knobs, "epochs", strongest), descent(knobs, MOVES, strongest)
    kept, lost = (
        moving(knobs, "epochs", decay) / moving(knobs, "epochs", decay, steps // 2)
        for decay in (strongest, 0.0)
    )
    smooth = descent(knobs, MOVES, strongest, activation="tanh")
    grows = sgd / moving(knobs, "epochs", decays[0])
    return found | {
        "deep: fluctuation, SGD over GD": no_less(
            20, sgd / gd, "GD's is chatter at the kinks of the ReLU", against=1
        ),
        "deep: GD's fluctuation, smooth network": at_most(
            1e-5, smooth, "of ||w||: tanh has no kinks, and descent rests", against=1e-3
        ),
        # Where the noise stays the ratio is 1; where it falls with the loss, as 1 / t, it is 1 / 2.
        "deep: SGD's fluctuation, end over half-way": no_less(0.7, kept, "it stays", against=0.5),
        "deep: SGD's fluctuation without decay, end over half-way": at_most(
            0.7, lost, "it goes on falling, as the loss does", control=True
        ),
        f"deep: SGD's fluctuation, decay {strongest:g} over {decays[0]:g}": no_less(
            1.4, grows, "more decay, more noise", against=1
        ),
    }


def deep_rank(knobs: Janus) -> dict[str, Prediction]:
    """Whose rank is low, after as many epochs and after as many steps."""
    strongest = max(knobs.deep_weight_decay)
    sgd = deep(knobs, "rank", order="epochs", weight_decay=strongest)
    epochs = knobs.deep_steps // -(-(knobs.images.train_size or 0) // DEEP_BATCH)
    gd, undecayed = (descent(knobs, "rank", decay) for decay in (strongest, 0.0))
    early = descent(knobs, "rank", strongest, step=epochs)
    without = deep(knobs, "rank", order="epochs", weight_decay=0.0)
    return {
        "deep: rank, SGD over GD, same epochs": at_most(
            0.8, sgd / early, f"after {epochs} of each", against=1
        ),
        "deep: SGD's rank without decay over GD's with it, same epochs": no_less(
            0.95, without / early, "as many steps alone take none", control=True
        ),
        "deep: rank, SGD less GD, same steps": no_less(
            *(-1.5, sgd - gd, "SGD's is no lower, to the one that a count cannot tell"),
            against=math.inf,
        ),
        "deep: GD's rank, strongest over no decay": at_most(
            0.8, gd / undecayed, f"descent gets low rank too, at decay {strongest:g}", against=1
        ),
    }


def summary(records: Records, knobs: Janus) -> str:
    """How many runs diverged."""
    gone, runs = lab.lost(records)
    return f"{gone or 'None'} of {runs} runs diverged{' and were left out' if gone else ''}."


# ---- readings


def deep(knobs: Janus, value: str | pl.Expr, **where: Any) -> Reading:
    """A value of the deep networks that fitted in the end, there or after other steps."""
    cell: dict[str, Any] = {"activation": "relu", "step": knobs.deep_steps}
    cell |= where
    return of("deep", value, KEPT, _FITTED, **cell)


def moving(knobs: Janus, order: str, decay: float, step: int | None = None) -> Reading:
    """SGD's fluctuation."""
    at = knobs.deep_steps if step is None else step
    return deep(knobs, MOVES, order=order, weight_decay=decay, step=at)


def descent(knobs: Janus, value: str | pl.Expr, decay: float, **where: Any) -> Reading:
    """A value of gradient descent at the end."""
    return deep(knobs, value, order="full", weight_decay=decay, **where)
