"""Per-sample gradient norms and inner products in one forward and backward pass.

What layers see gives them without a per-sample gradient (`_layer_gradients`). A small probe first
compares every parameter with plain autograd; those that no formula covers go through `vmap`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from undertow.measure._nested import taken
from undertow.measure.noise._capture import Capture, Layouts
from undertow.measure.noise._layer_gradients import Use, square_rows, wide
from undertow.objective import EmpiricalRisk, Objective, Tensors, out_of_memory

# Per-sample gradients that have to be written down are held for so many bytes at a time.
_VMAP_BYTES = 2**25
_PROBE_SAMPLES = 2


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
        ValueError: if the samples of a batch influence each other (batch statistics in eval mode),
            or as `Objective.gradient` does.
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
    layouts: Layouts


def sweep_samples(objective: Objective) -> Sweep:
    """One pass over all samples."""
    risk = objective.risk
    _check_statistics(risk.model)
    risk.check_by_outputs("gradients per sample")
    pieces: list[dict[str, Tensor]] = []
    counts: list[Tensor] = []
    vmapped: set[str] = set()
    layouts: list[Layouts] = []
    reached = False

    def contribution(parameters: Tensors, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal reached
        if not layouts:
            layouts.append(_probe(risk, parameters, inputs, targets))
        batch = _Batch(risk, parameters, inputs, targets, layouts[0], None)
        count = risk.denominators(targets)
        reached |= not count.any() or any(g is not None for g in batch.gradients.values())
        parts = [
            torch.zeros_like(parameters[name]) if gradient is None else gradient
            for name, gradient in batch.gradients.items()
        ]
        pieces.append(batch.values)
        counts.append(count.double())
        vmapped.update(batch.vmapped)
        return torch.cat([part.flatten() for part in parts]), count.sum()

    gradient = risk.mean(contribution)
    risk.check_reached(reached)
    weights = torch.cat(counts)
    scale = float(1 / weights.mean())
    squares = {
        name: torch.cat([piece[name] for piece in pieces]) * scale**2 for name in risk.param_names
    }
    named = tuple(name for name in risk.param_names if name in vmapped)
    return Sweep(squares, gradient, weights * scale, scale, named, layouts[0])


def inner_products(
    objective: Objective, sweep: Sweep, chosen: Bool[Tensor, " samples"]
) -> dict[str, Float64[Tensor, " chosen"]]:
    """<g_i, G> of the chosen samples, parameter by parameter, with G the mean gradient."""
    risk = objective.risk
    sizes = dict(risk.model.named_parameters())
    shapes = [sizes[name].shape for name in risk.param_names]
    flat = sweep.gradient.split([shape.numel() for shape in shapes])
    directions = {
        name: part.view(shape)
        for name, part, shape in zip(risk.param_names, flat, shapes, strict=True)
    }
    pieces: list[dict[str, Tensor]] = []
    position = 0

    def compute(
        parameters: Tensors, inputs: Any, targets: Tensor
    ) -> tuple[dict[str, Tensor] | None, int]:
        here = chosen[position : position + len(targets)].to(targets.device)
        if not here.any():
            return None, len(targets)
        batch = _Batch(
            risk, parameters, taken(inputs, here), targets[here], sweep.layouts, directions
        )
        return batch.values, len(targets)

    def collect(result: tuple[dict[str, Tensor] | None, int]) -> None:
        nonlocal position
        piece, samples = result
        position += samples
        if piece is not None:
            pieces.append(piece)

    risk.sweep(compute, collect)
    return {
        name: torch.cat([piece[name] for piece in pieces]) * sweep.scale
        for name in risk.param_names
    }


class _Batch:
    """One forward and backward pass over a microbatch, and what it says of each sample.

    A parameter whose uses are not those that the layouts list is vmapped. With directions there
    are inner products in place of squares.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        parameters: Tensors,
        inputs: Any,
        targets: Tensor,
        layouts: Layouts,
        directions: Mapping[str, Tensor] | None,
    ) -> None:
        names, samples = risk.param_names, len(targets)
        zeros = torch.zeros(samples, dtype=torch.float64, device=targets.device)
        self.values = dict.fromkeys(names, zeros)

        def collect(use: Use, delta: Tensor) -> None:
            found = (
                use.squares(delta)
                if directions is None
                else use.inners(delta, directions[use.name])
            )
            self.values[use.name] = self.values[use.name] + found

        with torch.enable_grad():
            leaves = {name: parameters[name].detach().requires_grad_() for name in names}
            with Capture(leaves, samples, collect, layouts.layout) as capture:
                outputs, total = _forward(risk, parameters, leaves, inputs, targets)
            found: tuple[Tensor | None, ...] = (None,) * (len(leaves) + 1)
            if total.requires_grad and outputs.requires_grad:
                wanted = [*leaves.values(), outputs]
                found = torch.autograd.grad(total, wanted, allow_unused=True)
        self.gradients = dict(zip(names, found[:-1], strict=True))
        self.vmapped = tuple(
            name
            for name, gradient in self.gradients.items()
            if gradient is not None
            and (capture.counts[name] != layouts.uses.get(name, 0) or not capture.used_once(name))
        )
        if self.vmapped:
            assert found[-1] is not None
            written = _written_down(risk, parameters, self.vmapped, inputs, targets, found[-1])
            pieces = [
                {
                    name: square_rows(wide(part))
                    if directions is None
                    else (wide(part).flatten(1) @ wide(directions[name]).flatten()).double()
                    for name, part in piece.items()
                }
                for piece in written
            ]
            for name in self.vmapped:
                self.values[name] = torch.cat([piece[name] for piece in pieces])


def _forward(
    risk: EmpiricalRisk, parameters: Tensors, leaves: Tensors, inputs: Any, targets: Tensor
) -> tuple[Tensor, Tensor]:
    outputs, total = risk.logits_and_sum({**parameters, **leaves}, inputs, targets)
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != targets.shape[:1]:
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise TypeError(
            "gradients per sample need a model whose output (or its logits) is a tensor with the "
            f"{len(targets)} samples along its first axis, got {found}"
        )
    return outputs, total


def _written_down(
    risk: EmpiricalRisk,
    parameters: Tensors,
    names: tuple[str, ...],
    inputs: Any,
    targets: Tensor,
    delta: Tensor,
) -> Iterator[dict[str, Float[Tensor, "samples ..."]]]:
    """Per-sample gradients of some parameters, for as many samples at a time as memory allows."""
    rest = {name: parameters[name].detach() for name in names}

    def gradient(one_input: Any, one_target: Tensor, one_delta: Tensor) -> dict[str, Tensor]:
        def forward(own: dict[str, Tensor]) -> Tensor:
            outputs = risk.logits({**parameters, **own}, taken(one_input, None), one_target[None])
            return outputs.reshape(one_delta.shape)

        (found,) = vjp(forward, rest)[1](one_delta)
        return found

    def one_by_one(here: slice) -> dict[str, Tensor]:
        each = []
        for index in range(*here.indices(len(delta))):
            one = slice(index, index + 1)
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in rest.items()}
            with torch.enable_grad():
                outputs = risk.logits({**parameters, **leaves}, taken(inputs, one), targets[one])
            each.append(
                torch.autograd.grad(outputs, list(leaves.values()), delta[one], allow_unused=True)
            )
        return {
            name: torch.stack([torch.zeros_like(rest[name]) if g is None else g for g in found])
            for name, found in zip(names, zip(*each, strict=True), strict=True)
        }

    held = sum(tensor.numel() * tensor.element_size() for tensor in rest.values())
    step = max(1, _VMAP_BYTES // held)
    mapped = True
    # The math kernel of attention is the one that vmap can transform.
    with sdpa_kernel(SDPBackend.MATH):
        for start in range(0, len(delta), step):
            here = slice(start, start + step)
            if mapped:
                try:
                    with warnings.catch_warnings():
                        # Functions that vmap runs one by one; the result names them anyway.
                        warnings.filterwarnings("ignore", "There is a performance drop")
                        yield vmap(gradient, in_dims=(_axes(inputs), 0, 0))(
                            taken(inputs, here), targets[here], delta[here]
                        )
                    continue
                except RuntimeError as error:
                    if out_of_memory(error):
                        raise
                    mapped = False  # recurrent layers, or a flow that depends on values
            yield one_by_one(here)


def _axes(inputs: Any) -> Any:
    """Where vmap finds the samples."""
    if isinstance(inputs, Mapping):
        return {name: _axes(part) for name, part in inputs.items()}
    return 0 if isinstance(inputs, Tensor) else None


def _probe(risk: EmpiricalRisk, parameters: Tensors, inputs: Any, targets: Tensor) -> Layouts:
    """The layouts of the parameters whose formulas give what autograd gives for two samples.

    A formula is wrong where a parameter is used in another way too, or the samples lie elsewhere.
    A random linear function of the outputs takes the place of the loss, which may ignore samples.
    """
    index = torch.arange(_PROBE_SAMPLES, device=targets.device) % len(targets)
    zeros = torch.zeros(_PROBE_SAMPLES, dtype=torch.float64, device=targets.device)
    found = dict.fromkeys(risk.param_names, zeros)

    def collect(use: Use, delta: Tensor) -> None:
        found[use.name] = found[use.name] + use.squares(delta)

    leaves = {name: parameters[name].detach().requires_grad_() for name in risk.param_names}
    with torch.enable_grad():
        with Capture(leaves, _PROBE_SAMPLES, collect) as capture:
            outputs, _ = _forward(risk, parameters, leaves, taken(inputs, index), targets[index])
        if not outputs.requires_grad:
            return Layouts({}, {})
        draw = torch.randn(outputs.shape[1:], generator=torch.Generator().manual_seed(0))
        sums = (outputs * draw.to(outputs)).flatten(1).sum(1) if outputs.ndim > 1 else outputs
        each = []
        for alone in sums:  # each adds what is collected of that sample, and zeros
            gradients = torch.autograd.grad(
                alone, list(leaves.values()), retain_graph=True, allow_unused=True
            )
            each.append(
                [zeros[0] if g is None else square_rows(wide(g[None]))[0] for g in gradients]
            )
    expected = torch.stack([torch.stack(squares) for squares in each])
    precision = max(torch.finfo(leaf.dtype).eps for leaf in leaves.values())
    floor = expected.sum(1) * (100 * precision) ** 2
    agreed = {
        name
        for name, squares in zip(leaves, expected.unbind(1), strict=True)
        if name in capture.layouts
        and capture.used_once(name)
        and torch.all((found[name] - squares).abs() <= precision**0.5 * squares + floor)
    }
    return Layouts(
        {name: layout for name, layout in capture.layouts.items() if name in agreed},
        {name: count for name, count in capture.counts.items() if name in agreed},
    )


def _check_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name or 'the model'} normalises by the batch's statistics in eval mode too "
                "(track_running_stats=False), so a single sample has no gradient of its own; give "
                "it running statistics, or use a layer or group norm"
            )
