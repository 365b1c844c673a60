"""The gradient noise that weight decay forces on small batches (CBMM memo 134; one SVD, no data).

A batch of B samples has a gradient of rank at most m B in a layer that each sample meets at m
positions, so it cannot cancel the decay of more than m B directions of the weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from undertow.measure._kinds import check_model
from undertow.measure._nested import flattened, tensors
from undertow.measure.weights import WeightMatrix, matrix_spectrum, weight_matrices
from undertow.objective import EmpiricalRisk, Objective, Tensors, original, taken, whole_number

_PACKED = "in_proj_weight"
# All take their groups as the seventh argument.
_CONVOLUTIONS = (
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
)
_ROWS_SHOWN = 12


@dataclass(frozen=True, eq=False)
class NoiseFloor:
    """A lower bound on the norm of every batch's regularised gradient, by weight matrix and in all.

    Attributes:
        floor: no batch of `batch_size` samples has a regularised gradient, grad L_S + weight_decay
            W, of smaller norm over these matrices together.
        table: a row per matrix: name, rows, cols, patches (m, null for no bound), rank (m x
            batch_size at most, the rank that a batch's gradient can have), floor, frobenius_norm,
            and rank_distance, the distance of W / ||W||_F to that rank.
        spectra: singular values of each matrix, descending, float64.
        batch_size: samples in a batch.
        weight_decay: PyTorch's, twice the papers' lambda.
        notes: what was left out, and why.
    """

    floor: float
    table: pl.DataFrame
    spectra: Mapping[str, Float64[Tensor, " values"]] = field(repr=False)
    batch_size: int
    weight_decay: float
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        lines = [
            f"No batch of {self.batch_size} has a regularised gradient of norm below "
            f"{self.floor:.4g}, at weight decay {self.weight_decay:g}."
        ]
        shown = self.table.head(_ROWS_SHOWN)
        width = max(4, *(len(name) for name in shown["name"]))
        lines.append(f"  {'name':<{width}}  rank of gradient      floor  distance to rank")
        for row in shown.iter_rows(named=True):
            rank = f"{row['rank']} of {min(row['rows'], row['cols'])}"
            lines.append(
                f"  {row['name']:<{width}}  {rank:>16}  {row['floor']:>9.3g}  "
                f"{row['rank_distance']:>16.3g}"
            )
        if len(self.table) > len(shown):
            lines.append(f"  and {len(self.table) - len(shown)} more in .table")
        lines.extend(f"  note: {note}" for note in self.notes)
        return "\n".join(lines)

    def certificate(self, gradient_norms: Mapping[str, float]) -> dict[str, float]:
        """What one batch proves of the ranks: bounds on the distance of W / ||W||_F to `rank`.

        As W + grad L_S / weight_decay = G_S / weight_decay with the regularised gradient G_S of
        one batch S, that distance is at most ||G_S||_F / (weight_decay ||W||_F).

        Args:
            gradient_norms: ||G_S||_F by the matrix's name, of any one batch of `batch_size`.

        Raises:
            ValueError: if weight decay is zero, a name is unknown, or a norm negative.
        """
        if self.weight_decay == 0:
            raise ValueError("weight_decay is 0: a gradient then says nothing of the rank")
        norms = dict(zip(self.table["name"], self.table["frobenius_norm"], strict=True))
        for name, norm in gradient_norms.items():
            if name not in norms:
                raise ValueError(f"gradient_norms names {name!r}; there are {', '.join(norms)}")
            if not norm >= 0:
                raise ValueError(f"gradient_norms[{name!r}] must not be negative, got {norm}")
        return {
            name: norm / (self.weight_decay * norms[name]) if norms[name] > 0 else 0.0
            for name, norm in gradient_norms.items()
        }


def noise_floor(
    model: nn.Module,
    *,
    weight_decay: float,
    batch_size: int,
    patches: Mapping[str, int] | Objective | None = None,
) -> NoiseFloor:
    """The least norm that the regularised gradient of a batch of `batch_size` samples can have.

    The batch loss's gradient in W has rank at most r = m x batch_size, and W + grad / weight_decay
    is G_S / weight_decay, so by Eckart and Young

        ||G_S||_F >= weight_decay * sqrt(sum over k > r of s_k(W)^2)

    for every batch S and any loss that is a mean over samples. It says that a plateau of the
    training loss is forced by weight decay, and how far the learning rate must fall to lower it.
    The floor is zero without weight decay, and where the batch can have full rank.

    Args:
        model: the network, or rather its weights; batch norm couples samples in training mode but
            leaves the bound as it is.
        weight_decay: PyTorch's, as added to the gradient.
        batch_size: samples in a batch.
        patches: m, the positions at which a sample meets a weight: the output positions of a
            convolution (times its groups), tokens of a sequence, 1 for a linear layer on vectors.
            By the weight's name, or an objective, of whose data a sample of each shape is run
            through the model to count them; the most count. Weights that a mapping does not name
            have 1 if they are linear layers'.

    Raises:
        ValueError: if a number is out of its range, or m of a weight is not known.
        TypeError: if model is no module, or a count no whole number.
    """
    check_model(model)
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay must be finite and not negative, got {weight_decay!r}")
    whole_number("batch_size", batch_size, least=1)
    model = original(model)
    matrices, notes = weight_matrices(model)
    stored = dict(model.named_parameters())
    found, left_out = _positions(model, patches)
    rows: list[dict[str, Any]] = []
    spectra: dict[str, Tensor] = {}
    for item in matrices:
        name = _stored_name(item.name, stored)
        if name is None:
            left_out.append(f"{item.name} is computed from other parameters, which decay instead")
            continue
        if name not in found:
            raise ValueError(
                f"patches does not say at how many positions a sample meets {name}: give "
                f"patches={{{name!r}: ...}}, or an objective to count them"
            )
        spectra[item.name] = matrix_spectrum(item.matrix, exact=True).cpu()
        rows.append(_row(item, spectra[item.name], found[name], weight_decay, batch_size))
    if not rows:
        raise ValueError("model has no weight matrix of its own to measure")
    return NoiseFloor(
        math.hypot(*(row["floor"] for row in rows)),
        pl.DataFrame(rows, infer_schema_length=None),
        spectra,
        batch_size,
        weight_decay,
        (*notes, *left_out),
    )


def _row(
    item: WeightMatrix, spectrum: Tensor, patches: int | None, weight_decay: float, batch_size: int
) -> dict[str, Any]:
    rank = len(spectrum) if patches is None else min(patches * batch_size, len(spectrum))
    tail, norm = float(spectrum[rank:].norm()), float(spectrum.norm())
    return {
        "name": item.name,
        "rows": item.matrix.shape[0],
        "cols": item.matrix.shape[1],
        "patches": patches,
        "rank": rank,
        "floor": weight_decay * tail,
        "frobenius_norm": norm,
        "rank_distance": tail / norm if norm > 0 else 0.0,
    }


def _stored_name(name: str, stored: Mapping[str, Tensor]) -> str | None:
    """The parameter that a matrix is, or is a third of."""
    if name in stored:
        return name
    packed = f"{name.removesuffix(name.rpartition('.')[2])}{_PACKED}"
    return packed if name.endswith("_proj_weight") and packed in stored else None


def _positions(
    model: nn.Module, patches: Mapping[str, int] | Objective | None
) -> tuple[dict[str, int | None], list[str]]:
    """Every parameter whose m is known, None for no bound; and notes."""
    every = list(model.named_parameters(remove_duplicate=False))
    stored = dict(every)
    if isinstance(patches, Objective):
        if patches.model is not model:
            raise ValueError("patches is an objective of another model; give one of this model")
        counts = _counted(patches)
        missed = [name for name, count in counts.items() if count is None and stored[name].ndim > 1]
        return counts, [f"{name} is used in a way that leaves full rank" for name in missed]
    if not isinstance(patches, Mapping | None):
        raise TypeError(
            "patches must be counts by the names of weights, or an undertow.Objective, got "
            f"{type(patches).__name__}"
        )
    owners = Counter(id(parameter) for _, parameter in every)
    given = dict(patches or {})
    for name, count in given.items():
        if name not in stored:
            raise ValueError(f"patches names {name!r}, which is no parameter of the model")
        whole_number(f"patches[{name!r}]", count, least=1)
    found: dict[str, int | None] = {
        f"{path}.weight" if path else "weight": 1
        for path, module in model.named_modules()
        if type(module) is nn.Linear and owners[id(module.weight)] == 1
    }
    assumed = [name for name in found if name not in given]
    note = "linear layers are taken to see one vector a sample; patches says otherwise"
    return found | given, [note] if assumed else []


def _counted(objective: Objective) -> dict[str, int | None]:
    """The most positions of a sample at every parameter, None where not all are seen."""
    singles: dict[Any, tuple[Any, Tensor]] = {}
    for inputs, targets in objective.batches():
        single = taken(inputs, slice(0, 1)), targets[:1]
        singles.setdefault(str([part.shape for part in tensors(single)]), single)
    one = EmpiricalRisk(
        objective.model,
        objective.loss,
        list(singles.values()),
        params=lambda name, parameter: parameter.is_floating_point(),
    )
    counts: dict[str, int | None] = dict.fromkeys(one.param_names, 0)

    def compute(parameters: Tensors, inputs: Any, targets: Tensor) -> None:
        leaves = {name: parameters[name] for name in one.param_names}
        with _Positions(leaves) as seen:
            one.outputs(parameters, inputs, targets)
        for name, most in counts.items():
            # One that this sample does not meet, as with experts, another one may.
            found = None if name in seen.unknown else seen.counts.get(name) or None
            counts[name] = None if most is None or found is None else max(most, found)

    one.sweep(compute, lambda _: None)
    return counts


class _Positions(TorchFunctionMode):
    """Adds up the rank that each use of a weight lets the gradient of one sample have."""

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(leaf): name for name, leaf in leaves.items()}
        self.counts: Counter[str] = Counter()
        self.unknown: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one function of PyTorch, and counts positions if it uses a parameter."""
        del types
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        values = list(flattened((args, kwargs)))
        used = [self._names[id(value)] for value in values if id(value) in self._names]
        if func is functional.multi_head_attention_forward:
            # Queries and keys are [times, samples, width]; each third sees one or the other.
            times = max(values[0].shape[0], values[1].shape[0])
            self.counts.update(dict.fromkeys(used, times))
        elif used and func in (functional.linear, functional.embedding):
            self.counts.update(dict.fromkeys(used, output.shape[:-1].numel()))
        elif used and func in _CONVOLUTIONS:
            groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
            positions = len(output) * output.shape[2:].numel() * groups
            self.counts.update(dict.fromkeys(used, positions))
        elif used and next(tensors(output), None) is not None:
            self.unknown.update(used)
        return output
