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
from contextlib import contextmanager
from os import PathLike
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from undertow import predict
from undertow.apply._checkpoint import read_checkpoint
from undertow.apply._inspection import Inspection, Residue, percent
from undertow.apply._progress import Advance, work_bar
from undertow.measure import SpectrumRanks, WeightMatrix, matrix_ranks, weight_matrices
from undertow.predict import Initializer


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
        errors: relative errors strictly between 0 and 1.
        include: the names to read, or a function from a name to bool.
        lr: peak learning rate, or one value per step.
        weight_decay: PyTorch's.
        steps: optimizer steps taken.
        momentum: of SGD with coupled decay.
        init: how the weights were initialised, see `predict.initial_std`.
        workers: threads; by default one a core.
        progress: show a bar with the time left on standard error.

    Raises:
        FileNotFoundError: no such file, or a shard is missing.
        ValueError: a file that cannot be read, nothing to measure, or an argument out of range.
        TypeError: the first argument is none of these.
    """
    _check_errors(errors)
    weights, notes = _read(path_or_model, include)
    found_notes = list(notes)
    residue = _residue(lr, weight_decay, steps, momentum, init)
    if residue is not None and against is not None:
        raise ValueError("give hyperparameters or against: a difference holds no initial weights")
    others: dict[str, WeightMatrix] = {}
    if against is not None:
        others = {item.name: item for item in _read(against, None)[0]}
        weights, unmatched = _matched(weights, others)
        found_notes += unmatched

    energies = [1 - error**2 for error in errors]

    def one(item: WeightMatrix) -> tuple[SpectrumRanks, float] | None:
        matrix, reference = item.matrix, 0.0
        if others:
            other = others[item.name].matrix.double()
            reference = float(torch.linalg.vector_norm(other))
            matrix = other.neg_().add_(matrix)
        try:
            return matrix_ranks(matrix, threshold, energies=energies), reference
        except ValueError:
            return None  # infinities or NaN

    rows: dict[str, dict[str, Any]] = {}
    spectra: dict[str, Tensor] = {}
    costs = [_cost(item) for item in weights]
    with work_bar(_named(path_or_model), total=sum(costs), shown=progress) as advance:
        for item, result in _in_threads(one, weights, costs, workers, advance):
            if result is None:
                found_notes.append(f"{item.name} holds infinities or NaN and was skipped")
                continue
            ranks, reference = result
            rows[item.name] = _row(item, ranks, errors, residue)
            if others:
                norm = rows[item.name]["frobenius_norm"]
                rows[item.name]["change"] = norm / reference if reference else math.inf * norm
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


def _named(source: Any) -> str:
    if isinstance(source, str | PathLike):
        return os.fspath(source)
    return type(source).__name__


def _check_errors(errors: Sequence[float]) -> None:
    if not errors or not all(0 < error < 1 for error in errors):
        raise ValueError(f"errors must lie strictly between 0 and 1, such as 0.05; got {errors}")


def _read(source: Any, include: Any) -> tuple[list[WeightMatrix], tuple[str, ...]]:
    if isinstance(source, str | PathLike):
        tensors = read_checkpoint(source)
        weights, notes = weight_matrices(tensors, include, check_finite=False)
        return weights, (*notes, *_parametrised(tensors))
    return weight_matrices(source, include, check_finite=False)


def _parametrised(names: Iterable[str]) -> list[str]:
    """Stored parts of weights that only the module can put together."""
    known = [name for name in names if re.search(r"parametrizations\.|\.weight_[gv]$", name)]
    if not known:
        return []
    return [
        f"{known[0]} and {len(known) - 1} more are parts of parametrised weights, and were taken "
        "as they are stored; give the module itself to see the weights that it computes"
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
        kept = {item.name for item in matched}
        lost = [item.name for item in weights if item.name not in kept]
        notes.append(
            f"{len(lost)} matrices have no partner of their shape in against, the first {lost[0]}"
        )
    extra = [name for name in others if name not in {item.name for item in weights}]
    if extra:
        notes.append(f"{len(extra)} matrices are only in against, the first {extra[0]}")
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
        std = predict.initial_std(residue.init, fan_in=cols, fan_out=rows)
        row["survivors"] = predict.surviving_rank(
            predict.initial_spectrum(rows, cols, std),
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
    order = sorted(range(len(weights)), key=lambda index: -costs[index])
    count = workers or _cores()
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


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
