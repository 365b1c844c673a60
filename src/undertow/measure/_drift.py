"""How far the clients of Local SGD drift apart between two averagings, each on its own data.

ReLU gradients are not Lipschitz, yet ||grad L_k(w_k) - grad L_k(w_bar)|| stays small where few
activation signs flip (Deng, Kamani and Mahdavi, arXiv 2107.10868).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from undertow.measure._evaluation import evaluating
from undertow.measure._kinds import check_model, check_objective
from undertow.measure._pieces import SIGNED, operation_name
from undertow.objective import EmpiricalRisk, Objective, gradient, original, unfused


@dataclass(frozen=True, eq=False)
class LocalDrift:
    """Drift of each client's parameters w_k from their average w_bar, on the client's own data.

    Attributes:
        gradient_drift: ||grad L_k(w_k) - grad L_k(w_bar)||.
        relative_drift: the same over `gradient_norm`; NaN or infinite where that is zero.
        gradient_norm: ||grad L_k(w_bar)||.
        parameter_distance: ||w_k - w_bar||, over all parameters.
        flip_fraction: the share of ReLU activation signs that differ between w_k and w_bar, over
            all samples and units; NaN where the network has no ReLU.
    """

    gradient_drift: Float64[Tensor, " clients"]
    relative_drift: Float64[Tensor, " clients"]
    gradient_norm: Float64[Tensor, " clients"]
    parameter_distance: Float64[Tensor, " clients"]
    flip_fraction: Float64[Tensor, " clients"]

    def __repr__(self) -> str:
        low, high = float(self.flip_fraction.min()), float(self.flip_fraction.max())
        flips = (
            "no ReLU" if math.isnan(low) else f"activation signs flipped {low:.3%} to {high:.3%}"
        )
        return (
            f"LocalDrift of {len(self.gradient_norm)} clients from their average: relative "
            f"gradient drift {float(self.relative_drift.min()):.4g} to "
            f"{float(self.relative_drift.max()):.4g}, {flips}; in eval mode."
        )


def local_drift(models: Sequence[nn.Module], objectives: Sequence[Objective]) -> LocalDrift:
    """Gradient drift and flipped activation signs of Local SGD's clients, before they are averaged.

    w_bar is the plain mean of the clients' parameters. It is put into a copy of client k's module,
    so that buffers (batch-norm statistics, frozen as in eval mode) are the client's own at both
    points: only the parameters differ. A sign is that of the input of a ReLU, LeakyReLU or PReLU,
    module or function. Costs two gradients and two forward passes over each client's data; the
    modules are left as found.

    Args:
        models: the clients' networks, of one architecture, at w_k.
        objectives: client k's loss and data; also which parameters the gradient is taken in. The
            model that an objective holds is not read: `models[k]` takes its place.

    Raises:
        ValueError: fewer than two clients, as many models as objectives are not given, or their
            parameters differ in name or shape.
        TypeError: a model or an objective is none.
    """
    _check(models, objectives)
    models = [original(model) for model in models]
    average = {
        name: torch.stack([p.detach().double() for p in parameters]).mean(0)
        for name, parameters in _aligned(models).items()
    }
    rows = []
    for model, objective in zip(models, objectives, strict=True):
        rows.append(_client(model, objective, average))
    columns = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return LocalDrift(*columns)


def _client(
    model: nn.Module, objective: Objective, average: dict[str, Tensor]
) -> tuple[float, float, float, float, float]:
    risk = EmpiricalRisk(model, objective.loss, _Batches(objective), params=objective.param_names)
    tensors = risk.own()
    center = risk.placed(
        tensors | {name: mean.to(tensors[name].dtype) for name, mean in average.items()}
    )
    own, mean = (gradient(one).double() for one in (risk, center))
    distance = torch.stack(
        [(tensors[name].double() - mean).norm() for name, mean in average.items()]
    ).norm()
    flipped = total = 0
    for batch in risk.batches():
        signs, central = (_signs(one, batch) for one in (risk, center))
        for sign, other in zip(signs, central, strict=True):
            flipped += int((sign != other).sum())
            total += sign.numel()
    drift, norm = (own - mean).norm(), mean.norm()
    fraction = flipped / total if total else float("nan")
    return float(drift), float(drift / norm), float(norm), float(distance), fraction


class _Batches:
    """An objective's data, to be read again and again by another one."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def __iter__(self) -> Iterator[Any]:
        return iter(self._objective.batches())


def _signs(risk: EmpiricalRisk, batch: Any) -> list[Tensor]:
    """Which ReLU inputs are positive on one batch, in the order in which they are computed."""
    with evaluating(risk), unfused():  # the fused kernel would hide the ReLU
        tensors = risk.own()
        with _SignWatcher() as watcher:
            risk.outputs(tensors, *batch)
    return watcher.signs


class _SignWatcher(TorchDispatchMode):
    """Notes the signs of every ReLU's input."""

    def __init__(self) -> None:
        super().__init__()
        self.signs: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if operation_name(func) in SIGNED:
            self.signs.append(args[0] > 0)
        return func(*args, **(kwargs or {}))


def _check(models: Sequence[nn.Module], objectives: Sequence[Objective]) -> None:
    if len(models) < 2 or len(models) != len(objectives):
        raise ValueError(
            "models and objectives must be as many, and at least two, got "
            f"{len(models)} and {len(objectives)}"
        )
    for index, (model, objective) in enumerate(zip(models, objectives, strict=True)):
        check_model(model, f"models[{index}]")
        check_objective(objective, f"objectives[{index}]")


def _aligned(models: Sequence[nn.Module]) -> dict[str, list[nn.Parameter]]:
    """The parameters of all models by name."""
    first = dict(original(models[0]).named_parameters())
    for index, model in enumerate(models[1:], start=1):
        shapes = {name: parameter.shape for name, parameter in original(model).named_parameters()}
        if shapes != {name: parameter.shape for name, parameter in first.items()}:
            different = next(
                n
                for n in [*first, *shapes]
                if (n in first) != (n in shapes) or first[n].shape != shapes[n]
            )
            raise ValueError(
                f"models must be of one architecture; parameter {different} of models[{index}] is "
                "not that of models[0]"
            )
    named = [dict(original(model).named_parameters()) for model in models]
    return {name: [parameters[name] for parameters in named] for name in first}
