"""What a forecast found, and the document that says it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from undertow import lab
from undertow.apply._names import MEANS, ROWS_SHOWN, digits, role, short_names
from undertow.apply._printed import Printed
from undertow.apply.forecasting import _charts
from undertow.predict import Equilibrium, RankBound, SyncRounds

if TYPE_CHECKING:
    import polars as pl

    from undertow.apply.forecasting._records import Comparison

_RESIDUE = (
    "Weight decay multiplies what was there before by 1 - lr x weight_decay at every step: the "
    "residue is e^-E, E the sum of these products."
)
_SYNC = "Steps between two averages under the quadratic rule H = max(base, (alpha / lr)^2)."


@dataclass(frozen=True)
class LayerForecast:
    """One weight matrix.

    Attributes:
        name: its name.
        rows: and `cols`, its shape; a convolution's is c_out x (c_in / groups x taps).
        cols: see `rows`.
        norm: the Frobenius norm that ranks are relative to.
        ranks: surviving initial directions at each of the forecast's `steps`.
        bound: the rank bound of 2206.05794, infinite where the run is too short to forget its
            start; None where it does not apply (momentum, Adam).
    """

    name: str
    rows: int
    cols: int
    norm: float
    ranks: tuple[int, ...]
    bound: RankBound | None

    @property
    def final_rank(self) -> int:
        """Surviving initial directions at the end."""
        return self.ranks[-1]


@dataclass(frozen=True, eq=False)
class Forecast(Printed):
    """What hyperparameters say about a run before it starts.

    Attributes:
        decay_exponent: E, sum of lr x weight_decay over the run (over 1 - momentum where decay is
            coupled).
        residue: e^-E, what is left of the initial weights.
        memory_steps: 1 / (lr weight_decay) at the peak rate (times 1 - momentum where decay is
            coupled): the steps back that weights remember; infinite without decay.
        memory_epochs: the same in epochs; None without the number of samples.
        steps: at which the curves below are given, 0 and the last included.
        exponents: E up to each of them.
        layers: one entry a weight matrix.
        equilibrium: of normalised layers, at the peak rate; None without decay, or for methods
            other than SGD and AdamW, of which it is not known.
        effective_lr: lr / (1 - momentum) at the peak; None for adaptive methods.
        sync: the rounds of Local SGD under the quadratic rule.
        sync_alpha: its growth coefficient.
        sync_base: its least period.
        memory_equation: what `memory_steps` is.
        memory_says: whether it covers an epoch, and whether the start is forgotten.
        decays_so: whether a step takes lr x weight_decay of the weights; if not, E and what follows
            from it are those of a decay that would.
        comparison: forecast beside measurement, where records were given.
        assumptions: what the numbers rest on.
        notes: what was left out.
    """

    decay_exponent: float
    residue: float
    memory_steps: float
    memory_epochs: float | None
    steps: tuple[int, ...]
    exponents: tuple[float, ...]
    layers: tuple[LayerForecast, ...]
    equilibrium: Equilibrium | None
    effective_lr: float | None
    sync: SyncRounds
    sync_alpha: float
    sync_base: int
    threshold: float
    memory_equation: str = "1 / (lr weight_decay)"
    memory_says: str = ""
    decays_so: bool = True
    comparison: Comparison | None = None
    assumptions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> pl.DataFrame:
        """A row per layer: name, rows, cols, norm, rank_at_start, rank_half_way, final_rank,
        rank_bound (null where it does not apply) and bound_says (whether it says anything).
        """
        import polars as pl

        return pl.DataFrame(self._columns())

    def document(self) -> lab.Document:
        """What the hyperparameters say, with the ranks of each matrix where there are some."""
        heading = f"Initial directions above {self.threshold:g} of each matrix's norm, by step"
        ranks = (self._overview(),) if self.layers else ()
        return lab.Document(
            title="Forecast",
            summary=repr(self).partition(": ")[2],
            facts=self._facts(),
            sections=(
                lab.Section(heading, ranks),
                *self._drawn(),
                lab.Section("Notes", (self.notes,)),
                lab.Section("It assumes", (self.assumptions,)),
            ),
            data=self._data(),
        )

    def __repr__(self) -> str:
        epochs = "" if self.memory_epochs is None else f" ({self.memory_epochs:.4g} epochs)"
        memory = "no memory limit: there is no weight decay"
        if math.isfinite(self.memory_steps):
            memory = f"weights remember about {self.memory_steps:,.0f} steps{epochs}"
        supposed = "" if self.decays_so else ", were decay decoupled"
        return (
            f"Forecast{supposed}: E = {self.decay_exponent:.4g}, {self.residue:.3g} of the initial "
            f"weights left; {memory}."
        )

    def _facts(self) -> dict[str, str]:
        """Name and value of each figure that is about the run as a whole."""
        memory = "without end: no weight decay"
        if math.isfinite(self.memory_steps):
            memory = f"{self.memory_steps:,.0f} steps"
            if self.memory_epochs is not None:
                memory += f", {self.memory_epochs:.4g} epochs"
        supposed = "" if self.decays_so else ", were decay decoupled"
        facts = {
            f"decay exponent E{supposed}": f"{self.decay_exponent:.4g}",
            "left of the initial weights": f"{self.residue:.3g}",
            f"memory, {self.memory_equation}": memory,
        }
        if self.memory_says and math.isfinite(self.memory_steps):
            facts["which is"] = self.memory_says
        if self.effective_lr is not None:
            facts["effective lr, lr / (1 - momentum)"] = f"{self.effective_lr:.4g}"
        if self.equilibrium is not None:
            facts["normalised layers settle in"] = (
                f"{self.equilibrium.mixing_steps:,.0f} steps "
                f"(norms in {self.equilibrium.relaxation_steps:,.0f})"
            )
            facts["and turn there by"] = f"{self.equilibrium.angular_update:.3g} rad a step"
        periods = self.sync.periods
        least, most = periods.min(), periods.max()
        lengths = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        facts["Local SGD, quadratic rule"] = f"{len(periods):,} rounds of {lengths} steps"
        facts["which communicates"] = (
            f"{self.sync.share:.1%} (alpha {self.sync_alpha:.3g}, base {self.sync_base})"
        )
        return facts

    def _overview(self) -> lab.Table:
        """The ranks at the start, half way and at the end; by role where matrices are many."""
        rows = [[layer] for layer in self.layers]
        if len(rows) > ROWS_SHOWN:
            kinds: dict[tuple[str, int, int], list[LayerForecast]] = {}
            for layer in self.layers:
                kinds.setdefault((role(layer.name), layer.rows, layer.cols), []).append(layer)
            rows = list(kinds.values())
        names = [role(row[0].name) if len(row) > 1 else row[0].name for row in rows]
        columns: dict[str, list[Any]] = {
            "matrix": short_names(names, [len(row) for row in rows]),
            "shape": [f"{row[0].rows}x{row[0].cols}" for row in rows],
        }
        formats: dict[str, Callable[[Any], str]] = {}
        for at in (0, len(self.steps) // 2, len(self.steps) - 1):
            head = f"at {self.steps[at]}"
            columns[head] = [
                row[0].ranks[at] if len(row) == 1 else fmean(layer.ranks[at] for layer in row)
                for row in rows
            ]
            formats[head] = _rank
        bounds = [row[0].bound for row in rows]
        if any(bounds):
            columns["rank bound"] = [b.rank if b and not b.vacuous else None for b in bounds]
            formats["rank bound"] = _bound
        note = MEANS if len(rows) < len(self.layers) else ""
        return lab.Table(columns, note, formats=formats)

    def _drawn(self) -> Iterator[lab.Section]:
        """What the page draws; the figures of a comparison stand on a terminal too."""
        yield lab.Section(
            "What is left of the initial weights",
            (
                _RESIDUE,
                lab.Chart(
                    partial(_charts.residue_chart, self.steps, self.exponents),
                    "The dashed line is 1 / e, one memory length.",
                ),
            ),
            page_only=True,
        )
        if self.layers:
            shares: dict[str, list[float]] = {}
            for layer in self.layers:
                full = min(layer.rows, layer.cols)
                shape = f"{layer.rows} x {layer.cols}"
                shares.setdefault(shape, [rank / full for rank in layer.ranks])
            said = (
                "Singular values of the initialisation that decay leaves above "
                f"{self.threshold:g} of each matrix's norm. Below the number of directions that "
                "training itself needs, the learned part is what shows."
            )
            drawn = lab.Chart(
                partial(_charts.rank_chart, self.steps, shares),
                "Shares of the full rank; one line for each shape.",
            )
            yield lab.Section("Surviving initial directions", (said, drawn), page_only=True)
            every = lab.Table(self._columns())
            yield lab.Section("Every matrix", (every,), page_only=True)
        if self.comparison is not None:
            drawn = lab.Chart(
                partial(_charts.comparison_chart, self.comparison.table),
                "Each point is a record; on the line forecast and measurement agree.",
            )
            yield lab.Section("Beside what was measured", (repr(self.comparison), drawn))
        drawn = lab.Chart(
            partial(_charts.sync_chart, self.sync.starts, self.sync.periods),
            f"{self.sync.share:.1%} of the communication of averaging at every step.",
        )
        yield lab.Section("Local SGD", (_SYNC, drawn), page_only=True)

    def _columns(self) -> dict[str, list[Any]]:
        """The columns of `table`."""
        middle = len(self.steps) // 2
        bounds = [layer.bound for layer in self.layers]
        return {
            "name": [layer.name for layer in self.layers],
            "rows": [layer.rows for layer in self.layers],
            "cols": [layer.cols for layer in self.layers],
            "norm": [layer.norm for layer in self.layers],
            "rank_at_start": [layer.ranks[0] for layer in self.layers],
            "rank_half_way": [layer.ranks[middle] for layer in self.layers],
            "final_rank": [layer.final_rank for layer in self.layers],
            "rank_bound": [None if bound is None else bound.rank for bound in bounds],
            "bound_says": [None if bound is None else not bound.vacuous for bound in bounds],
        }

    def _data(self) -> dict[str, Any]:
        settled = self.equilibrium
        return {
            "decay_exponent": self.decay_exponent,
            "residue": self.residue,
            "memory_steps": self.memory_steps,
            "memory_epochs": self.memory_epochs,
            "memory_says": self.memory_says,
            "decays_so": self.decays_so,
            "effective_lr": self.effective_lr,
            "equilibrium": settled
            and {
                "intrinsic_lr": settled.intrinsic_lr,
                "mixing_steps": settled.mixing_steps,
                "relaxation_steps": settled.relaxation_steps,
                "angular_update": settled.angular_update,
            },
            "local_sgd": {
                "alpha": self.sync_alpha,
                "base": self.sync_base,
                "rounds": len(self.sync.periods),
                "longest_period": int(self.sync.periods.max(initial=0)),
                "share_of_communication": self.sync.share,
            },
            "threshold": self.threshold,
            "steps": list(self.steps),
            "exponents": list(self.exponents),
            "layers": [
                {
                    "name": layer.name,
                    "rows": layer.rows,
                    "cols": layer.cols,
                    "norm": layer.norm,
                    "ranks": list(layer.ranks),
                    "rank_bound": None if layer.bound is None else layer.bound.rank,
                    "bound_vacuous": None if layer.bound is None else layer.bound.vacuous,
                }
                for layer in self.layers
            ],
            "comparison": None if self.comparison is None else self.comparison.as_json(),
            "assumptions": list(self.assumptions),
            "notes": list(self.notes),
        }


def _rank(value: float) -> str:
    """A rank, with a decimal where it is a mean."""
    return str(value) if isinstance(value, int) else digits(value)


def _bound(rank: float | None) -> str:
    return "says nothing" if rank is None else f"{rank:.4g}"
