"""Sharpness: the largest eigenvalues of the Hessian of the loss, or of its Gauss-Newton matrix.

Also as an optimizer feels it that divides by what is in its state (arXiv 2207.14484), and on the
sphere, for scale-invariant parameters (arXiv 2206.07085: eta ||.||^-2 lambda_1 ~ 2 at the edge of
stability).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.measure._arguments import check_rtol, or_new
from undertow.measure._lengths import inner, length, lengths
from undertow.measure.curvature._krylov import Curvature, Operator, curvature_operator
from undertow.measure.curvature._lanczos import largest_pairs
from undertow.measure.curvature._preconditioner import Preconditions, preconditioned
from undertow.objective import Objective, outside_inference_mode, whole_number

# |<gradient, w>| of a scale-invariant block, relative to ||gradient|| ||w||, up to rounding.
_INVARIANT = 1e-3


@dataclass(frozen=True, eq=False)
class Sharpness:
    """Extreme eigenpairs of a curvature matrix.

    Attributes:
        eigenvalues: the largest (or smallest) first.
        residuals: ||H v - lambda v||; an eigenvalue lies within this distance of each value.
        products: matrix-vector products spent.
        converged: whether every residual is within `rtol`.
        vectors: the eigenvectors, of unit length, as rows; with a preconditioner those of the
            symmetric P^-1/2 H P^-1/2, which is what `start` takes.
        edge: the eigenvalue at which the optimizer given as `preconditioner` is at the edge of
            stability (`predict.edge`); None without one.
        scale: the diagonal of P^-1/2; None for P = I.
    """

    eigenvalues: Float64[Tensor, " k"]
    residuals: Float64[Tensor, " k"]
    products: int
    converged: bool
    vectors: Float[Tensor, "k params"]
    edge: float | None = None
    scale: Float[Tensor, " params"] | None = None

    @property
    def directions(self) -> Float[Tensor, "k params"]:
        """The directions of unit length in which the weights swing: eigenvectors of P^-1 H."""
        moved = self.vectors if self.scale is None else self.vectors * self.scale
        return moved / lengths(moved)[:, None].to(moved)

    def __repr__(self) -> str:
        values = ", ".join(f"{value:.6g}" for value in self.eigenvalues.tolist())
        worst = float(self.residuals.max())
        state = "converged" if self.converged else "NOT converged"
        share = ""
        if self.edge is not None:
            share = f", {float(self.eigenvalues[0]) / self.edge:.3g} of the edge {self.edge:.6g}"
        return (
            f"Sharpness {values}{share} (residual at most {worst:.2g}), {state} after "
            f"{self.products} products; batch-norm statistics frozen, dropout off."
        )


@outside_inference_mode
def sharpness(
    objective: Objective,
    k: int = 1,
    rtol: float = 1e-3,
    *,
    curvature: Curvature = "hessian",
    which: Literal["largest", "smallest"] = "largest",
    preconditioner: Preconditions | None = None,
    start: Sharpness | Float[Tensor, "starts params"] | None = None,
    max_products: int = 1000,
    generator: torch.Generator | None = None,
) -> Sharpness:
    """The k largest eigenvalues of the curvature of L, with eigenvectors.

    Lanczos with reorthogonalisation, of long vectors where it would be missed, and thick restarts,
    until ||H v - lambda v|| <= rtol |lambda| for every pair; eigenvalues below rtol times the
    largest magnitude seen count as that large. For k > 1 a random direction is then followed for up
    to six products, to find eigenvalues of higher multiplicity; for fewer, once it would hold one
    that is missing with a probability of 99%.

    With an optimizer as `preconditioner` they are those of P^-1 H, found as those of the symmetric
    P^-1/2 H P^-1/2, and `edge` is where its rule puts the edge of stability (2207.14484):

    - P is what the optimizer divided by in its last step, as its state has it: for Adam
      (1 - beta1^t)(sqrt(v / (1 - beta2^t)) + eps), with amsgrad of the largest v; for SGD P = I.
      The running mean of gradients, or momentum, is no part of P but of the edge.
    - H is the Hessian of what it descends: with coupled weight decay, H + weight_decay I.
    - Where parameter groups differ in rate, momentum or decoupled decay, P of each is in the units
      of the group that holds the objective's first parameter: times the ratio of their edges. The
      first group's edge is then that of all, exactly so for the overshooting that it is the edge
      of.
    - Parameters of the optimizer that the objective does not have count as held still.

    Args:
        objective: what to differentiate.
        k: how many eigenpairs.
        rtol: of the residual, relative to the eigenvalue.
        curvature: the Hessian, or the Gauss-Newton matrix "ggn".
        which: the largest or the smallest, by sign and not by magnitude.
        preconditioner: an optimizer of `torch.optim` (SGD, Adam, AdamW, NAdam, RAdam, Adamax,
            RMSprop, Adagrad, Adadelta) or `train.optim` that holds the objective's parameters and
            has taken a step; or the diagonal of P by the names of the parameters, which has no
            edge.
        start: directions to start from, such as the last result along a trajectory.
        max_products: stop there, not converged.
        generator: for the start; by default the same on every call.

    Raises:
        TypeError: if `objective` or `start` is of another kind, k no whole number, or what the
            optimizer divides by is not known.
        ValueError: if k < 1 or exceeds the number of parameters, or another argument is out of
            its range; if a parameter is not in the optimizer or has no state yet; and as
            `Objective.hvp`.
    """
    operator = curvature_operator(objective, curvature)
    if preconditioner is None:
        return _extreme(operator, k, rtol, which, start, max_products, generator)
    under = preconditioned(operator, objective, preconditioner)
    found = _extreme(under.operator, k, rtol, which, start, max_products, generator)
    return replace(found, edge=under.edge, scale=under.scale)


@outside_inference_mode
def spherical_sharpness(
    objective: Objective,
    k: int = 1,
    rtol: float = 1e-3,
    *,
    blocks: Iterable[Iterable[str]] | None = None,
    curvature: Curvature = "hessian",
    which: Literal["largest", "smallest"] = "largest",
    start: Sharpness | Float[Tensor, "starts params"] | None = None,
    max_products: int = 1000,
    generator: torch.Generator | None = None,
) -> Sharpness:
    """The sharpness at w / ||w|| of a loss that does not depend on ||w|| (arXiv 2206.07085).

    L(c w) = L(w) makes the Hessian homogeneous of degree -2, so that at w / ||w|| it is
    ||w||^2 H(w): computed so, without moving the parameters. With several blocks, each
    scale-invariant by itself, D H(w) D with D the norm of each parameter's block.

    Batch norm makes the weights before it scale-invariant only while it normalises by the
    batch's own statistics: build it with `track_running_stats=False`, and give the data in one
    batch. A small `eps` of the normalisation is a deviation that this ignores.

    Args:
        objective: its parameters must all be scale-invariant; choose them by its `params`.
        k: as the other arguments, see `sharpness`.
        rtol: of the residual.
        blocks: names of the parameters in each block; None for all in one.
        curvature: "hessian" or "ggn".
        which: "largest" or "smallest".
        start: directions to start from.
        max_products: stop there.
        generator: for the start.

    Raises:
        ValueError: if the loss depends on a block's norm, a block is zero, or blocks do not
            divide up the parameters; and as `sharpness`.
    """
    operator = curvature_operator(objective, curvature)
    scale = block_norms(objective, blocks).to(operator.like)
    on_sphere = replace(
        operator, multiply=lambda vectors: operator.multiply(vectors * scale) * scale
    )
    return _extreme(on_sphere, k, rtol, which, start, max_products, generator)


def _extreme(
    operator: Operator,
    k: int,
    rtol: float,
    which: str,
    start: Sharpness | Tensor | None,
    max_products: int,
    generator: torch.Generator | None,
) -> Sharpness:
    if whole_number("k", k, least=1) > operator.size:
        raise ValueError(f"k must be at most the {operator.size} parameters, got {k}")
    check_rtol(rtol)
    if which not in ("largest", "smallest"):
        raise ValueError(f"which must be 'largest' or 'smallest', got {which!r}")
    if max_products < 1:
        raise ValueError(f"max_products must be at least 1, got {max_products!r}")
    sign = 1.0 if which == "largest" else -1.0
    signed = operator
    if which == "smallest":
        signed = replace(operator, multiply=lambda vectors: -operator.multiply(vectors))
    pairs = largest_pairs(
        signed,
        k,
        rtol=rtol,
        start=_checked_start(start, operator),
        max_products=max_products,
        generator=or_new(generator),
    )
    return Sharpness(
        sign * pairs.values, pairs.residuals, pairs.products, pairs.converged, pairs.vectors
    )


def _checked_start(start: Sharpness | Tensor | None, operator: Operator) -> Tensor | None:
    if start is None:
        return None
    vectors = start.vectors if isinstance(start, Sharpness) else start
    if not isinstance(vectors, Tensor):
        raise TypeError(f"start must be a Sharpness or a tensor [m, p], got {type(start).__name__}")
    if vectors.ndim != 2 or vectors.shape[1] != operator.size or len(vectors) == 0:
        raise ValueError(
            f"start must hold directions [m, {operator.size}], got {tuple(vectors.shape)}"
        )
    if not torch.isfinite(vectors).all():
        raise ValueError("start holds NaN or infinities")
    return vectors.detach().to(operator.like)


def block_norms(
    objective: Objective, blocks: Iterable[Iterable[str]] | None = None
) -> Float[Tensor, " params"]:
    """The norm of each parameter's block, of the weights as they are.

    Raises:
        ValueError: if the loss depends on one, a block is zero, or blocks do not divide up theta.
    """
    names = objective.param_names
    groups = [tuple(names)] if blocks is None else [tuple(block) for block in blocks]
    if sorted(name for group in groups for name in group) != sorted(names):
        raise ValueError(f"blocks must hold each of {', '.join(names)} once, got {groups}")
    named = dict(objective.model.named_parameters())
    sizes = [named[name].numel() for name in names]
    gradient = objective.gradient()
    slopes = dict(zip(names, gradient.split(sizes), strict=True))
    norms: dict[str, float] = {}
    for group in groups:
        weights = torch.cat([named[name].detach().flatten() for name in group])
        slope = torch.cat([slopes[name] for name in group])
        norm = float(length(weights))
        if norm == 0:
            raise ValueError(f"the block {', '.join(group)} is zero and has no direction")
        radial = abs(float(inner(slope, weights)))
        floor = 1e-6 * float(length(gradient)) * norm
        if radial > _INVARIANT * float(length(slope)) * norm + floor:
            raise ValueError(
                f"the loss depends on the norm of the block {', '.join(group)}: its gradient has a "
                "radial part. Leave out what is not scale-invariant by the objective's params; "
                "batch norm needs track_running_stats=False and all data in one batch"
            )
        norms |= dict.fromkeys(group, norm)
    return torch.cat(
        [torch.full((size,), norms[name]) for name, size in zip(names, sizes, strict=True)]
    )
