"""Curves over pixel budgets, the two numbers that they come to, and a table of several methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from undertow.measure.saliency._pictures import (
    Picture,
    curves_chart,
    grid,
    shown_input,
    shown_map,
)
from undertow.measure.saliency._scores import Score, Unit, averages, score

if TYPE_CHECKING:
    import polars as pl

    from undertow import lab


@dataclass(frozen=True, eq=False)
class Curves:
    """The probability of labels where the best pixels of a map are kept, over pixel budgets.

    Attributes:
        values: f on what is kept.
        shares: of the input that each budget keeps.
        whole: f on the whole input.
        labels: that are scored.
        predicted: the label that each network gives.
        tied: where equal values straddle a budget, so that it is averaged over orders of them.
        constant: how many maps are all equal.
        floor: below which probabilities are not told apart.
        unit: what intervals are over.
    """

    values: Float64[Tensor, "networks inputs labels budgets"] = field(repr=False)
    shares: tuple[float, ...] = field(repr=False)
    whole: Float64[Tensor, "networks inputs labels"] = field(repr=False)
    labels: Int64[Tensor, "inputs labels"] = field(repr=False)
    predicted: Int64[Tensor, "networks inputs"] = field(repr=False)
    tied: Bool[Tensor, "networks inputs labels"] = field(repr=False)
    constant: int
    floor: float
    unit: Unit

    @property
    def areas(self) -> Float64[Tensor, "networks inputs labels"]:
        """The score g(x, a), the mean over budgets."""
        return self.values.mean(-1)

    @cached_property
    def completeness(self) -> Score:
        """What maps keep."""
        return self._score("completeness")

    @cached_property
    def soundness(self) -> Score:
        """What they do not make up."""
        return self._score("soundness")

    def _score(self, quantity: Any) -> Score:
        return score(
            quantity,
            self.areas,
            self.whole,
            self.labels,
            self.predicted,
            floor=self.floor,
            unit=self.unit,
        )

    def as_dict(self) -> dict[str, Any]:
        """All values, by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __repr__(self) -> str:
        networks, inputs, labels, budgets = self.values.shape
        tied = float(self.tied.double().mean())
        ties = f"; ties in {tied:.0%}, averaged" if tied else ""
        flat = f"; {self.constant} maps are all equal" if self.constant else ""
        return (
            f"Curves of {inputs} inputs x {labels} labels in {networks} network"
            f"{'s' * (networks > 1)} over {budgets} budgets{ties}{flat}."
        )


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Completeness and soundness of several attribution methods on the same inputs.

    Attributes:
        curves: by method.
        maps: of the first inputs, in the first network, by method.
        inputs: these inputs.
    """

    curves: Mapping[str, Curves]
    maps: Mapping[str, Float[Tensor, "some maps *spatial"]] = field(repr=False)
    inputs: Float[Tensor, "some ..."] = field(repr=False)

    @property
    def completeness(self) -> dict[str, Score]:
        """By method."""
        return {name: curves.completeness for name, curves in self.curves.items()}

    @property
    def soundness(self) -> dict[str, Score]:
        """By method."""
        return {name: curves.soundness for name, curves in self.curves.items()}

    @cached_property
    def table(self) -> pl.DataFrame:
        """A row for each method and number: method, quantity, labels, value, low, high."""
        import polars as pl

        rows = []
        for name, curves in self.curves.items():
            for found in (curves.completeness, curves.soundness):
                for which in ("own", "others", "worst"):
                    effect = getattr(found, which)
                    rows.append((name, found.quantity, which, effect.value, *effect.interval))
        schema = ["method", "quantity", "labels", "value", "low", "high"]
        return pl.DataFrame(rows, schema=schema, orient="row")

    def as_dict(self) -> dict[str, Any]:
        """All values, by name."""
        return {"curves": self.curves, "maps": self.maps, "inputs": self.inputs}

    def __repr__(self) -> str:
        from undertow import lab

        return lab.as_text(self.document())

    def document(self) -> lab.Document:
        """The table, with curves and maps drawn."""
        from undertow import lab

        first = next(iter(self.curves.values()))
        networks, inputs, labels, budgets = first.values.shape
        columns: dict[str, list[str]] = {"method": list(self.curves)}
        for title, quantity, which in (
            ("completeness", "completeness", "own"),
            ("soundness", "soundness", "others"),
            ("worst soundness", "soundness", "worst"),
        ):
            columns[title] = [
                said(getattr(getattr(curves, quantity), which)) for curves in self.curves.values()
            ]
        notes = [
            f"{name}: {curves.constant} maps are all equal; their pixels are kept at random"
            for name, curves in self.curves.items()
            if curves.constant
        ]
        charts: list[lab.Item] = [lab.Chart(self.plot, caption="Solid and dashed: the label.")]
        if self.inputs.ndim == 4:
            charts.append(lab.Chart(self.plot_maps, caption="White: largest."))
        return lab.Document(
            title="Attributions, complete and sound",
            summary=(
                "Completeness is at the predicted label, soundness the mean over the others, and "
                "at the label of each input where it is least. Either alone is had by maps that "
                "say nothing."
            ),
            facts={
                "inputs": f"{inputs}, {labels} labels each, {budgets} budgets",
                "networks": f"{networks}, in eval mode",
                "intervals": f"95%, over {first.unit}s",
                "floor": f"{first.floor:g}",
            },
            sections=(
                lab.Section("", (lab.Table(columns), *(("; ".join(notes),) if notes else ()))),
                lab.Section("Curves and maps", tuple(charts), page_only=True),
            ),
            data={"scores": self.table.to_dicts()},
        )

    def plot(self) -> Any:
        """An altair chart: mean curves at the predicted label and at the others."""
        import polars as pl

        rows = []
        for name, curves in self.curves.items():
            for place, share in enumerate(curves.shares):
                means = averages(curves.values[..., place], curves.labels, curves.predicted)
                for label, which in (("predicted", "own"), ("others", "others")):
                    value = float(means[which].nanmean())
                    if value == value:
                        rows.append((name, label, share, value))
        return curves_chart(
            pl.DataFrame(rows, schema=["method", "label", "share", "probability"], orient="row")
        )

    def plot_maps(self, *, names: Sequence[str] | None = None) -> Any:
        """An altair chart: the first inputs, and each method's map of the predicted label.

        Raises:
            ValueError: maps of tokens, which are no picture.
        """
        if self.inputs.ndim != 4:
            raise ValueError("maps of tokens are no picture; read them from .maps")
        first = next(iter(self.curves.values()))
        low, high = float(self.inputs.min()), float(self.inputs.max())
        pictures = []
        for index, image in enumerate(self.inputs):
            label = int(first.predicted[0, index])
            caption = names[label] if names is not None else f"label {label}"
            row = str(index)
            pictures.append(Picture(row, "input", shown_input(image, low, high), caption))
            for name, maps in self.maps.items():
                place = (first.labels[index] == label).int().argmax() if maps.shape[1] > 1 else 0
                pictures.append(Picture(row, name, shown_map(maps[index, place]), ""))
        return grid(pictures)


def said(found: lab.Effect) -> str:
    """An effect and its interval in a cell."""
    if found.value != found.value:
        return ""
    low, high = found.interval
    return f"{found.value:.3f} [{low:.3f}, {high:.3f}]"
