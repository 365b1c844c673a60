"""The spectrum of every weight, or of its difference from another: in threads, one a matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.apply._progress import Advance
from undertow.apply.inspection._adapters import LowRankChange
from undertow.apply.inspection._rounding import echo_edge, rounding_edge
from undertow.apply.inspection._sources import Weight
from undertow.measure import (
    SpectrumRanks,
    WeightMatrix,
    matrix_ranks,
    matrix_spectrum,
    spectrum_ranks,
)

# Singular values down to this share of the largest are good from a Gram matrix.
_GRAM_IS_GOOD = 1e-5


@dataclass(frozen=True, eq=False)
class Found:
    """What one weight gives.

    Attributes:
        ranks: of the singular values above `edge`.
        spectrum: all singular values.
        reference: the Frobenius norm of the other weight.
        edge: the largest singular value that rounding alone would give the difference.
        moved: whether any entry differs.
    """

    ranks: SpectrumRanks
    spectrum: Float64[Tensor, " values"]
    reference: float = 0.0
    edge: float = 0.0
    moved: bool = True


def spectrum_of(
    item: Weight,
    *,
    others: Mapping[str, Weight],
    threshold: float,
    errors: Sequence[float],
) -> Found | None:
    """The ranks of a weight, or of its difference from the other; None where not finite."""
    energies = [1 - error**2 for error in errors]
    try:
        other = others.get(item.name)
        if isinstance(item, LowRankChange):
            return _of_change(item, other, threshold, energies)
        if other is None:
            ranks = matrix_ranks(item.matrix, threshold, energies=energies)
            return Found(ranks, ranks.spectra)
        assert isinstance(other, WeightMatrix)
        return _of_difference(item, other, threshold, energies)
    except ValueError:
        return None  # infinities or NaN: the other arguments have been checked


def _of_change(
    item: LowRankChange, other: Weight | None, threshold: float, energies: Sequence[float]
) -> Found:
    reference = 0.0
    if isinstance(other, LowRankChange):
        reference = float(torch.linalg.vector_norm(other.spectrum()))
        item = item.minus(other)
    elif other is not None:
        base = other.matrix.double().cpu()
        reference = float(torch.linalg.vector_norm(base))
        if item.magnitude is not None:
            ranks = matrix_ranks(item.dense(base), threshold, energies=energies)
            return Found(ranks, ranks.spectra, reference)
    spectrum = item.spectrum()
    ranks = spectrum_ranks(spectrum, threshold, energies=energies)
    return Found(ranks, spectrum, reference, moved=bool(spectrum[0] > 0))


def _of_difference(
    item: WeightMatrix, other: WeightMatrix, threshold: float, energies: Sequence[float]
) -> Found:
    matrix = item.matrix
    # A copy, whatever its dtype: it turns into the difference, and is not ours to change.
    difference = other.matrix.to(matrix.device, torch.float64, copy=True)
    reference = float(torch.linalg.vector_norm(difference))
    difference = difference.neg_().add_(matrix)
    if not difference.any():  # identical: nothing to decompose
        spectrum = difference.new_zeros(min(difference.shape))
        ranks = spectrum_ranks(spectrum, threshold, energies=energies)
        return Found(ranks, spectrum, reference, moved=False)
    spectrum = matrix_spectrum(difference)
    edge = rounding_edge(item, other, difference)
    edge = echo_edge(item, other, difference, spectrum, edge)
    if float(spectrum[-1]) <= edge and edge >= _GRAM_IS_GOOD * float(spectrum[0]):
        # What is not counted need not be exact.
        ranks = spectrum_ranks(_above(spectrum, edge), threshold, energies=energies)
    else:
        ranks = matrix_ranks(difference, threshold, energies=energies)
        spectrum = ranks.spectra
        if float(spectrum[-1]) <= edge:
            ranks = spectrum_ranks(_above(spectrum, edge), threshold, energies=energies)
    return Found(ranks, spectrum, reference, edge, moved=bool(spectrum[0] > 0))


def _above(spectrum: Tensor, edge: float) -> Tensor:
    return torch.where(spectrum > edge, spectrum, torch.zeros_like(spectrum))


def cost(item: Weight) -> float:
    """Time to expect, in arbitrary units: the Gram matrix, and its eigenvalues."""
    short, long = sorted(item.shape)
    if isinstance(item, LowRankChange):
        return float(item.right.shape[0] ** 2 * (short + long))
    return short**2 * long + 9.0 * short**3


def in_threads(
    one: Callable[[Weight], Found | None],
    weights: Sequence[Weight],
    costs: Sequence[float],
    workers: int | None,
    advance: Advance,
) -> Iterator[tuple[Weight, Found | None]]:
    """Each matrix with its result, as they finish; the most expensive ones start first."""
    from loky import cpu_count  # of what this process may use

    order = sorted(range(len(weights)), key=lambda index: -costs[index])
    count = workers or cpu_count()
    # One thread a matrix: eigenvalues do not get faster with two.
    with (
        _torch_threads(1),
        ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        pending: dict[Future[Found | None], int] = {
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
