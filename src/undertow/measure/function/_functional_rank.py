"""How low a rank does the function need? The least rank that keeps the loss, found by bisection.

Threshold ranks count singular values; this one truncates them and looks at real data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl
import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from undertow.measure._evaluation import (
    batches_apart,
    class_scores,
    evaluating,
    outputs_of,
    state_of,
)
from undertow.measure._kinds import check_model, check_objective
from undertow.measure.weights import Include, WeightMatrix, weight_matrices
from undertow.objective import Objective, original

Metric = Literal["loss", "accuracy"]
_ROWS_SHOWN = 12
_ROUNDING = 1e-12
# The projections that a packed attention weight holds, in its order.
_PACKED = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True, eq=False)
class FunctionalRank:
    """The least ranks that keep a network's loss or accuracy within a tolerance.

    Attributes:
        table: a row per matrix: name, rows, cols, full_rank; functional_rank, the least r that
            keeps the metric with this matrix alone truncated, and the metric there
            (`metric_alone`); common_rank, its rank at the common energy level.
        ranks: functional rank by name.
        common_ranks: rank at the common energy level by name.
        discarded_energy: the common level: every matrix keeps the least r with
            s_{r+1}^2 + s_{r+2}^2 + ... <= discarded_energy ||W||_F^2.
        common_metric: the metric with every matrix at its common rank.
        full_metric: the metric of the network as it is.
        metric: "loss" (lower is better) or "accuracy" (higher is better).
        tolerance: in the unit of the metric.
        passes: evaluations over the whole data.
        notes: matrices that were left out, and why.
    """

    table: pl.DataFrame
    ranks: Mapping[str, int]
    common_ranks: Mapping[str, int]
    discarded_energy: float
    common_metric: float
    full_metric: float
    metric: Metric
    tolerance: float
    passes: int
    notes: tuple[str, ...] = ()

    @property
    def energy(self) -> float:
        """The share of ||W||_F^2 that every matrix keeps at the common level."""
        return 1 - self.discarded_energy

    def __repr__(self) -> str:
        full, common = self.table["full_rank"].sum(), self.table["common_rank"].sum()
        lines = [
            f"Ranks {common:,} of {full:,} in {len(self.table)} matrices, all at energy "
            f"{self.energy:.6g}, keep {self.metric} {self.full_metric:.4g} within "
            f"{self.tolerance:g} ({self.common_metric:.4g}; {self.passes} passes)."
        ]
        shown = self.table.head(_ROWS_SHOWN)
        width = max(4, *(len(name) for name in shown["name"]))
        lines.append(f"  {'name':<{width}}   full  alone  common")
        for row in shown.iter_rows(named=True):
            lines.append(
                f"  {row['name']:<{width}}  {row['full_rank']:>5}  {row['functional_rank']:>5}  "
                f"{row['common_rank']:>6}"
            )
        if len(self.table) > len(shown):
            lines.append(f"  and {len(self.table) - len(shown)} more in .table")
        lines.extend(f"  note: {note}" for note in self.notes)
        return "\n".join(lines)


def functional_rank(
    model: nn.Module,
    objective: Objective,
    tolerance: float = 0.01,
    *,
    metric: Metric = "loss",
    include: Include = None,
) -> FunctionalRank:
    """The least rank per matrix, and one energy level for all, that keep the objective.

    A truncation is kept if the loss rises, or the accuracy falls, by no more than `tolerance`.
    Bisection finds a rank that is kept whose next lower is not: the least one, if the metric gets
    no better as rank falls. Evaluation is in eval mode on copies of the weights; the module is
    never written to. Matrices are those of `ranks`, without parametrised weights.

    Args:
        model: the objective's model, or a part of it whose matrices are to be truncated.
        objective: its loss and data are what is to be kept.
        tolerance: absolute, in the unit of the metric.
        metric: "loss", or "accuracy" over the labels that the loss does not ignore.
        include: names of matrices within `model`, or a function from a name to bool.

    Raises:
        ValueError: if tolerance is negative or not finite, `model` is no part of the objective's
            model, or there is nothing to truncate.
    """
    check_model(model)
    check_objective(objective)
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be a finite number >= 0, such as 0.01, got {tolerance}")
    if metric not in ("loss", "accuracy"):
        raise ValueError(f"metric must be 'loss' or 'accuracy', got {metric!r}")
    slots, notes = _slots(model, objective, include)
    factors = [_Factors(slot.item.matrix) for slot in slots]
    evaluate = _Evaluator(objective, slots, factors, metric)
    full = evaluate({})

    def kept(value: float) -> bool:
        loss = value - full if metric == "loss" else full - value
        # A share of labels that falls by the tolerance exactly may miss it by a rounding error.
        return loss <= tolerance + _ROUNDING

    alone: list[tuple[int, float]] = []
    for index, factor in enumerate(factors):

        def at_rank(rank: int, index: int = index) -> float:
            return evaluate({index: rank})

        alone.append(_least(factor.full_rank, full, at_rank, kept))

    levels = _levels(factors)

    def at_level(position: int) -> float:
        return evaluate(dict(enumerate(_ranks_at(factors, levels[position]))))

    position, common_metric = _least(len(levels) - 1, full, at_level, kept)
    common = _ranks_at(factors, levels[position])
    table = pl.DataFrame(
        {
            "name": [slot.item.name for slot in slots],
            "rows": [slot.item.matrix.shape[0] for slot in slots],
            "cols": [slot.item.matrix.shape[1] for slot in slots],
            "full_rank": [factor.full_rank for factor in factors],
            "functional_rank": [rank for rank, _ in alone],
            "metric_alone": [value for _, value in alone],
            "common_rank": common,
        }
    )
    return FunctionalRank(
        table=table,
        ranks=dict(zip(table["name"], table["functional_rank"], strict=True)),
        common_ranks=dict(zip(table["name"], common, strict=True)),
        discarded_energy=levels[position],
        common_metric=common_metric,
        full_metric=full,
        metric=metric,
        tolerance=tolerance,
        passes=evaluate.passes,
        notes=notes,
    )


@dataclass(frozen=True, eq=False)
class _Slot:
    """A matrix and where in which parameter it is stored."""

    item: WeightMatrix
    parameter: str
    rows: slice
    transposed_groups: int = 0


class _Factors:
    """A float64 singular value decomposition, computed once and cut at any rank."""

    def __init__(self, matrix: Tensor) -> None:
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        self.left: Float64[Tensor, "rows values"] = left * values
        self.right: Float64[Tensor, "values cols"] = right
        self.full_rank = len(values)
        squares = values.square().flip(0).cumsum(0).flip(0)
        total = float(squares[0])
        # Share of the energy beyond rank 0, 1, ...: sums from the small end, so that directions
        # of no consequence are told from none at all.
        shares = (squares / total).tolist() if total > 0 else [0.0] * len(values)
        self.discarded: list[float] = [*shares, 0.0]

    def cut(self, rank: int) -> Float64[Tensor, "rows cols"]:
        return self.left[:, :rank] @ self.right[:rank]


class _Evaluator:
    """The metric with given matrices (by position) cut to given ranks."""

    def __init__(
        self,
        objective: Objective,
        slots: Sequence[_Slot],
        factors: Sequence[_Factors],
        metric: Metric,
    ) -> None:
        self.objective = objective
        self.slots = slots
        self.factors = factors
        self.metric = metric
        self.parameters = dict(objective.model.named_parameters())
        self.passes = 0

    def __call__(self, ranks: Mapping[int, int]) -> float:
        self.passes += 1
        tensors: dict[str, Tensor] = {}
        for index, rank in ranks.items():
            slot = self.slots[index]
            if slot.parameter not in tensors:
                tensors[slot.parameter] = self.parameters[slot.parameter].detach().clone()
            _write(tensors[slot.parameter], slot, self.factors[index].cut(rank))
        try:
            return self._loss(tensors) if self.metric == "loss" else self._accuracy(tensors)
        except ValueError as error:
            if not ranks or "not finite" not in str(error):
                raise
            # What is truncated may divide by zero, such as by the norm of rank 0: not kept.
            return math.nan

    def _loss(self, tensors: Mapping[str, Tensor]) -> float:
        risk = self.objective.risk
        return float(risk.value(risk.own() | dict(tensors)))

    def _accuracy(self, tensors: Mapping[str, Tensor]) -> float:
        risk = self.objective.risk
        right = counted = 0
        with evaluating(risk):
            state = state_of(risk) | dict(tensors)
            for inputs, targets in batches_apart(risk):
                outputs = outputs_of(risk, state, inputs)
                scores, labels = class_scores(self.objective.loss, outputs, targets)
                right += int((scores.argmax(1) == labels).sum())
                counted += len(labels)
        if counted == 0:
            raise ValueError("no label counts: every target is ignored, so there is no accuracy")
        return right / counted


def _slots(
    model: nn.Module, objective: Objective, include: Include
) -> tuple[list[_Slot], tuple[str, ...]]:
    """The matrices of `model` that are stored as they are used, and notes on the others."""
    model = original(model)
    places = {id(p): name for name, p in objective.model.named_parameters()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if any(id(p) not in places for p in parameters.values()):
        raise ValueError("model must be the objective's model or a part of it; it has others")
    items, skipped = weight_matrices(model, include)
    notes = list(skipped)
    slots: list[_Slot] = []
    for item in items:
        path, _, last = item.name.rpartition(".")
        packed = f"{path}.in_proj_weight".removeprefix(".")
        if item.name in parameters:
            parameter, rows = parameters[item.name], slice(None)
        elif last in _PACKED and packed in parameters:
            parameter, part = parameters[packed], _PACKED.index(last)
            height = len(parameter) // 3
            rows = slice(part * height, (part + 1) * height)
        elif (one := re.fullmatch(r"(.*)\[(\d+)\]", item.name)) and one[1] in parameters:
            parameter, rows = parameters[one[1]], slice(int(one[2]), int(one[2]) + 1)
        else:
            notes.append(f"{item.name} is parametrised or in a stack, and was left as it is")
            continue
        owner = model.get_submodule(path)
        groups = owner.groups if isinstance(owner, _ConvTransposeNd) else 0
        slots.append(_Slot(item, places[id(parameter)], rows, groups))
    if not slots:
        raise ValueError(f"model has no matrix to truncate: {'; '.join(notes)}")
    return slots, tuple(notes)


def _write(target: Tensor, slot: _Slot, matrix: Tensor) -> None:
    """Put a matrix where the weight matrices were read from."""
    place = target[slot.rows]
    groups = slot.transposed_groups
    if groups:
        # Stored c_in x (c_out / groups): the group moves back from the second axis to the first.
        c_in, c_out, *taps = place.shape
        split = matrix.reshape(groups, c_out, c_in // groups, *taps)
        matrix = split.transpose(1, 2)
    place.copy_(matrix.reshape(place.shape))


def _least(
    top: int, value: float, at: Callable[[int], float], kept: Callable[[float], bool]
) -> tuple[int, float]:
    """The least kept of 0 ... top by bisection, and the metric there; `top` is known to be kept."""
    low, high = -1, top
    while high - low > 1:
        middle = (low + high) // 2
        found = at(middle)
        if kept(found):
            high, value = middle, found
        else:
            low = middle
    return high, value


def _levels(factors: Sequence[_Factors]) -> list[float]:
    """Every share of discarded energy at which some rank changes, from all (rank 0) to none."""
    return sorted({0.0, 1.0}.union(*(factor.discarded for factor in factors)), reverse=True)


def _ranks_at(factors: Sequence[_Factors], level: float) -> list[int]:
    """The least rank of each matrix beyond which at most this share of its energy lies."""
    return [sum(share > level for share in factor.discarded) for factor in factors]
