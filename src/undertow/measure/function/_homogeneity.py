"""Is f(c theta; x) = c^L f(theta; x), and for which L? (the setting of arXiv 1906.05890)

Measured by scaling the parameters: of all layers together and, if asked, of each layer alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from undertow.measure._evaluation import evaluating, outputs_of, state_of
from undertow.measure._kinds import check_objective
from undertow.objective import Objective, taken, whole_number

# Near one, so that networks of thousands of layers stay within float64's range.
_SCALES = (0.7, 0.85, 1.2, 1.4)
_LAYER_SCALE = 1.4
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d)


@dataclass(frozen=True)
class Homogeneity:
    """How a network's outputs grow along the ray c theta.

    Attributes:
        degree: L, the least-squares slope of log ||f(c theta)|| on log c; a whole number where
            that fits as well.
        stderr: standard error of the slope over the scales: zero for a power law.
        deviation: max over c of ||f(c theta) - c^L f(theta)|| / ||c^L f(theta)||.
        homogeneous: whether the deviation is within the tolerance.
        layer_degrees: where asked for, the degree in the parameters of each module alone, NaN
            where there is none.
        samples: how many samples the outputs were compared on.
        passes: forward passes over these samples.
        notes: what may break homogeneity, or hide that it is broken.
    """

    degree: float
    stderr: float
    deviation: float
    homogeneous: bool
    layer_degrees: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    passes: int = 0
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        where = f"on {self.samples:,} samples ({self.passes} passes)"
        if self.homogeneous:
            text = (
                f"Homogeneous of degree {self.degree:.6g}: f(c theta) = c^{self.degree:.6g} "
                f"f(theta) up to {self.deviation:.1e} relative, {where}."
            )
        else:
            text = (
                f"Not homogeneous: f(c theta) misses c^L f(theta) by {self.deviation:.1e} relative "
                f"at the best L = {self.degree:.4g} ± {self.stderr:.2g}, {where}."
            )
        return "\n".join([text, *(f"  note: {note}" for note in self.notes)])


def homogeneity(
    objective: Objective,
    *,
    tolerance: float = 1e-6,
    samples: int = 1024,
    layers: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Homogeneity:
    """The degree L with f(c theta; x) = c^L f(theta; x) for c > 0, or that there is none.

    theta are the objective's parameters (its `params`); others and buffers stay as they are. A
    bias beyond the first layer, batch norm with frozen statistics and identity shortcuts break
    homogeneity. Only the ray through theta is seen: a bias that is zero breaks nothing there, and
    a note says so.

    Args:
        objective: its loss and targets play no part.
        tolerance: largest relative deviation that still counts as homogeneous.
        samples: use the first so many samples.
        layers: measure the degree in each module's own parameters too, by a pass for each.
        dtype: precision of the evaluation.

    Raises:
        ValueError: if tolerance is not between 0 and 1, samples < 1, or all outputs are zero (any
            degree fits).
        TypeError: if the model returns no tensor, or samples is no whole number.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie strictly between 0 and 1, got {tolerance}")
    whole_number("samples", samples, least=1)
    check_objective(objective)
    model = objective.model
    chosen = set(objective.param_names)
    risk = objective.risk.at(dtype)
    with evaluating(risk):
        state = state_of(risk)
        inputs = _first_inputs(objective, samples)

        def outputs(scale: float, names: Iterable[str]) -> Tensor:
            scaled = state | {name: scale * state[name] for name in names}
            parts = [outputs_of(risk, scaled, part) for part in inputs]
            return torch.cat([part.reshape(len(part), -1) for part in parts]).double()

        reference = outputs(1.0, ())
        if not reference.any():
            raise ValueError(
                "all outputs are zero, so every degree fits; homogeneity needs parameters and "
                "samples with a non-zero output"
            )
        rays = {scale: outputs(scale, chosen) for scale in _SCALES}
        degree, stderr = _slope(reference, rays, tolerance)
        layer_degrees: dict[str, float] = {}
        for layer, names in _layers(objective).items() if layers else ():
            alone = {_LAYER_SCALE: outputs(_LAYER_SCALE, names)}
            found, _ = _slope(reference, alone, tolerance)
            fits = _deviation(reference, alone, found) <= tolerance
            layer_degrees[layer] = found if fits else math.nan
    deviation = _deviation(reference, rays, degree)
    return Homogeneity(
        degree=degree,
        stderr=stderr,
        deviation=deviation,
        homogeneous=deviation <= tolerance,
        layer_degrees=layer_degrees,
        samples=len(reference),
        passes=1 + len(_SCALES) + len(layer_degrees),
        notes=_notes(model, {name: state[name] for name in objective.param_names}),
    )


def _first_inputs(objective: Objective, samples: int) -> list[Any]:
    found: list[Any] = []
    for inputs, targets in objective.batches():
        found.append(taken(inputs, slice(samples)))
        samples -= len(targets)
        if samples <= 0:
            break
    return found


def _slope(
    reference: Tensor, rays: Mapping[float, Tensor], tolerance: float
) -> tuple[float, float]:
    """Least squares through the origin of log ||f(c theta)|| / ||f(theta)|| on log c."""
    x = torch.tensor([math.log(scale) for scale in rays], dtype=torch.float64)
    if not all(ray.any() for ray in rays.values()):
        return math.nan, math.inf
    norms = [_log_norm(ray) for ray in rays.values()]
    y = torch.tensor(norms, dtype=torch.float64) - _log_norm(reference)
    slope = float(x @ y / (x @ x))
    residual = float((y - slope * x).square().sum())
    stderr = math.sqrt(residual / max(1, len(x) - 1) / float(x @ x))
    nearest = float(round(slope))
    return (nearest if abs(slope - nearest) <= tolerance else slope), stderr


def _deviation(reference: Tensor, rays: Mapping[float, Tensor], degree: float) -> float:
    if math.isnan(degree):
        return math.inf
    # Over the largest output, whose squares might leave float64's range, as might c^L.
    size = float(reference.abs().max())
    unit = reference / size
    found = []
    for scale, ray in rays.items():
        top = float(ray.abs().max())
        if top == 0:
            return math.inf
        exponent = math.log(top) - math.log(size) - degree * math.log(scale)
        if exponent > 700:
            return math.inf
        found.append(float((math.exp(exponent) * (ray / top) - unit).norm() / unit.norm()))
    return max(found)


def _log_norm(outputs: Tensor) -> float:
    top = float(outputs.abs().max())
    return math.log(top) + math.log(float((outputs / top).norm()))


def _layers(objective: Objective) -> dict[str, list[str]]:
    """The objective's parameters by the module that owns them."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in objective.param_names:
        groups[name.rpartition(".")[0]].append(name)
    return dict(groups)


def _notes(model: nn.Module, parameters: Mapping[str, Tensor]) -> tuple[str, ...]:
    notes = []
    zero = [name for name, tensor in parameters.items() if not tensor.any()]
    if zero:
        names = ", ".join(zero[:3]) + (f" and {len(zero) - 3} more" if len(zero) > 3 else "")
        notes.append(f"all zero here, so whether they break homogeneity is not seen: {names}")
    if any(isinstance(module, _NORMS) for module in model.modules()):
        notes.append(
            "normalisation layers: batch norm is measured with frozen statistics, and eps breaks "
            "scale invariance slightly"
        )
    return tuple(notes)
