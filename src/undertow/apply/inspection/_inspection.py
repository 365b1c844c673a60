"""What an inspection found, and the document that says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64
from torch import Tensor

from undertow import lab
from undertow.apply._names import MEANS, ROWS_SHOWN, digits, ranged, role, share, short_names
from undertow.apply._printed import Printed
from undertow.apply.inspection._charts import compression_chart, spectra_chart
from undertow.apply.inspection._folder import IN_A_FOLDER
from undertow.predict import Initializer


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
class Inspection(Printed):
    """What `inspect` found.

    Attributes:
        source: what was read.
        against: what was subtracted; then every row describes a difference.
        table: a row per matrix, in the order of the checkpoint: name, rows, cols, parameters,
            threshold_rank, stable_rank, effective_rank, spectral_norm, frobenius_norm, and for
            each error (in per cent) rank_at_5 and parameters_at_5. With hyperparameters also
            survivors, the initial singular values that should still exceed the threshold; with
            `against` also change, the norm over ||W_other||_F (infinite where W_other is zero and
            W is not), rounding_edge, the largest singular value that the rounding of the stored
            numbers gives a difference, and moved, whether any entry differs. Ranks, norms and
            change of a difference count what stands above rounding_edge.
        spectra: singular values of each matrix in descending order, float64, all of them.
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
        """A row per role, matrices of one shape whose names differ in numbers alone: means.

        The same columns, with `count` beside `name`, which holds all their numbers.
        """
        left = ("name", "rows", "cols", "moved")
        kept = [name for name in self.table.columns if name not in left]
        grouped = (
            self.table.with_columns(role=pl.Series([role(name) for name in self.table["name"]]))
            .group_by("role", "rows", "cols", maintain_order=True)
            .agg(pl.col("name"), pl.len().alias("count"), pl.col(kept).mean())
        )
        names = [ranged(names) for names in grouped["name"].to_list()]
        return grouped.drop("role").with_columns(name=pl.Series(names))

    def document(self, *, every: bool = False) -> lab.Document:
        """What was found: a line per role where there are many matrices, or for `every` one.

        The last columns give the share of parameters that hold a matrix to that relative error.
        """
        against = "" if self.against is None else f" against {_file_name(self.against)}"
        spectra = partial(spectra_chart, self.spectra, self.threshold)
        compression = partial(compression_chart, self.table, self._labels())
        same = self.against is not None and not (self.table["frobenius_norm"] > 0).any()
        drawn = (
            lab.Section(
                "Spectra",
                (_SPECTRA, lab.Chart(spectra, self._spectra_caption())),
                page_only=True,
            ),
            lab.Section(
                "How far they compress",
                (
                    _COMPRESSION,
                    lab.Chart(compression, "By relative error in the Frobenius norm."),
                ),
                page_only=True,
            ),
        )
        return lab.Document(
            title=f"Inspection of {_file_name(self.source)}{against}",
            summary=" ".join(self._sentences()),
            facts=self._facts(),
            sections=(
                lab.Section("Ranks and compressibility", (self._overview(every),)),
                *(() if same else drawn),
                lab.Section("Every matrix", (self._whole(),), page_only=True),
                lab.Section("Notes", (self.notes,)),
            ),
            data=self._data(),
        )

    def text(self, *, every: bool = False) -> str:
        """The document in 80 columns."""
        return lab.as_text(self.document(every=every))

    def csv(self) -> str:
        """The table as CSV, with what it was held against and each spectrum, values by spaces."""
        spectra = [
            " ".join(f"{value:.9g}" for value in self.spectra[name].tolist())
            for name in self.table["name"]
        ]
        against = self.against and self.against.encode("utf-8", "backslashreplace").decode()
        return self.table.with_columns(
            against=pl.lit(against, dtype=pl.String), spectrum=pl.Series(spectra)
        ).write_csv()

    def __repr__(self) -> str:
        against = "" if self.against is None else f" against {self.against}"
        return lab.printable(f"{self.source}{against}: ") + "\n".join(self._sentences())

    def _labels(self) -> dict[str, str]:
        """Each relative error as a reader sees it, and the table's column of parameters for it."""
        return {f"{percent(e)}%": f"parameters_at_{percent(e)}" for e in self.errors}

    def _facts(self) -> dict[str, str]:
        read = {"read": self.source, "held against": self.against or ""}
        # A name alone stands in the title already.
        facts = {what: path for what, path in read.items() if Path(path).name != path}
        if self.residue is not None:
            facts["decay exponent E"] = f"{self.residue.decay_exponent:.4g}"
            facts["left of the start, e^-E"] = f"{self.residue.factor:.3g}"
        return facts

    def _sentences(self) -> list[str]:
        plural = "matrix" if len(self.table) == 1 else "matrices"
        what = f"weight {plural}"
        if self.against is not None:
            what = "difference" if len(self.table) == 1 else "differences"
        lines = [f"{len(self.table)} {what}, {self.parameters:,} parameters."]
        if self.against is not None:
            lines += self._changes()
            if not (self.table["frobenius_norm"] > 0).any():
                return lines
        shares = [share(self.parameters_at(error), self.parameters) for error in self.errors]
        errors = [f"{percent(error)}%" for error in self.errors]
        lines.append(
            f"At low rank, to a relative error of {' / '.join(errors)}, they take "
            f"{' / '.join(shares)} of their parameters."
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

    def _changes(self) -> list[str]:
        """What the differences say: how many there are, how many stand above rounding."""
        count = len(self.table)
        moved = self.table["moved"]
        lost = int((moved & (self.table["frobenius_norm"] == 0)).sum())
        if not moved.any():
            return [f"The two hold the same values in {'it' if count == 1 else 'all of them'}."]
        lines = []
        if not moved.all():
            lines.append(f"{count - int(moved.sum())} of them are the same in both.")
        if lost:
            lines.append(
                f"In {lost} of them nothing stands above the rounding of the stored numbers."
            )
        change = self.table.filter(pl.col("frobenius_norm") > 0)["change"].to_numpy()
        if len(change):
            who = "They" if len(change) == count else f"The other {len(change)}"
            lines.append(
                f"{who} changed by {np.median(change):.2%} (median, of the Frobenius norm), at "
                f"most by {np.max(change):.2%}."
            )
        return lines

    def _edges(self) -> dict[str, float]:
        """Where rounding ends in each spectrum, of differences."""
        if "rounding_edge" not in self.table.columns:
            return {}
        return dict(self.table.select("name", "rounding_edge").iter_rows())

    def _spectra_caption(self) -> str:
        said = f"The rule is the threshold, {self.threshold:g}."
        rounded = any(self._edges().values())
        return f"{said} What rounding gives is drawn as well, and not counted." if rounded else said

    def _whole(self) -> lab.Table:
        """Every matrix with all that was found, a column for each number that a reader wants."""
        table = self.table
        columns: dict[str, Any] = {
            "matrix": table["name"],
            "shape": [f"{rows}x{cols}" for rows, cols in table.select("rows", "cols").iter_rows()],
            "rank": table["threshold_rank"],
            "stable": table["stable_rank"],
            "eff.": table["effective_rank"],
            "spectral norm": table["spectral_norm"],
            "norm": table["frobenius_norm"],
        }
        for name in ("change", "rounding_edge", "survivors"):
            if name in table.columns:
                columns[name.replace("_edge", "")] = table[name]
        errors = "/".join(percent(error) for error in self.errors) + "%"
        ranks = table.select(f"rank_at_{percent(error)}" for error in self.errors)
        columns[f"rank at {errors}"] = [" / ".join(map(str, row)) for row in ranks.iter_rows()]
        sizes = table.select(self._labels().values())
        columns[f"share at {errors}"] = [
            " / ".join(share(size, whole) for size in row)
            for row, whole in zip(sizes.iter_rows(), table["parameters"], strict=True)
        ]
        formats: dict[str, Callable[[Any], str]] = {
            **dict.fromkeys(("stable", "eff."), digits),
            **dict.fromkeys(("spectral norm", "norm", "rounding"), "{:.3g}".format),
            "change": "{:.2%}".format,
        }
        return lab.Table(columns, formats={n: f for n, f in formats.items() if n in columns})

    def _meaning(self) -> str:
        """What the columns count."""
        above = ", and above rounding" if any(self._edges().values()) else ""
        what = "difference" if self.against is not None else "matrix"
        return (
            f"rank: singular values above {self.threshold:g} of the {what}'s Frobenius norm"
            f"{above}; stable: sum of their squares over the largest one's; eff.: exp of their "
            "entropy; in per cent: the share of its numbers that hold it to that relative error."
        )

    def _overview(self, every: bool) -> lab.Table:
        table = self.table if every or len(self.table) <= ROWS_SHOWN else self.by_role()
        counts = table["count"] if "count" in table.columns else [1] * len(table)
        columns: dict[str, Any] = {
            "matrix": short_names(table["name"].to_list(), list(counts)),
            "shape": [f"{rows}x{cols}" for rows, cols in table.select("rows", "cols").iter_rows()],
            "rank": table["threshold_rank"],
            "stable": table["stable_rank"],
            "eff.": table["effective_rank"],
        }
        if "change" in table.columns:
            columns["change"] = table["change"]
        elif "survivors" in table.columns:
            columns["alive"] = table["survivors"]
        else:
            columns["norm"] = table["frobenius_norm"]
        for label, column in self._labels().items():
            columns[label] = table[column] / table["parameters"]
        notes = [self._meaning()]
        if len(table) < len(self.table):
            notes.append(MEANS)
        if "alive" in columns:
            notes.append("alive: initial directions that decay has left above the threshold.")
        formats: dict[str, Callable[[Any], str]] = {
            "rank": "{:.0f}".format,
            "stable": digits,
            "eff.": digits,
            "change": "{:.1%}".format,
            "alive": digits,
            "norm": "{:.3g}".format,
            **dict.fromkeys(self._labels(), partial(share, whole=1.0)),
        }
        shown = {name: text for name, text in formats.items() if name in columns}
        return lab.Table(columns, "\n\n".join(notes), formats=shown)

    def _data(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "against": self.against,
            "parameters": self.parameters,
            "parameters_at": {percent(e): self.parameters_at(e) for e in self.errors},
            "threshold": self.threshold,
            "decay_exponent": None if self.residue is None else self.residue.decay_exponent,
            "residue": None if self.residue is None else self.residue.factor,
            "matrices": self.table.to_dicts(),
            "notes": list(self.notes),
        }


# Names of files that say nothing of whose they are.
_COMMON = {*IN_A_FOLDER, "consolidated.safetensors"}
_SPECTRA = (
    "Singular values over the Frobenius norm, against their place in the order, one line a matrix. "
    "A spectrum that falls off a cliff is a matrix of low rank; a straight line is none."
)
_COMPRESSION = (
    "The share of its numbers that a matrix takes as the product of two thin factors, or as it is "
    "where that is cheaper; means over the matrices of a role."
)


def _file_name(source: str) -> str:
    """The name of a file, with its folder's where every checkpoint's file is called so."""
    path = Path(source)
    if path.name in _COMMON and path.parent.name:
        return f"{path.parent.name}/{path.name}"
    return path.name or source


def percent(error: float) -> str:
    """A relative error in per cent, as it stands in column names: 0.05 is "5"."""
    return f"{100 * error:g}"
