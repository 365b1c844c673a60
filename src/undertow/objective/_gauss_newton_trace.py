"""The exact trace of a Gauss-Newton matrix with few outputs, without the matrix.

tr(sum_i J_i^T H_i J_i) = sum_i sum_c lambda_ic ||J_i^T u_ic||^2, where lambda_ic and u_ic are the
eigenpairs of the loss's Hessian H_i in the outputs of sample i.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.objective._evaluation import Tensors
from undertow.objective._independence import mixing
from undertow.objective._inputs import leaves, over_tensors, taken
from undertow.objective._linearization import Linearization, load_forward_mode, second_order
from undertow.objective._module import dense, out_of_memory
from undertow.objective._risk import EmpiricalRisk

# Gradients of single samples are held so many bytes at a time.
_GRADIENT_BYTES = 2**26
# Outputs and slopes of a sample alone and in its batch agree so far, unless samples mix.
_ALONE = 1e-4
# Samples whose slopes are compared, which takes their gradients in memory.
_PROBED = 2


class _NotPossible(Exception):
    """The model cannot be taken sample by sample."""


def gauss_newton_trace(risk: EmpiricalRisk, max_outputs: int) -> tuple[Tensor, Tensor, int] | None:
    """The trace of the summed loss's matrix, the denominator, and the outputs per sample.

    None where a sample has more outputs than `max_outputs`, samples depend on each other, or the
    model cannot be mapped over samples.
    """
    risk.check_by_outputs("the trace of a Gauss-Newton matrix")
    if mixing(risk):
        return None
    tensors = risk.copies()
    leaves = tuple(tensors[name].requires_grad_() for name in risk.param_names)
    found: list[tuple[Tensor, Tensor, int]] = []
    probed = False

    def compute(tensors: Tensors, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor, int]:
        part = Linearization(
            lambda leaves: risk.logits_and_sum(
                {**tensors, **dict(zip(risk.param_names, leaves, strict=True))}, inputs, targets
            ),
            leaves,
            "ggn",
            lambda outputs: risk.output_product(outputs, targets),
        )
        hessians = part.output_hessians(max_outputs)
        if hessians is None:
            raise _NotPossible
        outputs, curvature = hessians
        nonlocal probed
        if not probed:
            part.check_differentiable(outputs_only=True)
            _check_alone(risk, tensors, inputs, targets, outputs)
            probed = True
        values, vectors = torch.linalg.eigh(curvature)
        norms = _slope_norms(risk, tensors, inputs, outputs, vectors.transpose(1, 2))
        total = (values.double() * norms.double()).sum()
        return total, risk.denominators(targets).sum(), outputs.shape[1]

    try:
        with risk.evaluating(), second_order():
            risk.sweep(compute, found.append, tensors)
    except _NotPossible:
        return None
    totals, counts, sizes = zip(*found, strict=True)
    return torch.stack(totals).sum(), torch.stack(counts).sum(), sizes[0]


def _check_alone(
    risk: EmpiricalRisk,
    tensors: Tensors,
    inputs: Any,
    targets: Tensor,
    outputs: Float[Tensor, "samples outputs"],
) -> None:
    """Compare gradients of single samples, mapped over, with those of their batch by autograd.

    Outputs alone do not tell where they are zero, as of a last layer that starts there; and not
    every derivative is mapped over directions rightly.
    """
    few = slice(0, _PROBED)
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(len(outputs[few]), 3, outputs.shape[1], generator=generator).to(outputs)
    chosen = taken(inputs, few)
    alone = _by_sample(risk, tensors, chosen, draw, lambda gradients: gradients)[1]
    names = risk.param_names
    leaves = {name: tensors[name].detach().requires_grad_() for name in names}
    with torch.enable_grad():
        logits = risk.logits({**tensors, **leaves}, chosen)
    for direction in range(draw.shape[1]):
        cotangent = draw[:, direction].reshape(logits.shape)
        together = torch.autograd.grad(
            logits, list(leaves.values()), cotangent, retain_graph=True, allow_unused=True
        )
        for name, slope in zip(names, together, strict=True):
            found = alone[name][:, direction].sum(0)
            expected = torch.zeros_like(found) if slope is None else dense(slope)
            if torch.linalg.norm(found - expected) > _ALONE * torch.linalg.norm(expected):
                raise _NotPossible


def _slope_norms(
    risk: EmpiricalRisk,
    tensors: Tensors,
    inputs: Any,
    outputs: Float[Tensor, "samples outputs"],
    cotangents: Float[Tensor, "samples directions outputs"],
) -> Float[Tensor, "samples directions"]:
    """||J_i^T u||^2 of each sample and each of its cotangents."""

    def squares(gradients: dict[str, Tensor]) -> Tensor:
        parts = [
            gradient.reshape(len(gradient), gradient[0].numel()).square().sum(1)
            for gradient in gradients.values()
        ]
        return torch.stack(parts).sum(0)

    values, norms = _by_sample(risk, tensors, inputs, cotangents, squares)
    if torch.linalg.norm(values - outputs) > _ALONE * torch.linalg.norm(outputs):
        raise _NotPossible  # such as batch norm by the batch's own statistics
    return norms


def _by_sample(
    risk: EmpiricalRisk,
    tensors: Tensors,
    inputs: Any,
    cotangents: Float[Tensor, "samples directions outputs"],
    reduce: Callable[[dict[str, Tensor]], Any],
) -> tuple[Float[Tensor, "samples outputs"], Any]:
    """Outputs of each sample alone, and what `reduce` makes of the gradients J_i^T u."""
    names = risk.param_names
    points = {name: tensors[name].detach() for name in names}
    if not all(isinstance(part, Tensor) for _, part in leaves(inputs)):
        raise _NotPossible

    def alone(sample: Any, directions: Tensor) -> tuple[Tensor, Any]:
        single = taken(sample, None)

        def output(points: dict[str, Tensor]) -> Tensor:
            return risk.logits({**tensors, **points}, single).flatten()

        value, pull = torch.func.vjp(output, points)[:2]
        (gradients,) = torch.func.vmap(pull)(directions)
        return value, reduce(gradients)

    size = sum(point.numel() for point in points.values())
    row = max(1, size * cotangents.shape[1] * cotangents.element_size())
    chunk = max(1, _GRADIENT_BYTES // row)
    load_forward_mode()
    try:
        values, reduced = torch.func.vmap(alone, chunk_size=chunk)(
            over_tensors(lambda part: part, inputs), cotangents
        )
    except (RuntimeError, ValueError) as error:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        raise _NotPossible from error
    return values, reduced
