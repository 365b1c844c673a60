"""What the memo predicts of the null space and of SGD's noise, and where it must fail."""

from __future__ import annotations

from functools import partial
from typing import Any

import polars as pl

from undertow import lab
from undertow.claims import Records
from undertow.claims.janus import DEEP_BATCH, Janus
from undertow.claims.janus.experiments import LINEAR
from undertow.lab import KEPT, Prediction, Reading, at_most, greatest, near, no_less, of, within

_SMALL = 2e-4  # decays up to here are read for the fluctuation's power of the decay
_LEFT, _LAW = pl.col("null_ratio"), pl.col("null_predicted")
_ERROR = (_LEFT.log() / _LAW.log() - 1).abs()
_READABLE = _LAW > 1e-9  # where less is left, rounding error is what is measured
_DECAYED = pl.col("weight_decay") > 0
_FITTED = pl.col("train_accuracy") >= 0.95


def predictions(knobs: Janus) -> dict[str, Prediction]:
    """The exact laws, SGD's noise, deep networks; the thresholds were fixed on other seeds."""
    return null_space(knobs) | noise(knobs) | deep_networks(knobs)


def null_space(knobs: Janus) -> dict[str, Prediction]:
    """One rate a step for every batch size and order."""
    ratio, small, every = -(-knobs.samples // knobs.smallest), knobs.smallest, knobs.samples
    rate = greatest(of(kind, _ERROR, KEPT, _DECAYED, _READABLE, how="max") for kind in LINEAR)
    change = (_LEFT - 1).abs()
    forgotten = greatest(of(kind, change, KEPT, how="max", weight_decay=0.0) for kind in LINEAR)
    pace = -_LEFT.log() / pl.col("epochs")
    faster = ended(knobs, pace, small, small) / ended(knobs, pace, every, every)
    unseen, stable = (
        ended(knobs, value, small, 1) / ended(knobs, value, every, 1)
        for value in (_LEFT, pl.col("stable_rank"))
    )
    gone = "at equal steps the gap is gone"
    return {
        "null-space decay rate, error": at_most(
            1e-6, rate, "of log(1 - lr weight_decay), worst of every batch size and order"
        ),
        "decay per epoch, SGD over GD": near(ratio, 1e-6 * ratio, faster, "N / B"),
        "null space lost without decay": at_most(
            1e-12, forgotten, "without decay nothing is forgotten", control=True
        ),
        "null space, SGD over GD, same steps": near(1, 1e-6, unseen, gone, control=True),
        "stable rank, SGD over GD, same steps": within(
            0.9, 1.1, stable, "no rank bias of SGD's own in the linear model"
        ),
    }


def noise(knobs: Janus) -> dict[str, Prediction]:
    """What is left of the updates late in training."""
    decays = sorted(filter(None, knobs.weight_decay))
    weakest, weak = decays[0], [decay for decay in decays if decay <= _SMALL]
    sgd, descent = (partial(late, knobs, size) for size in (knobs.smallest, knobs.samples))
    orders = (
        sgd(order="cyclic", weight_decay=decay) / sgd(order="epochs", weight_decay=decay)
        for decay in decays
    )
    never = {
        "SGD's fluctuation with decay": no_less(
            1e-6,
            sgd(how="min", weight_decay=weakest),
            f"of ||W|| an update at decay {weakest:g}, also in a fixed order",
        ),
        "fluctuation, fixed order over shuffled": within(
            0.8,
            1.25,
            lab.worst(orders, 1, of_ratios=True),
            "it is not the shuffling, at every decay",
        ),
    }
    if len(weak) > 1:
        logs = pl.col("weight_decay").log(), pl.col("fluctuation").log()
        chosen = (KEPT, "final", pl.col("weight_decay").is_in(weak))
        sizes: dict[str, Any] = {"batch_size": knobs.smallest, "steps": knobs.late_steps}
        power = lab.slope_of("gaussian", *logs, *chosen, order="epochs", **sizes)
        note = f"for decays up to {weak[-1]:g}"
        never["fluctuation's power of the decay"] = within(0.85, 1.15, power, note)
    rests = {
        "GD's fluctuation with decay": descent(_DECAYED, how="max"),
        "SGD's fluctuation without decay": sgd(how="max", weight_decay=0.0),
    }
    note = "of ||W||: it comes to rest"
    return never | {name: at_most(1e-12, r, note, control=True) for name, r in rests.items()}


def deep_networks(knobs: Janus) -> dict[str, Prediction]:
    """The first layer's null space, and whose rank is low."""
    strongest, full = max(knobs.deep_weight_decay), knobs.images.train_size
    sgd, descent, undecayed = (
        of("deep", "deep_rank", KEPT, _FITTED, batch_size=batch_size, weight_decay=decay)
        for batch_size, decay in ((DEEP_BATCH, strongest), (full, strongest), (full, 0.0))
    )
    rate = of("deep", _ERROR, KEPT, _DECAYED, how="max")
    return {
        "deep net, null-space rate, error": at_most(
            1e-6, rate, "exact in the first layer of a deep net too, SGD and GD"
        ),
        "deep net, GD's rank, strongest over no decay": at_most(
            0.8, descent / undecayed, f"descent gets low rank too, at decay {strongest:g}"
        ),
        "deep net, rank, SGD over GD, same steps": no_less(
            0.95, sgd / descent, "at equal steps SGD's rank is no lower"
        ),
    }


def summary(records: Records, knobs: Janus) -> str:
    """How many runs diverged."""
    gone, runs = lab.lost(records)
    return f"{gone or 'None'} of {runs} runs diverged{' and were left out' if gone else ''}."


# ---- readings


def ended(knobs: Janus, value: pl.Expr, batch_size: int, steps_of: int) -> Reading:
    """A value after as many steps as another batch size takes; of SGD with shuffled epochs."""
    order = "full" if batch_size == knobs.samples else "epochs"
    cell: dict[str, Any] = {"batch_size": batch_size, "order": order}
    cell |= {"weight_decay": knobs.strongest, "steps": knobs.steps_of(steps_of)}
    return of("gaussian", value, KEPT, "final", **cell)


def late(knobs: Janus, batch_size: int, *conditions: pl.Expr, **more: Any) -> Reading:
    """The fluctuation late in training."""
    more |= {"batch_size": batch_size, "steps": knobs.late_steps}
    return of("gaussian", "fluctuation", KEPT, "final", *conditions, **more)
