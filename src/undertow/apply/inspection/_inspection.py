"""What an inspection found, and how it reads in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64
from torch import Tensor

from undertow import lab
from undertow.apply._columns import aligned, digits, finite, role, share, short_names, wrapped
from undertow.apply.inspection._inspect_page import inspection_page
from undertow.predict import Initializer

_ROWS_SHOWN = 24


@dataclass(frozen=True)
class Residue:
    """What a run left of its initial weights.

    Attributes:
        decay_exponent: E, the e-folds by which weight decay shrank them.
        factor: e^-E, the factor on the initial weights.
        init: the initialisation that `survivors` in the table assumes.
    """

    decay_exponent: float
    factor: float
    init: Initializer


@dataclass(frozen=True, eq=False)
class Inspection:
    """What `inspect` found.

    Attributes:
        source: what was read.
        against: what was subtracted; then every row describes a difference.
        table: a row per matrix, in the order of the checkpoint: name, rows, cols, parameters,
            threshold_rank, stable_rank, effective_rank, spectral_norm, frobenius_norm, and for
            each error (in per cent) rank_at_5 and parameters_at_5. With hyperparameters also
            survivors, the initial singular values that should still exceed the threshold; with
            `against` also change, ||W - W_other||_F / ||W_other||_F (infinite where W_other is
            zero and W is not).
        spectra: singular values of each matrix in descending order, float64.
        threshold: of threshold_rank, relative to the Frobenius norm.
        errors: the relative errors that compressibility is given for.
        residue: what is left of the initial weights, where hyperparameters were given.
        notes: what was left out, and why.
    """

    source: str
    against: str | None
    table: pl.DataFrame
    spectra: Mapping[str, Float64[Tensor, " values"]]
    threshold: float
    errors: tuple[float, ...]
    residue: Residue | None = None
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Entries of all matrices together."""
        return int(self.table["parameters"].sum())

    def parameters_at(self, error: float) -> int:
        """Numbers that hold every matrix to a relative error, each stored the cheaper way."""
        return int(self.table[f"parameters_at_{percent(error)}"].sum())

    def by_role(self) -> pl.DataFrame:
        """A row per role, matrices whose names differ in numbers alone: means over them.

        The same columns, with `count` beside `name`; rows and cols are those of the first.
        """
        kept = [name for name in self.table.columns if name not in ("name", "rows", "cols")]
        return (
            self.table.with_columns(role=pl.Series([role(name) for name in self.table["name"]]))
            .group_by("role", "rows", "cols", maintain_order=True)
            .agg(pl.len().alias("count"), pl.col(kept).mean())
            .rename({"role": "name"})
        )

    def as_json(self) -> dict[str, Any]:
        """The whole but the spectra, as one JSON object can hold it."""
        return {
            "source": self.source,
            "against": self.against,
            "parameters": self.parameters,
            "parameters_at": {percent(e): self.parameters_at(e) for e in self.errors},
            "threshold": self.threshold,
            "decay_exponent": None if self.residue is None else self.residue.decay_exponent,
            "residue": None if self.residue is None else self.residue.factor,
            "matrices": [
                {name: finite(v) if isinstance(v, float) else v for name, v in row.items()}
                for row in self.table.iter_rows(named=True)
            ],
            "notes": list(self.notes),
        }

    def write_html(self, path: str | PathLike[str]) -> Path:
        """Write the page with spectra drawn, as one file that needs no network."""
        return lab.write_report(inspection_page(self, " ".join(self._sentences()[1:])), path)

    def text(self, *, every: bool = False) -> str:
        """The table in 80 columns: a line per role where there are many matrices, or for every one.

        The last columns give the share of parameters that hold each matrix to that error.
        """
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([repr(self), "", *self._rows(every), *wrapped(notes)])

    def __repr__(self) -> str:
        return "\n".join(wrapped(self._sentences()))

    def _sentences(self) -> list[str]:
        plural = "matrix" if len(self.table) == 1 else "matrices"
        what, source = f"weight {plural}", self.source
        if self.against is not None:
            what = "difference" if len(self.table) == 1 else "differences"
            source = f"{self.source} against {self.against}"
        shares = [share(self.parameters_at(error), self.parameters) for error in self.errors]
        errors = [f"{percent(error)}%" for error in self.errors]
        lines = [
            f"{source}: {len(self.table)} {what}, {self.parameters:,} parameters.",
            f"At low rank, to a relative error of {' / '.join(errors)}, they take "
            f"{' / '.join(shares)} of their parameters.",
        ]
        if self.against is not None:
            change = self.table["change"].to_numpy()
            lines.append(
                f"They changed by {np.median(change):.2%} (median, of the Frobenius norm), at "
                f"most by {np.max(change):.2%}."
            )
        if self.residue is not None:
            alive = int((self.table["survivors"] > 0).sum())
            lines.append(
                f"Weight decay left e^-E = {self.residue.factor:.3g} of the start "
                f"(E = {self.residue.decay_exponent:.4g}): with {self.residue.init} "
                f"initialisation that still shows above the threshold in {alive} of "
                f"{len(self.table)} matrices."
            )
        return lines

    def _rows(self, every: bool) -> list[str]:
        table = self.table if every or len(self.table) <= _ROWS_SHOWN else self.by_role()
        counts = table["count"] if "count" in table.columns else [1] * len(table)
        cells = {
            "matrix": [
                name if count == 1 else f"{name} ({count})"
                for name, count in zip(short_names(table["name"].to_list()), counts, strict=True)
            ],
            "shape": [f"{rows}x{cols}" for rows, cols in table.select("rows", "cols").iter_rows()],
            "rank": [f"{value:.0f}" for value in table["threshold_rank"]],
            "stable": [digits(value) for value in table["stable_rank"]],
            "eff.": [digits(value) for value in table["effective_rank"]],
        }
        if "change" in table.columns:
            cells["change"] = [f"{value:.1%}" for value in table["change"]]
        elif "survivors" in table.columns:
            cells["alive"] = [digits(value) for value in table["survivors"]]
        else:
            cells["norm"] = [f"{value:.3g}" for value in table["frobenius_norm"]]
        for error in self.errors:
            kept = table[f"parameters_at_{percent(error)}"]
            cells[f"{percent(error)}%"] = [
                share(part, whole) for part, whole in zip(kept, table["parameters"], strict=True)
            ]
        lines = aligned(cells)
        if len(table) < len(self.table):
            lines.append("(n): means over n matrices whose names differ in their number alone.")
        if "survivors" in self.table.columns:
            lines.append("alive: initial directions that decay has left above the threshold.")
        return lines


def percent(error: float) -> str:
    """A relative error in per cent, as it stands in column names: 0.05 is "5"."""
    return f"{100 * error:g}"
