"""Per-sample gradient norms and inner products in one forward and backward pass.

What layers see gives them without a per-sample gradient (`_layer_gradients`), once it is known
where the samples lie in it (`_layouts`); parameters that no formula covers go through `vmap`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from undertow.measure._kinds import check_objective
from undertow.measure.noise._forward import Forward, Marked
from undertow.measure.noise._gathering import Gathering, Inners, Kept, Squares
from undertow.measure.noise._layer_gradients import Written, wide
from undertow.measure.noise._layouts import layouts_of
from undertow.measure.noise._sites import Site
from undertow.measure.noise._written_down import written_down
from undertow.objective import EmpiricalRisk, Objective, Tensors, dense, taken


@dataclass(frozen=True, eq=False)
class PerSampleNorms:
    """Norms of the per-sample gradients g_i, which average to the objective's gradient.

    Attributes:
        norms: ||g_i||, in the order of the data.
        squares: ||g_i||^2 of each parameter alone, by its name; they add up to norms^2.
        vmapped: parameters that no layer's formula covers: their per-sample gradients were
            written down by `vmap`, a microbatch at a time, which is slower; or one after the
            other where it cannot map the model (recurrent layers), which is slower still.
        gradient: the objective's gradient, which comes with them.
        passes: over the data: 1, and 1 more (dearer) where a parameter is vmapped.
    """

    norms: Float64[Tensor, " samples"]
    squares: Mapping[str, Float64[Tensor, " samples"]]
    vmapped: tuple[str, ...]
    gradient: Float[Tensor, " params"]
    passes: int

    def __repr__(self) -> str:
        quartiles = torch.quantile(self.norms, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        low, middle, high = quartiles.tolist()
        return (
            f"Gradient norms of {len(self.norms):,} samples: median {middle:.4g}, half of them "
            f"between {low:.4g} and {high:.4g}; {said_of(self.vmapped)}."
        )


def said_of(vmapped: tuple[str, ...]) -> str:
    """Which parameters needed per-sample gradients, in words."""
    if not vmapped:
        return "no per-sample gradient was written down"
    return f"the per-sample gradients of {_few(vmapped)} were written down"


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def per_sample_gradient_norms(objective: Objective) -> PerSampleNorms:
    """The norm of every sample's gradient, in about the time of one gradient.

    g_i = (n / C) grad s_i, where s_i is what sample i adds to the sum of the loss and C the loss's
    denominator, so that L's gradient is exactly their mean: for a plain mean over samples g_i is
    the gradient of sample i's loss; a class weight multiplies it, and an ignored sample has 0.

    For a linear layer ||sum_t delta_t a_t^T||^2 comes from its inputs a and the gradients delta at
    its outputs, by Gram matrices over t or by the product, whichever is cheaper; likewise for
    convolutions over patches, embeddings, batch, layer, group and RMS norms, and attention.

    Raises:
        ValueError: if the samples of a batch influence each other (a loss that is no average,
            attention over samples, batch statistics in eval mode), or as `Objective.gradient`.
    """
    sweep = sweep_samples(objective)
    total = torch.stack(list(sweep.squares.values())).sum(0)
    return PerSampleNorms(
        total.sqrt(), sweep.squares, sweep.vmapped, sweep.gradient, 1 + bool(sweep.vmapped)
    )


@dataclass(frozen=True, eq=False)
class Sweep:
    """Squared norms of per-sample gradients, parameter by parameter, and the mean gradient.

    `weights` are the samples' shares in the loss's denominator, of mean one; `scale` takes the
    gradient of a sample's part of the sum to g_i.
    """

    squares: dict[str, Float64[Tensor, " samples"]]
    gradient: Float[Tensor, " params"]
    weights: Float64[Tensor, " samples"]
    scale: float
    vmapped: tuple[str, ...]


def sweep_samples(objective: Objective, kept: Kept | None = None) -> Sweep:
    """One pass over all samples, in which gradients of some are kept."""
    check_objective(objective)
    risk = objective.risk
    _check_statistics(risk.model)
    risk.check_by_outputs("gradients per sample")
    risk.check_samples()
    pieces: list[dict[str, Tensor]] = []
    counts: list[Tensor] = []
    vmapped: set[str] = set()
    reached = False

    def contribution(parameters: Tensors, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal reached
        samples = len(targets)
        rows, room = (None, 0) if kept is None else (kept.rows(samples), kept.room)
        found = Squares(risk.param_names, samples, targets.device, rows, room)
        batch = _Batch(risk, parameters, inputs, targets, found)
        count = risk.denominators(targets)
        reached |= not count.any() or any(g is not None for g in batch.gradients.values())
        parts = [
            torch.zeros_like(parameters[name]) if gradient is None else gradient
            for name, gradient in batch.gradients.items()
        ]
        pieces.append(found.values)
        counts.append(count.double())
        vmapped.update(batch.vmapped)
        if kept is not None:
            kept.add(found)
        return torch.cat([part.flatten() for part in parts]), count.sum()

    gradient = risk.mean(contribution)
    risk.check_samples()  # all targets have been seen by now
    risk.check_reached(reached)
    weights = torch.cat(counts)
    scale = float(1 / weights.mean())
    squares = {
        name: torch.cat([piece[name] for piece in pieces]) * scale**2 for name in risk.param_names
    }
    named = tuple(name for name in risk.param_names if name in vmapped)
    return Sweep(squares, gradient, weights * scale, scale, named)


def inner_products(
    objective: Objective, sweep: Sweep, chosen: Bool[Tensor, " samples"], kept: Kept
) -> tuple[dict[str, Float64[Tensor, " chosen"]], bool]:
    """<g_i, G> of the chosen samples, parameter by parameter, with G the mean gradient.

    And whether that took another pass over them, as not all of their gradients were kept.
    """
    risk = objective.risk
    sizes = dict(risk.model.named_parameters())
    shapes = [sizes[name].shape for name in risk.param_names]
    flat = sweep.gradient.split([shape.numel() for shape in shapes])
    current = risk.current()
    directions = {
        name: part.view(shape).to(wide(current[name]).dtype)
        for name, part, shape in zip(risk.param_names, flat, shapes, strict=True)
    }
    again = not kept.covers(chosen)
    with torch.no_grad():
        found = _inners_anew(risk, chosen, directions) if again else kept.inners(directions)
    return {name: values * sweep.scale for name, values in found.items()}, again


def _inners_anew(
    risk: EmpiricalRisk, chosen: Bool[Tensor, " samples"], directions: Mapping[str, Tensor]
) -> dict[str, Float64[Tensor, " chosen"]]:
    """Inner products of the chosen samples' gradients, by a pass over them."""
    pieces: list[dict[str, Tensor]] = []
    position = 0

    def compute(
        parameters: Tensors, inputs: Any, targets: Tensor
    ) -> tuple[dict[str, Tensor] | None, int]:
        here = chosen[position : position + len(targets)].to(targets.device)
        if not here.any():
            return None, len(targets)
        found = Inners(directions, int(here.sum()))
        _Batch(risk, parameters, taken(inputs, here), targets[here], found)
        return found.values, len(targets)

    def collect(result: tuple[dict[str, Tensor] | None, int]) -> None:
        nonlocal position
        piece, samples = result
        position += samples
        if piece is not None:
            pieces.append(piece)

    risk.sweep(compute, collect)
    return {name: torch.cat([piece[name] for piece in pieces]) for name in directions}


class _Batch:
    """One forward and backward pass over a microbatch, whose samples' gradients are gathered.

    A parameter whose uses are not those that the layouts list is vmapped.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        parameters: Tensors,
        inputs: Any,
        targets: Tensor,
        found: Gathering,
    ) -> None:
        self._layouts = layouts = layouts_of(risk, parameters, inputs, targets)
        self._found, self._samples = found, len(targets)
        self._marked: Marked | None = None
        self._wrong: set[str] = set()
        with torch.enable_grad():
            forward = Forward(
                risk,
                parameters,
                inputs,
                targets,
                self._collect,
                layouts.layout,
                traced=layouts.traceable,
            )
            slope = self._backward(risk.param_names, forward)
        capture = forward.capture
        self.vmapped = tuple(
            name
            for name, gradient in self.gradients.items()
            if gradient is not None
            and (
                name in self._wrong
                or capture.counts[name] != layouts.uses.get(name, 0)
                or not capture.used_once(name)
            )
        )
        for name in self.vmapped:
            found.forget(name)
        if self.vmapped:
            assert slope is not None
            start = 0
            for piece in written_down(risk, parameters, self.vmapped, inputs, targets, slope):
                here = slice(start, start + len(next(iter(piece.values()))))
                for name, part in piece.items():
                    found.take(name, Written(wide(part)), here)
                start = here.stop

    def _backward(self, names: tuple[str, ...], forward: Forward) -> Tensor | None:
        """Gradients in the parameters, with what is collected on the way; the outputs' slope."""
        total, outputs = forward.total, forward.outputs
        if not (total.requires_grad and outputs.requires_grad):
            self.gradients = dict.fromkeys(names)
            return None
        wrong = self._layouts.wrong(self._samples, forward.trace)
        self._wrong.update(wrong or ())
        if wrong is None:
            self._marked = forward.marked()
        wanted = [*forward.leaves.values(), outputs]
        *slopes, slope = torch.autograd.grad(total, wanted, allow_unused=True)
        if wrong is None:
            self._layouts.learn(self._samples, forward.trace, frozenset(self._wrong))
        self.gradients = {
            name: None if gradient is None else dense(gradient)
            for name, gradient in zip(names, slopes, strict=True)
        }
        return slope

    def _collect(self, site: Site, delta: Tensor) -> dict[str, Tensor]:
        """What the gradient at a site says, once it is known to be in order; sums over samples."""
        names = [name for name in site.names if name in self._layouts.layout]
        if self._wrong.issuperset(names):
            return {}
        axis = self._layouts.layout[names[0]].axis
        if self._marked is not None and not self._marked.fits(site, delta, axis):
            self._wrong.update(names)
            return {}
        totals = {
            use.name: self._found.take(use.name, use.gradients(delta), slice(0, self._samples))
            for use in site.uses(axis)
        }
        return {name: total for name, total in totals.items() if total is not None}


def _check_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name or 'the model'} normalises by the batch's statistics in eval mode too "
                "(track_running_stats=False), so a single sample has no gradient of its own; give "
                "it running statistics, or use a layer or group norm"
            )
