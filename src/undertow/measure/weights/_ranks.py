"""Ranks of every weight matrix of a network, at a threshold, by energy, and as smooth measures.

The threshold rank is that of arXiv 2206.05794, #{i : s_i > threshold ||W||_F}; beside it stand the
stable rank, the effective rank of Roy and Vetterli (2007), and the rank that holds an energy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from undertow.measure.weights._convolution import operator_spectrum
from undertow.measure.weights._spectrum import SpectrumRanks, matrix_ranks, ranks_with_fallback
from undertow.measure.weights._weights import Include, WeightMatrix, weight_matrices

# Matrices of one shape are stacked, at most about this many bytes in float64 at a time.
_STACK_BYTES = 2**28
_ROWS_SHOWN = 12


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of a network's weight matrices.

    Attributes:
        table: a row per matrix: name, rows, cols, threshold_rank, stable_rank, effective_rank,
            spectral_norm, frobenius_norm, energy_rank_90 and energy_rank_99 (or as the energies
            were given), and method (gram or svd). With `operator_size` also
            operator_threshold_rank, operator_stable_rank, operator_effective_rank and
            operator_spectral_norm, null where a matrix is no convolution of that many axes.
        spectra: singular values of each matrix in descending order, float64.
        threshold: relative to the Frobenius norm.
        notes: what was left out, and why.
        operator_spectra: singular values of the convolutions as operators, where asked for.
    """

    table: pl.DataFrame
    spectra: Mapping[str, Float64[Tensor, " values"]]
    threshold: float
    notes: tuple[str, ...] = ()
    operator_spectra: Mapping[str, Float64[Tensor, " values"]] = field(default_factory=dict)

    def __repr__(self) -> str:
        total = sum(len(spectrum) for spectrum in self.spectra.values())
        kept = self.table["threshold_rank"].sum()
        plural = "matrix" if len(self.table) == 1 else "matrices"
        lines = [
            f"{kept:,} of {total:,} singular values in {len(self.table)} weight {plural} exceed "
            f"{self.threshold:g} of their Frobenius norm."
        ]
        from undertow.lab import printable  # names come from files

        shown = self.table.head(_ROWS_SHOWN)
        shown = shown.with_columns(name=pl.Series([printable(name) for name in shown["name"]]))
        width = max(4, *(len(name) for name in shown["name"]))
        lines.append(f"  {'name':<{width}}  {'shape':>13}  threshold   stable  effective")
        for row in shown.iter_rows(named=True):
            shape = f"{row['rows']} x {row['cols']}"
            lines.append(
                f"  {row['name']:<{width}}  {shape:>13}  {row['threshold_rank']:>9}  "
                f"{row['stable_rank']:>7.2f}  {row['effective_rank']:>9.2f}"
            )
        if len(self.table) > len(shown):
            lines.append(f"  and {len(self.table) - len(shown)} more in .table")
        lines.extend(f"  note: {printable(note)}" for note in self.notes)
        return "\n".join(lines)


def ranks(
    model_or_state_dict: nn.Module | Mapping[str, Any],
    threshold: float = 1e-3,
    *,
    energies: Sequence[float] = (0.9, 0.99),
    operator_size: Sequence[int] | None = None,
    include: Include = None,
    exact: bool = False,
) -> Ranks:
    """Ranks and norms of every weight matrix of a network.

    With singular values s_1 >= s_2 >= ... of W and ||W||_F^2 = sum s_i^2:

    - threshold rank #{i : s_i > threshold ||W||_F} (arXiv 2206.05794);
    - stable rank ||W||_F^2 / s_1^2;
    - effective rank exp(-sum p_i log p_i), p_i = s_i / sum s (Roy and Vetterli, 2007);
    - energy rank, the least r with s_1^2 + ... + s_r^2 >= q ||W||_F^2.

    A zero matrix has every rank 0. A linear layer is its weight; a convolution is its kernel laid
    out as c_out x (c_in / groups * taps), a transposed one likewise; a packed attention
    projection is three matrices; an embedding is its table; any other parameter of three axes is a
    stack of matrices. In a bare state dict kernels and stacks are told apart by the bias beside
    them, their names and sizes, and a note says what was assumed; eight-bit floats are multiplied
    by the scale beside them. Parametrised weights are taken as
    the forward pass in eval mode sees them. Tensors that share memory are reported once; integer,
    quantised, complex and sparse ones are skipped with a note; biases, running statistics, caches
    and tables of quantisation are no weights. Nothing of the model is changed.

    Args:
        model_or_state_dict: a module, or a mapping from names to tensors or numpy arrays.
        threshold: relative to each matrix's Frobenius norm.
        energies: levels q strictly between 0 and 1.
        operator_size: the spatial size of an input, such as (32, 32): adds the ranks of each
            convolution as a circular stride-1 operator on inputs of that size.
        include: the names to report (as in the table), or a function from a name to bool.
        exact: run a float64 SVD on every matrix; otherwise only where `matrix_ranks` needs one.

    Raises:
        TypeError: if the first argument is neither a module nor a mapping.
        ValueError: if there is nothing to measure, a weight has no values (lazy or on the meta
            device) or holds infinities or NaN, or an argument is out of its range.
    """
    weights, notes = weight_matrices(model_or_state_dict, include)
    rows: dict[str, dict[str, Any]] = {}
    spectra: dict[str, Tensor] = {}
    for members in _groups(weights):
        matrices = [item.matrix for item in members]
        stacked = torch.stack(matrices) if len(matrices) > 1 else matrices[0][None]
        found = matrix_ranks(stacked, threshold, energies=energies, exact=exact)
        for index, item in enumerate(members):
            spectra[item.name] = found.spectra[index].cpu()
            rows[item.name] = _row(item, found, index)
    operators: dict[str, Tensor] = {}
    if operator_size is not None:
        for item in weights:
            rows[item.name] |= _operator_row(None)
        size = tuple(operator_size)
        convolutions = [
            item
            for item in weights
            if item.kernel is not None and item.kernel.ndim == len(size) + 2
        ]
        for item in convolutions:
            found = _operator_ranks(item, size, threshold, energies=energies, exact=exact)
            operators[item.name] = found.spectra[0].cpu()
            rows[item.name] |= _operator_row(found)
    table = pl.DataFrame([rows[item.name] for item in weights], infer_schema_length=None)
    ordered = {item.name: spectra[item.name] for item in weights}
    return Ranks(table, ordered, threshold, notes, operators)


def _groups(weights: Sequence[WeightMatrix]) -> Iterator[list[WeightMatrix]]:
    """Weights of one shape, so many at a time as fit the memory that a stack may take."""
    groups: defaultdict[Hashable, list[WeightMatrix]] = defaultdict(list)
    for item in weights:
        groups[item.shape, item.stored.device, item.stored.dtype].append(item)
    for members in groups.values():
        step = max(1, _STACK_BYTES // (8 * members[0].stored.numel()))
        for start in range(0, len(members), step):
            yield members[start : start + step]


def _row(item: WeightMatrix, found: SpectrumRanks, index: int) -> dict[str, Any]:
    rows, cols = item.shape
    assert found.from_svd is not None
    return {
        "name": item.name,
        "rows": rows,
        "cols": cols,
        "threshold_rank": int(found.threshold_rank[index]),
        "stable_rank": float(found.stable_rank[index]),
        "effective_rank": float(found.effective_rank[index]),
        "spectral_norm": float(found.spectral_norm[index]),
        "frobenius_norm": float(found.frobenius_norm[index]),
        **{
            f"energy_rank_{100 * energy:g}": int(rank[index])
            for energy, rank in found.energy_ranks.items()
        },
        "method": "svd" if found.from_svd[index] else "gram",
    }


def _operator_ranks(
    item: WeightMatrix,
    size: tuple[int, ...],
    threshold: float,
    *,
    energies: Sequence[float],
    exact: bool,
) -> SpectrumRanks:
    kernel = item.kernel
    assert kernel is not None

    def compute(chosen: Tensor | None, svd: bool) -> Tensor:
        del chosen  # one kernel: all of it
        return operator_spectrum(
            kernel[None], size, groups=item.groups, dilation=item.dilation, exact=svd
        )

    length = max(kernel.shape[0] // item.groups, kernel.shape[1])
    return ranks_with_fallback(compute, length, threshold, energies=energies, exact=exact)


def _operator_row(found: SpectrumRanks | None) -> dict[str, Any]:
    return {
        "operator_threshold_rank": None if found is None else int(found.threshold_rank),
        "operator_stable_rank": None if found is None else float(found.stable_rank),
        "operator_effective_rank": None if found is None else float(found.effective_rank),
        "operator_spectral_norm": None if found is None else float(found.spectral_norm),
    }
