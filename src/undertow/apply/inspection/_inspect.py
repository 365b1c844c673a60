"""Read a checkpoint: ranks, norms, spectra and compressibility of every weight matrix.

Truncating W to its first r singular values leaves a relative error sqrt(sum_{i > r} s_i^2) /
||W||_F and takes r (rows + cols) numbers, which is what "parameters at 5%" counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

import polars as pl
from torch import nn

from undertow import predict
from undertow.apply._arguments import whole_number
from undertow.apply._progress import work_bar
from undertow.apply._start import initial_values
from undertow.apply.inspection._adapters import LowRankChange
from undertow.apply.inspection._checkpoint import taps_of
from undertow.apply.inspection._inspection import Inspection, Residue, percent
from undertow.apply.inspection._matching import partners
from undertow.apply.inspection._sources import Include, Opened, Weight, collapsed, opened
from undertow.apply.inspection._spectra import Found, cost, in_threads, spectrum_of
from undertow.measure import WeightMatrix
from undertow.predict import Initializer

# Squares of smaller ones are lost in the rounding of sums of squares.
_LEAST_ERROR = 1e-5


def inspect(
    path_or_model: str | PathLike[str] | nn.Module | Mapping[str, Any],
    *,
    against: str | PathLike[str] | nn.Module | Mapping[str, Any] | None = None,
    threshold: float = 1e-3,
    errors: Sequence[float] = (0.01, 0.05, 0.1),
    include: Include = None,
    lr: float | Sequence[float] | None = None,
    weight_decay: float | None = None,
    steps: int | None = None,
    momentum: float = 0.0,
    init: Initializer = "pytorch",
    workers: int | None = None,
    progress: bool = False,
) -> Inspection:
    """Ranks, norms, spectra and compressibility of every weight matrix of a checkpoint or model.

    A file is mapped, not loaded; matrices are taken one at a time a worker, the largest first, in
    float64. What counts as a matrix is as in `measure.ranks`: a convolution is its kernel laid out
    as c_out x (c_in / groups x taps). A matrix with infinities or NaN is left out with a note.

    With `lr`, `weight_decay` and `steps` the result says what weight decay left of the initial
    weights (`predict.decay_factor`) and how many of the initial singular values should still lie
    above the threshold.

    Args:
        path_or_model: a path as `apply.read_checkpoint` takes it, a module, or a mapping from
            names to tensors.
        against: another of these, with the same names: every row is then about the difference,
            so that its rank is that of what fine-tuning changed.
        threshold: of the threshold rank, relative to the Frobenius norm.
        errors: relative errors from 1e-5 to below 1 (sums of squares tell no smaller ones apart).
        include: the names to read, or a function from a name to bool.
        lr: peak learning rate, or one value per step.
        weight_decay: PyTorch's.
        steps: optimizer steps taken.
        momentum: of SGD with coupled decay.
        init: how the weights were initialised, see `predict.initial_std`.
        workers: threads, 1 or more; by default one a core.
        progress: show a bar with the time left on standard error.

    Raises:
        FileNotFoundError: no such file, or a shard is missing.
        ValueError: a file that cannot be read, nothing to measure, or an argument out of range.
        TypeError: the first argument is none of these, or workers is no whole number.
    """
    errors = _checked_errors(errors)
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"threshold must be a finite number >= 0, got {threshold}")
    if workers is not None:
        whole_number("workers", workers, least=1)
    residue = _residue(lr, weight_decay, steps, momentum, init)
    if residue is not None and against is not None:
        raise ValueError("give hyperparameters or against: a difference holds no initial weights")
    source = opened(path_or_model)
    others: dict[str, Weight] = {}
    base: Opened | None = None
    if against is None:
        weights, notes = source.weights(include, once=True)
    else:
        base = opened(against)
        weights, others, notes = _paired(source, base, include)

    rows, spectra = {}, {}
    costs = [cost(item) for item in weights]
    with work_bar(source.called, total=sum(costs), shown=progress) as advance:
        one = partial(spectrum_of, others=others, threshold=threshold, errors=errors)
        for item, found in in_threads(one, weights, costs, workers, advance):
            if found is None:
                notes.append(f"{item.name} holds infinities or NaN and was skipped")
                continue
            rows[item.name] = _row(item, found, errors, residue)
            if others:
                rows[item.name] |= _changed(found)
            spectra[item.name] = found.spectrum.cpu()
    if not rows:
        said = "; ".join(collapsed(notes))
        raise ValueError(f"{source.called} has no matrix left to report: {said}")
    order = [item.name for item in weights if item.name in rows]
    return Inspection(
        source=source.called,
        against=None if base is None else base.called,
        table=pl.DataFrame([rows[name] for name in order], infer_schema_length=None),
        spectra={name: spectra[name] for name in order},
        threshold=threshold,
        errors=tuple(errors),
        residue=residue,
        notes=tuple(collapsed(notes)),
    )


def _paired(
    source: Opened, base: Opened, include: Include
) -> tuple[list[Weight], dict[str, Weight], list[str]]:
    """The weights that have a partner, their partners by the weights' names, and notes."""
    if base.adapter is not None and source.adapter is None:
        raise ValueError(
            "against is an adapter and the first is none; give the adapter first, and its base "
            "with against"
        )
    if source.adapter is not None:
        dora = base.adapter is not None and any(
            change.magnitude is not None
            for change in (*source.adapter.changes, *base.adapter.changes)
        )
        why = "DoRA changes weights by what they are" if dora else source.adapter.only_alone
        if why:
            raise ValueError(f"{source.called} cannot be held against {base.called}: {why}")
    weights, notes = source.weights(include, once=False, like=base.content)
    theirs, _ = base.weights(None, once=False, like=source.content)
    if not weights:
        raise ValueError(f"{source.called} has none of the weights that include names")
    found = partners(weights, theirs)
    by_name = {item.name: item for item in theirs}
    notes = [note for note in notes if "is the same tensor as" not in note]
    notes += found.notes
    matched: list[Weight] = []
    others: dict[str, Weight] = {}
    pairs: dict[tuple[int, ...], str] = {}
    for item in weights:
        partner = found.of.get(item.name)
        if partner is None:
            continue
        place = (*_place(item), *_place(by_name[partner]))
        if place in pairs:
            notes.append(f"{item.name} is tied to {pairs[place]} in both; reported once")
            continue
        pairs[place] = item.name
        matched.append(item)
        others[item.name] = by_name[partner]
    kept = {_place(item) for item in matched}
    lost = [item.name for item in weights if _place(item) not in kept]
    if lost:
        notes.append(f"without a partner of the same shape in against: {_some(lost)}")
    used = {_place(item) for item in others.values()}
    partnered = set(found.of.values())
    extra = [n for n, i in by_name.items() if n not in partnered and _place(i) not in used]
    if extra and source.adapter is None:
        notes.append(f"only in against: {_some(extra)}")
    return matched, others, notes


def _some(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _place(item: Weight) -> tuple[int, ...]:
    """Where a weight lies in memory, by which tied ones are the same."""
    stored = item.left if isinstance(item, LowRankChange) else item.stored
    return (stored.data_ptr(), *item.shape, *stored.stride())


def _changed(found: Found) -> dict[str, Any]:
    norm = float(found.ranks.frobenius_norm)
    change = norm / found.reference if found.reference else math.inf
    return {"change": change if norm else 0.0, "rounding_edge": found.edge, "moved": found.moved}


def _checked_errors(errors: Sequence[float]) -> tuple[float, ...]:
    if isinstance(errors, int | float):
        raise TypeError(f"errors must be a sequence; did you mean ({errors},)")
    if not errors or not all(0 < error < 1 for error in errors):
        raise ValueError(f"errors must lie strictly between 0 and 1, such as 0.05, got {errors}")
    if min(errors) < _LEAST_ERROR:
        raise ValueError(f"errors must be at least {_LEAST_ERROR:g}, got {min(errors):g}")
    if len({percent(error) for error in errors}) < len(errors):
        raise ValueError(f"errors must differ from each other, got {errors}")
    return tuple(errors)


def _residue(
    lr: float | Sequence[float] | None,
    weight_decay: float | None,
    steps: int | None,
    momentum: float,
    init: Initializer,
) -> Residue | None:
    if lr is None and weight_decay is None and steps is None:
        return None
    if lr is None or weight_decay is None:
        raise ValueError("the initial residue needs lr, weight_decay and steps together")
    exponent = predict.decay_exponent(lr, weight_decay, steps, momentum=momentum)
    predict.initial_std(init, fan_in=1, fan_out=1)  # an unknown one is an error before the work
    return Residue(exponent, math.exp(-exponent), init)


def _row(
    item: Weight, found: Found, errors: Sequence[float], residue: Residue | None
) -> dict[str, Any]:
    (rows, cols), ranks = item.shape, found.ranks
    row: dict[str, Any] = {
        "name": item.name,
        "rows": rows,
        "cols": cols,
        "parameters": rows * cols,
        "threshold_rank": int(ranks.threshold_rank),
        "stable_rank": float(ranks.stable_rank),
        "effective_rank": float(ranks.effective_rank),
        "spectral_norm": float(ranks.spectral_norm),
        "frobenius_norm": float(ranks.frobenius_norm),
    }
    for error, rank in zip(errors, ranks.energy_ranks.values(), strict=True):
        row[f"rank_at_{percent(error)}"] = int(rank)
        row[f"parameters_at_{percent(error)}"] = min(rows * cols, int(rank) * (rows + cols))
    if residue is not None:
        taps = taps_of(item) if isinstance(item, WeightMatrix) else 1
        row["survivors"] = predict.surviving_rank(
            initial_values(residue.init, rows, cols, taps),
            residue.decay_exponent,
            final_norm=row["frobenius_norm"],
            threshold=ranks.threshold,
        )
    return row
