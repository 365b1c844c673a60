"""The exact trace of a Gauss-Newton matrix with few outputs, without the matrix.

tr(sum_i J_i^T H_i J_i) = sum_i sum_c lambda_ic ||J_i^T u_ic||^2, where lambda_ic and u_ic are the
eigenpairs of the loss's Hessian H_i in the outputs of sample i.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from undertow._curvature import Linearization, load_forward_mode, second_order
from undertow._products import Source, Tensors

# Gradients of single samples are held so many bytes at a time.
_GRADIENT_BYTES = 2**26
# Outputs of a sample alone and in its batch agree so far, unless samples mix.
_ALONE = 1e-4


class _NotPossible(Exception):
    """The model cannot be taken sample by sample."""


def gauss_newton_trace(source: Source, max_outputs: int) -> tuple[Tensor, Tensor, int] | None:
    """The trace of the summed loss's matrix, the denominator, and the outputs per sample.

    None where a sample has more outputs than `max_outputs`, samples depend on each other, or the
    model cannot be mapped over samples.
    """
    tensors = source.copies()
    leaves = tuple(tensors[name].requires_grad_() for name in source.param_names)
    found: list[tuple[Tensor, Tensor, int]] = []

    def compute(tensors: Tensors, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor, int]:
        part = Linearization(
            lambda leaves: source.logits_and_sum(
                {**tensors, **dict(zip(source.param_names, leaves, strict=True))}, inputs, targets
            ),
            leaves,
            "ggn",
            lambda outputs: source.output_product(outputs, targets),
        )
        hessians = part.output_hessians(max_outputs)
        if hessians is None:
            raise _NotPossible
        outputs, curvature = hessians
        values, vectors = torch.linalg.eigh(curvature)
        norms = _slope_norms(source, tensors, inputs, outputs, vectors.transpose(1, 2))
        total = (values.double() * norms.double()).sum()
        return total, source.count(targets), outputs.shape[1]

    try:
        with source.evaluating(), second_order():
            source.sweep(compute, found.append, tensors)
    except _NotPossible:
        return None
    totals, counts, sizes = zip(*found, strict=True)
    return torch.stack(totals).sum(), torch.stack(counts).sum(), sizes[0]


def _slope_norms(
    source: Source,
    tensors: Tensors,
    inputs: Any,
    outputs: Float[Tensor, "samples outputs"],
    cotangents: Float[Tensor, "samples directions outputs"],
) -> Float[Tensor, "samples directions"]:
    """||J_i^T u||^2 of each sample and each of its cotangents."""
    names = source.param_names
    points = {name: tensors[name].detach() for name in names}
    tree = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
    if not all(isinstance(part, Tensor) for part in tree.values()):
        raise _NotPossible

    def alone(sample: dict[str, Tensor], directions: Tensor) -> tuple[Tensor, Tensor]:
        single = {name: part[None] for name, part in sample.items()}

        def output(points: dict[str, Tensor]) -> Tensor:
            given = single if isinstance(inputs, Mapping) else single[""]
            return source.logits({**tensors, **points}, given).flatten()

        value, pull = torch.func.vjp(output, points)[:2]
        (gradients,) = torch.func.vmap(pull)(directions)
        squares = [gradient.flatten(1).square().sum(1) for gradient in gradients.values()]
        return value, torch.stack(squares).sum(0)

    size = sum(point.numel() for point in points.values())
    row = max(1, size * cotangents.shape[1] * cotangents.element_size())
    chunk = max(1, _GRADIENT_BYTES // row)
    load_forward_mode()
    try:
        values, norms = torch.func.vmap(alone, chunk_size=chunk)(tree, cotangents)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, RuntimeError) and source.out_of_memory(error):
            raise
        raise _NotPossible from error
    if torch.linalg.norm(values - outputs) > _ALONE * torch.linalg.norm(outputs):
        raise _NotPossible  # such as batch norm by the batch's own statistics
    return norms
