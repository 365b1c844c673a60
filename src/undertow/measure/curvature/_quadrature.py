"""Gauss quadrature of an operator's spectral measures, by Lanczos from many probes at once.

Golub and Meurant, Matrices, Moments and Quadrature, 2010: the nodes are the eigenvalues of the
tridiagonal matrix, the weights the squares of its eigenvectors' first entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.measure._lengths import inners, lengths
from undertow.measure.curvature._krylov import ROUNDING, Operator, affordable


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Gauss quadrature of the spectral measure of each probe: nodes and weights `[probes, steps]`.

    The weights of a probe sum to one.
    """

    nodes: Float64[Tensor, "probes steps"]
    weights: Float64[Tensor, "probes steps"]
    products: int


def lanczos_quadrature(
    operator: Operator, probes: Float[Tensor, "probes params"], steps: int
) -> Quadrature:
    """Lanczos with reorthogonalisation from every probe at once, one block product a step.

    Against all vectors, or the last ones that memory is meant for: where orthogonality is lost,
    nodes of the same place share its weight, and the quadrature is as good (Greenbaum, 1989).
    """
    count, size = probes.shape
    held = affordable(operator, count * steps, 2 * count) // count
    basis = probes.new_zeros(count, min(held, steps), size)
    diagonal = torch.zeros(count, steps, dtype=torch.float64)
    off_diagonal = torch.zeros(count, steps, dtype=torch.float64)
    current = probes / lengths(probes)[:, None].to(probes)
    eps = operator.rounding
    products = 0
    for step in range(steps):
        basis[:, step % held] = current
        image = operator.multiply(current)
        products += count
        diagonal[:, step] = inners(image, current).cpu()
        known = basis[:, : step + 1]
        for _ in range(2):
            image = image - (known @ image[:, :, None]).transpose(1, 2).matmul(known)[:, 0]
        left = lengths(image).cpu()
        scale = diagonal[:, : step + 1].abs().amax(1) + off_diagonal[:, : step + 1].amax(1)
        # An invariant subspace: the nodes so far are exact, and what follows has no weight.
        left = left.where(left > ROUNDING * eps * scale, 0.0)
        if step + 1 == steps or not (left > 0).any():
            break
        off_diagonal[:, step] = left
        scales = torch.where(left > 0, 1 / left, 0.0)
        current = image * scales[:, None].to(image)
    used = step + 1
    matrices = torch.diag_embed(diagonal[:, :used])
    sides = torch.diag_embed(off_diagonal[:, : used - 1], offset=1)
    nodes, vectors = torch.linalg.eigh(matrices + sides + sides.transpose(1, 2))
    return Quadrature(nodes, vectors[:, 0].square(), products)
