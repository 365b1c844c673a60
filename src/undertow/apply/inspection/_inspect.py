"""Read a checkpoint: ranks, norms, spectra and compressibility of every weight matrix.

Truncating W to its first r singular values leaves a relative error sqrt(sum_{i > r} s_i^2) /
||W||_F and takes r (rows + cols) numbers, which is what "parameters at 5%" counts.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from os import PathLike
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from undertow import predict
from undertow.apply._arguments import whole_number
from undertow.apply._progress import Advance, work_bar
from undertow.apply._start import initial_values
from undertow.apply.inspection._checkpoint import read_checkpoint, taps_of
from undertow.apply.inspection._inspection import Inspection, Residue, percent
from undertow.measure import SpectrumRanks, WeightMatrix, matrix_ranks, weight_matrices
from undertow.predict import Initializer

# Squares of smaller ones are lost in the rounding of sums of squares.
_LEAST_ERROR = 1e-5


def inspect(
    path_or_model: str | PathLike[str] | nn.Module | Mapping[str, Any],
    *,
    against: str | PathLike[str] | nn.Module | Mapping[str, Any] | None = None,
    threshold: float = 1e-3,
    errors: Sequence[float] = (0.01, 0.05, 0.1),
    include: Callable[[str], bool] | Iterable[str] | None = None,
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
    opened = _opened(path_or_model)
    weights, notes = weight_matrices(opened, include, check_finite=False)
    found_notes = list(notes)
    if opened is not path_or_model:
        found_notes += _parametrised(opened)
    residue = _residue(lr, weight_decay, steps, momentum, init)
    if residue is not None and against is not None:
        raise ValueError("give hyperparameters or against: a difference holds no initial weights")
    others: dict[str, WeightMatrix] = {}
    if against is not None:
        reference_of = _opened(against)
        others = {item.name: item for item in _with_ties(reference_of, None)}
        weights, unmatched = _matched(_with_ties(opened, include), others)
        found_notes = [note for note in found_notes if "is the same tensor as" not in note]
        found_notes += unmatched

    rows, spectra = {}, {}
    costs = [_cost(item) for item in weights]
    with work_bar(_named(path_or_model), total=sum(costs), shown=progress) as advance:
        one = partial(_spectrum, others=others, threshold=threshold, errors=errors)
        for item, result in _in_threads(one, weights, costs, workers, advance):
            if result is None:
                found_notes.append(f"{item.name} holds infinities or NaN and was skipped")
                continue
            ranks, reference = result
            rows[item.name] = _row(item, ranks, errors, residue)
            if others:
                norm = rows[item.name]["frobenius_norm"]
                rows[item.name]["change"] = norm / reference if reference else math.inf
                if norm == 0:
                    rows[item.name]["change"] = 0.0
            spectra[item.name] = ranks.spectra.cpu()
    if not rows:
        raise ValueError(
            f"{_named(path_or_model)} has no matrix left to report: {'; '.join(found_notes)}"
        )
    order = [item.name for item in weights if item.name in rows]
    return Inspection(
        source=_named(path_or_model),
        against=None if against is None else _named(against),
        table=pl.DataFrame([rows[name] for name in order], infer_schema_length=None),
        spectra={name: spectra[name] for name in order},
        threshold=threshold,
        errors=tuple(errors),
        residue=residue,
        notes=tuple(found_notes),
    )


def _spectrum(
    item: WeightMatrix,
    *,
    others: Mapping[str, WeightMatrix],
    threshold: float,
    errors: Sequence[float],
) -> tuple[SpectrumRanks, float] | None:
    """The ranks of a matrix, or of its difference from the other one, and the other one's norm."""
    matrix, reference = item.matrix, 0.0
    if others:
        # A copy, whatever its dtype: it turns into the difference, and is not ours to change.
        other = others[item.name].matrix.to(matrix.device, torch.float64, copy=True)
        reference = float(torch.linalg.vector_norm(other))
        matrix = other.neg_().add_(matrix)
    try:
        energies = [1 - error**2 for error in errors]
        return matrix_ranks(matrix, threshold, energies=energies), reference
    except ValueError:
        return None  # infinities or NaN: the other arguments have been checked


def _named(source: Any) -> str:
    if isinstance(source, str | PathLike):
        return os.fspath(source)
    return type(source).__name__


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


def _opened(source: Any) -> Any:
    """The tensors of a path; a module or a mapping as it is."""
    return read_checkpoint(source) if isinstance(source, str | PathLike) else source


def _with_ties(source: Any, include: Any) -> list[WeightMatrix]:
    """Every matrix under every one of its names: what is tied here may not be tied elsewhere."""
    found, _ = weight_matrices(source, check_finite=False)
    known = {item.name for item in found}
    state = source
    if isinstance(source, nn.Module):
        # Of tensors with more axes, the module alone knows how they are laid out.
        state = {name: value for name, value in source.state_dict().items() if value.ndim == 2}
    for name, value in state.items():
        if name not in known and isinstance(value, Tensor) and value.ndim >= 2:
            with suppress(ValueError):  # no matrix
                alone, _ = weight_matrices({name: value}, check_finite=False)
                found += [item for item in alone if item.name not in known]
    if include is None:
        return found
    wanted = include if callable(include) else set(include).__contains__
    return [item for item in found if wanted(item.name)]


def _parametrised(names: Iterable[str]) -> list[str]:
    """Stored parts of weights that only the module can put together."""
    known = [name for name in names if re.search(r"parametrizations\.|\.weight_[gv]$", name)]
    if not known:
        return []
    return [
        f"{len(known)} parts of parametrised weights ({known[0]}, ...) were taken as they are "
        "stored; give the module itself to see the weights that it computes"
    ]


def _matched(
    weights: Sequence[WeightMatrix], others: Mapping[str, WeightMatrix]
) -> tuple[list[WeightMatrix], list[str]]:
    matched = [
        item
        for item in weights
        if item.name in others and others[item.name].matrix.shape == item.matrix.shape
    ]
    if not matched:
        raise ValueError(
            "against shares no matrix of the same name and shape: "
            f"{weights[0].name} here, {next(iter(others))} there"
        )
    notes = []
    if len(matched) < len(weights):
        kept = {item.matrix.data_ptr() for item in matched}
        lost = [item.name for item in weights if item.matrix.data_ptr() not in kept]
        if lost:
            notes.append(
                f"without a partner of the same shape in against: {lost[0]}"
                f"{f' and {len(lost) - 1} more' if len(lost) > 1 else ''}"
            )
    pairs: dict[tuple[int, int], str] = {}
    for item in list(matched):
        place = (item.matrix.data_ptr(), others[item.name].matrix.data_ptr())
        if place in pairs:
            matched.remove(item)
            notes.append(f"{item.name} is tied to {pairs[place]} in both; reported once")
        pairs.setdefault(place, item.name)
    names = {item.name for item in weights}
    used = {others[item.name].matrix.data_ptr() for item in matched}
    extra = [
        name
        for name, item in others.items()
        if name not in names and item.matrix.data_ptr() not in used
    ]
    if extra:
        notes.append(
            f"only in against: {extra[0]}{f' and {len(extra) - 1} more' if len(extra) > 1 else ''}"
        )
    return matched, notes


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
    item: WeightMatrix, ranks: SpectrumRanks, errors: Sequence[float], residue: Residue | None
) -> dict[str, Any]:
    rows, cols = item.matrix.shape
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
        row["survivors"] = predict.surviving_rank(
            initial_values(residue.init, rows, cols, taps_of(item)),
            residue.decay_exponent,
            final_norm=row["frobenius_norm"],
            threshold=ranks.threshold,
        )
    return row


def _cost(item: WeightMatrix) -> float:
    """Time to expect, in arbitrary units: the Gram matrix, and its eigenvalues."""
    short, long = sorted(item.matrix.shape)
    return short**2 * long + 9.0 * short**3


def _in_threads(
    one: Callable[[WeightMatrix], tuple[SpectrumRanks, float] | None],
    weights: Sequence[WeightMatrix],
    costs: Sequence[float],
    workers: int | None,
    advance: Advance,
) -> Iterator[tuple[WeightMatrix, tuple[SpectrumRanks, float] | None]]:
    """Each matrix with its result, as they finish; the most expensive ones start first."""
    from loky import cpu_count  # of what this process may use

    order = sorted(range(len(weights)), key=lambda index: -costs[index])
    count = workers or cpu_count()
    # One thread a matrix: eigenvalues do not get faster with two.
    with (
        _torch_threads(1),
        ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        pending: dict[Future[tuple[SpectrumRanks, float] | None], int] = {
            pool.submit(one, weights[index]): index for index in order
        }
        try:
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    index = pending.pop(future)
                    advance(costs[index])
                    yield weights[index], future.result()
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
