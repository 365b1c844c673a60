"""What is left of the initial weights, and what was learned: W_T = f W_0 + G_T.

Exact for SGD with coupled weight decay and for any optimizer with decoupled decay, with
f = prod_t (1 - lr_t weight_decay), about e^-E.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from jaxtyping import Float64
from torch import Tensor, nn

from undertow.measure.weights._spectrum import SpectrumRanks, matrix_ranks
from undertow.measure.weights._weights import Include, WeightMatrix, weight_matrices
from undertow.predict import forecast_rank

_ROWS_SHOWN = 12


@dataclass(frozen=True, eq=False)
class InitSplit:
    """Every weight matrix W_T as its initial residue f W_0 and its learned part G_T.

    Attributes:
        table: a row per matrix: name, rows, cols, decay_factor (f); rank, surviving_rank and
            learned_rank, how many singular values of W_T, f W_0 and G_T exceed
            threshold ||W_T||_F, and forecast_rank, the larger of the last two; norm, initial_norm,
            residue_norm and learned_norm (Frobenius); residue_stable_rank, learned_stable_rank,
            residue_effective_rank, learned_effective_rank; cosine between f W_0 and G_T (0 where
            one of them is zero).
        residue: f W_0 by name, float64.
        learned: G_T by name, float64.
        spectra: singular values of W_T in descending order.
        residue_spectra: of f W_0.
        learned_spectra: of G_T.
        threshold: relative to ||W_T||_F, for all three ranks.
        notes: what was left out, and why.
    """

    table: pl.DataFrame
    residue: Mapping[str, Float64[Tensor, "rows cols"]]
    learned: Mapping[str, Float64[Tensor, "rows cols"]]
    spectra: Mapping[str, Float64[Tensor, " values"]]
    residue_spectra: Mapping[str, Float64[Tensor, " values"]]
    learned_spectra: Mapping[str, Float64[Tensor, " values"]]
    threshold: float
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        sums = {name: self.table[name].sum() for name in ("rank", "surviving_rank", "learned_rank")}
        lines = [
            f"Of {sums['rank']:,} singular values above {self.threshold:g} of the Frobenius norm "
            f"in {len(self.table)} matrices, the initial residue alone accounts for "
            f"{sums['surviving_rank']:,} and the learned part alone for {sums['learned_rank']:,}."
        ]
        shown = self.table.head(_ROWS_SHOWN)
        width = max(4, *(len(name) for name in shown["name"]))
        lines.append(f"  {'name':<{width}}   rank  surviving  learned  |f W_0|      |G|")
        for row in shown.iter_rows(named=True):
            lines.append(
                f"  {row['name']:<{width}}  {row['rank']:>5}  {row['surviving_rank']:>9}  "
                f"{row['learned_rank']:>7}  {row['residue_norm']:>7.3g}  "
                f"{row['learned_norm']:>7.3g}"
            )
        if len(self.table) > len(shown):
            lines.append(f"  and {len(self.table) - len(shown)} more in .table")
        lines.extend(f"  note: {note}" for note in self.notes)
        return "\n".join(lines)


def split_init(
    model: nn.Module | Mapping[str, Any],
    initial: nn.Module | Mapping[str, Any],
    decay_exponent: float | Mapping[str, float] | None = None,
    *,
    decay_factor: float | Mapping[str, float] | None = None,
    threshold: float = 1e-3,
    include: Include = None,
) -> InitSplit:
    """Splits every weight matrix of a trained network into initial residue and learned part.

    Args:
        model: the trained network, or its state dict.
        initial: the same network at its start, or a copy of that state dict.
        decay_exponent: E = sum lr x weight_decay (`predict.decay_exponent`), so that f = e^-E; a
            number, or one by matrix name (as in the table of `ranks`) where groups of parameters
            decay differently. Infinite when nothing is left.
        decay_factor: f itself in place of the exponent (`predict.decay_factor` is exact).
        threshold: of the ranks, relative to ||W_T||_F.
        include: as in `ranks`.

    Raises:
        TypeError: if `model` or `initial` is neither a module nor a mapping.
        ValueError: if both or neither of exponent and factor are given, an exponent is negative, a
            factor is not in [0, 1], a mapping lacks a matrix, or `initial` lacks one, has it in
            another shape, or is no copy but a view of the trained weights.
    """
    if (decay_exponent is None) == (decay_factor is None):
        raise ValueError("give either decay_exponent or decay_factor")
    trained, notes = weight_matrices(model, include)
    starts = {item.name: item.matrix for item in weight_matrices(initial, once=False)[0]}
    _check_copied(model, initial, trained, starts)
    rows: list[dict[str, Any]] = []
    residues: dict[str, Tensor] = {}
    learned: dict[str, Tensor] = {}
    final_spectra: dict[str, Tensor] = {}
    residue_spectra: dict[str, Tensor] = {}
    learned_spectra: dict[str, Tensor] = {}
    for item in trained:
        start = starts.get(item.name)
        if start is None or start.shape != item.matrix.shape:
            given = "none" if start is None else f"shape {tuple(start.shape)}"
            raise ValueError(
                f"initial must hold {item.name} of shape {tuple(item.matrix.shape)}; it has {given}"
            )
        factor = _factor(item.name, decay_exponent, decay_factor)
        final = item.matrix.double()
        residue = factor * start.to(final)
        residues[item.name] = residue
        learned[item.name] = final - residue
        of_final, of_residue, of_learned = (
            matrix_ranks(part, threshold) for part in (final, residue, learned[item.name])
        )
        final_spectra[item.name] = of_final.spectra
        residue_spectra[item.name] = of_residue.spectra
        learned_spectra[item.name] = of_learned.spectra
        rows.append(
            {"name": item.name, "rows": final.shape[0], "cols": final.shape[1]}
            | {"decay_factor": factor, "initial_norm": float(start.double().norm())}
            | _row(threshold, of_final, of_residue, of_learned)
            | {"cosine": _cosine(residue, learned[item.name])}
        )
    return InitSplit(
        table=pl.DataFrame(rows),
        residue=residues,
        learned=learned,
        spectra=final_spectra,
        residue_spectra=residue_spectra,
        learned_spectra=learned_spectra,
        threshold=threshold,
        notes=notes,
    )


def _check_copied(
    model: Any, initial: Any, trained: Sequence[WeightMatrix], starts: Mapping[str, Tensor]
) -> None:
    """A state dict that was taken before training, but not copied, was trained as well."""
    if initial is not model and all(
        item.name in starts and starts[item.name].data_ptr() == item.matrix.data_ptr()
        for item in trained
    ):
        raise ValueError(
            "initial shares its memory with model, so it holds the trained weights; take "
            "copy.deepcopy(model.state_dict()) before training"
        )


def _factor(
    name: str,
    exponent: float | Mapping[str, float] | None,
    factor: float | Mapping[str, float] | None,
) -> float:
    given = exponent if factor is None else factor
    argument = "decay_exponent" if factor is None else "decay_factor"
    if isinstance(given, Mapping):
        if name not in given:
            raise ValueError(f"{argument} has no entry for {name}; give 0 decay explicitly")
        given = given[name]
    assert given is not None
    if factor is None:
        if not given >= 0:
            raise ValueError(f"decay_exponent must be >= 0, got {given} for {name}")
        return math.exp(-given)
    if not 0 <= given <= 1:
        raise ValueError(f"decay_factor must lie in [0, 1], got {given} for {name}")
    return float(given)


def _row(
    threshold: float, final: SpectrumRanks, residue: SpectrumRanks, learned: SpectrumRanks
) -> dict[str, Any]:
    limit = threshold * final.frobenius_norm
    surviving = int((residue.spectra > limit).sum())
    learned_rank = int((learned.spectra > limit).sum())
    return {
        "rank": int(final.threshold_rank),
        "surviving_rank": surviving,
        "learned_rank": learned_rank,
        "forecast_rank": int(forecast_rank(surviving, learned_rank)),
        "norm": float(final.frobenius_norm),
        "residue_norm": float(residue.frobenius_norm),
        "learned_norm": float(learned.frobenius_norm),
        "residue_stable_rank": float(residue.stable_rank),
        "learned_stable_rank": float(learned.stable_rank),
        "residue_effective_rank": float(residue.effective_rank),
        "learned_effective_rank": float(learned.effective_rank),
    }


def _cosine(residue: Tensor, learned: Tensor) -> float:
    norms = float(residue.norm() * learned.norm())
    return float((residue * learned).sum()) / norms if norms > 0 else 0.0
