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
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor, nn

from undertow.measure.weights._spectrum import SpectrumRanks, matrix_ranks, matrix_spectrum
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


@dataclass(frozen=True, eq=False)
class SplitRanks:
    """How many singular values of W_T, f W_0 and G_T exceed threshold ||W_T||_F.

    Attributes:
        rank: of W_T, its threshold rank.
        surviving_rank: of the initial residue f W_0.
        learned_rank: of the learned part G_T.
        threshold: relative to ||W_T||_F.
    """

    rank: Int64[Tensor, "*batch"]
    surviving_rank: Int64[Tensor, "*batch"]
    learned_rank: Int64[Tensor, "*batch"]
    threshold: float

    def __repr__(self) -> str:
        parts = (self.rank, self.surviving_rank, self.learned_rank)
        means = [f"{part.double().mean().item():.4g}" for part in parts]
        return (
            f"Of {means[0]} singular values above {self.threshold:g} of the Frobenius norm on "
            f"average, the initial residue alone has {means[1]} and the learned part {means[2]}."
        )


@dataclass(frozen=True, eq=False)
class MatrixSplit:
    """A stack of matrices W_T = f W_0 + G_T, by singular values in descending order.

    Attributes:
        spectra: of W_T.
        initial_spectra: of W_0.
        learned_spectra: of G_T.
        decay_factor: f.
    """

    spectra: Float64[Tensor, "*batch values"]
    initial_spectra: Float64[Tensor, "*batch values"]
    learned_spectra: Float64[Tensor, "*batch values"]
    decay_factor: Float64[Tensor, "*batch"]

    @property
    def residue_spectra(self) -> Float64[Tensor, "*batch values"]:
        """Of the initial residue f W_0."""
        return self.decay_factor[..., None] * self.initial_spectra

    @property
    def norm(self) -> Float64[Tensor, "*batch"]:
        """||W_T||_F."""
        return self.spectra.norm(dim=-1)

    def ranks(self, threshold: float = 1e-3) -> SplitRanks:
        """The ranks at a threshold relative to ||W_T||_F.

        Raises:
            ValueError: a negative threshold.
        """
        if not threshold >= 0:
            raise ValueError(f"threshold must be >= 0, got {threshold}")
        limit = threshold * self.norm[..., None]
        return SplitRanks(
            rank=(self.spectra > limit).sum(-1),
            surviving_rank=(self.residue_spectra > limit).sum(-1),
            learned_rank=(self.learned_spectra > limit).sum(-1),
            threshold=threshold,
        )

    def kept(self, threshold: float = 1e-3) -> Float64[Tensor, "*batch"]:
        """Rank of W_T over that of W_0, each relative to its own Frobenius norm."""
        ranks = [
            (spectra > threshold * spectra.norm(dim=-1, keepdim=True)).sum(-1)
            for spectra in (self.spectra, self.initial_spectra)
        ]
        return ranks[0] / ranks[1].double()

    def __repr__(self) -> str:
        return f"Split of {self.decay_factor.numel()} matrices. {self.ranks()!r}"


def split_matrices(
    final: Shaped[Tensor, "*batch rows cols"],
    initial: Shaped[Tensor, "*batch rows cols"],
    decay_factor: float | Float[Tensor, "*batch"],
) -> MatrixSplit:
    """Splits a stack of trained matrices, such as one layer of E networks, by singular values.

    As `split_init` does for one network; the ranks at any threshold follow from the spectra, which
    are those of `matrix_spectrum`.

    Args:
        final: W_T.
        initial: W_0.
        decay_factor: f in [0, 1], of the whole stack or one a matrix (`predict.decay_factor`).

    Raises:
        ValueError: the shapes differ, a factor is not in [0, 1], or as in `matrix_spectrum`.
    """
    if final.shape != initial.shape:
        raise ValueError(
            f"initial must have the shape of final, {tuple(final.shape)}; "
            f"got {tuple(initial.shape)}"
        )
    trained, start = final.detach().double(), initial.detach().to(final.device).double()
    factor = torch.as_tensor(decay_factor, dtype=torch.float64, device=final.device)
    if not ((factor >= 0) & (factor <= 1)).all():
        raise ValueError(f"decay_factor must lie in [0, 1], got {decay_factor}")
    factor = factor.expand(final.shape[:-2])
    learned = trained - factor[..., None, None] * start
    spectra, initial_spectra, learned_spectra = matrix_spectrum(
        torch.stack([trained, start, learned])
    )
    return MatrixSplit(spectra, initial_spectra, learned_spectra, factor)


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
    like = model if isinstance(model, nn.Module) else None
    starts = {item.name: item.matrix for item in weight_matrices(initial, once=False, like=like)[0]}
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
