"""Sharpness: the largest eigenvalues of the Hessian of the loss, or of its Gauss-Newton matrix.

Also on the sphere, for scale-invariant parameters (arXiv 2206.07085: eta ||.||^-2 lambda_1 ~ 2 at
the edge of stability), and followed along training from the last eigenvector.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.measure._lengths import inner, length, lengths
from undertow.measure.curvature._krylov import (
    Curvature,
    Operator,
    RitzBasis,
    affordable,
    curvature_operator,
)
from undertow.measure.curvature._lanczos import largest_pairs
from undertow.objective import Objective, outside_inference_mode, whole_number

# |<gradient, w>| of a scale-invariant block, relative to ||gradient|| ||w||, up to rounding.
_INVARIANT = 1e-3
# Followed sharpness is looked up from a random start every so many steps: another eigenvalue may
# have overtaken the one followed, which its own residual cannot tell.
_REFRESH = 25
_REFRESH_PRODUCTS = 12
# Otherwise so many Ritz vectors are carried on; where they do not do, what they lack is added, for
# at least so many products, to this residual relative to the eigenvalue.
_CARRIED = 2
_LEAST = 3
_TRACKED_RESIDUAL = 0.05
# After a change of the value by more, as when training leaves for another place, a random direction
# is followed too.
_JUMP = 0.1
_TRACKED_BASIS = 40
_TRACKED_LEAST = 8


@dataclass(frozen=True, eq=False)
class Sharpness:
    """Extreme eigenpairs of a curvature matrix.

    Attributes:
        eigenvalues: the largest (or smallest) first.
        residuals: ||H v - lambda v||; an eigenvalue lies within this distance of each value.
        products: matrix-vector products spent.
        converged: whether every residual is within `rtol`.
        vectors: the eigenvectors, of unit length, as rows.
    """

    eigenvalues: Float64[Tensor, " k"]
    residuals: Float64[Tensor, " k"]
    products: int
    converged: bool
    vectors: Float[Tensor, "k params"]

    def __repr__(self) -> str:
        values = ", ".join(f"{value:.6g}" for value in self.eigenvalues.tolist())
        worst = float(self.residuals.max())
        state = "converged" if self.converged else "NOT converged"
        return (
            f"Sharpness {values} (residual at most {worst:.2g}), {state} after {self.products} "
            "products; batch-norm statistics frozen, dropout off."
        )


@outside_inference_mode
def sharpness(
    objective: Objective,
    k: int = 1,
    rtol: float = 1e-3,
    *,
    curvature: Curvature = "hessian",
    which: Literal["largest", "smallest"] = "largest",
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

    Args:
        objective: what to differentiate.
        k: how many eigenpairs.
        rtol: of the residual, relative to the eigenvalue.
        curvature: the Hessian, or the Gauss-Newton matrix "ggn".
        which: the largest or the smallest, by sign and not by magnitude.
        start: directions to start from, such as the last result along a trajectory.
        max_products: stop there, not converged.
        generator: for the start; by default the same on every call.

    Raises:
        TypeError: if `objective` or `start` is of another kind, or k no whole number.
        ValueError: if k < 1 or exceeds the number of parameters, or another argument is out of
            its range; and as `Objective.hvp`.
    """
    operator = curvature_operator(objective, curvature)
    return _extreme(operator, k, rtol, which, start, max_products, generator)


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
    _check_rtol(rtol)
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
        generator=torch.Generator().manual_seed(0) if generator is None else generator,
    )
    return Sharpness(
        sign * pairs.values, pairs.residuals, pairs.products, pairs.converged, pairs.vectors
    )


def _check_rtol(rtol: float) -> None:
    if not 0 < rtol < 1:
        raise ValueError(f"rtol must be between 0 and 1, got {rtol!r}")


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


class SharpnessTracker:
    """Follows the largest eigenvalue while something else moves the objective's parameters.

    While the curvature changes slowly, one product with the last eigenvector v suffices: the
    error of v^T H v is quadratic in the residual, r^2 / gap, with the distance to the next
    eigenvalue as last seen; where two are close, one more product with the next eigenvector gives
    both. Where that is not small, or the value leaves its course, as it does beyond the edge of
    stability, the space grows by the residuals of these two; every 25 updates, and after a jump,
    it grows from a random direction in any case, and for longer. An eigenvalue that overtakes
    within one step, of an eigenvector at right angles to both, is seen at the next such look and
    not before.

    Args:
        objective: its module is what training updates in place.
        rtol: of the eigenvalue, not of the residual.
        curvature: "hessian" or "ggn".
        max_products: in one update.
    """

    def __init__(
        self,
        objective: Objective,
        rtol: float = 0.02,
        *,
        curvature: Curvature = "hessian",
        max_products: int = 100,
    ) -> None:
        _check_rtol(rtol)
        self._operator = curvature_operator(objective, curvature)
        self._rtol = rtol
        self._max_products = max_products
        self._generator = torch.Generator().manual_seed(0)
        self._start: Tensor | None = None
        self._value = self._growth = 0.0
        self._gaps: list[float] = []
        self.updates = 0
        self.products = 0

    @outside_inference_mode
    def update(self) -> Sharpness:
        """The largest eigenvalue at the parameters as they are now.

        `residuals` is the estimated error of the value.
        """
        wanted = min(self._operator.size, _TRACKED_BASIS)
        rows = affordable(self._operator, wanted, _TRACKED_LEAST)
        space = RitzBasis(self._operator, rows, self._generator)
        # Where the last step led to another place, this one may too.
        jumped = abs(self._growth) > _JUMP * abs(self._value)
        due = self.updates % _REFRESH == 0 or jumped
        with self._operator.fixed():
            found = None if due else self._cheaply(space)
            if found is None:
                found = self._thoroughly(space, due)
        value = float(found.eigenvalues[0])
        self._growth = value - self._value if self.updates else 0.0
        self._value = value
        self.updates += 1
        self.products += found.products
        return found

    def _cheaply(self, space: RitzBasis) -> Sharpness | None:
        """By products with the last Ritz vectors, as few as are good enough."""
        assert self._start is not None
        for number, gap in enumerate(self._gaps[: self._max_products], 1):
            space.extend(self._start[number - 1 : number])
            values, coordinates = space.ritz()
            directions = space.residuals(values, coordinates)
            value = float(values[0])
            error = _error(float(length(directions[0])), gap)
            change = value - self._value
            jump = min(abs(change), abs(change - self._growth))  # steady growth is none
            if max(error, jump) <= self._rtol * abs(value) / 2:
                # A step of power iteration for nothing: H v = lambda v + residual.
                ahead = space.vectors(coordinates) * values[:, None].to(directions) + directions
                ahead /= lengths(ahead)[:, None].to(ahead)
                self._start = torch.cat([ahead, self._start[number:]])
                return _tracked(space, values, coordinates, error, True)
        return None

    def _thoroughly(self, space: RitzBasis, random: bool) -> Sharpness:
        """By Rayleigh-Ritz on from the last Ritz vectors, to a residual that bounds the error."""
        if self._start is not None and space.size < len(self._start):
            space.extend(self._start[space.size :])
        if random:
            space.extend(self._operator.random(1, self._generator))
        least = min(space.size + (_REFRESH_PRODUCTS if random else _LEAST), self._operator.size)
        while True:
            values, coordinates = space.ritz()
            value, leading = float(values[0]), slice(0, _CARRIED)
            directions = space.residuals(values[leading], coordinates[leading])
            residuals = lengths(directions).tolist()
            error = _error(residuals[0], value - float(values[1]) if space.size > 1 else 0.0)
            converged = error <= self._rtol * abs(value)
            enough = converged and residuals[0] <= _TRACKED_RESIDUAL * abs(value)
            if enough and space.products >= least:
                if random or abs(value - self._value) <= _JUMP * abs(value):
                    break
                random = True  # the last Ritz vectors may say nothing of where this is
                least = space.products + _REFRESH_PRODUCTS
                if not space.full:
                    space.extend(self._operator.random(1, self._generator))
                    continue
            if space.products >= self._max_products or space.size == self._operator.size:
                break
            if space.full:
                space.restart(keep=space.size // 2)
            if random and space.products < least:
                space.append(space.lanczos_direction()[0])
            else:  # what the pair itself lacks, or the next one, which may overtake it
                lacking = residuals.index(max(residuals)) if enough else 0
                space.extend(directions[lacking : lacking + 1])
        self._gaps = (value - values[1 : _CARRIED + 1]).tolist()
        self._start = space.vectors(coordinates[: min(_CARRIED, space.size)])
        return _tracked(space, values, coordinates, error, converged)


def _error(residual: float, gap: float) -> float:
    """Of an eigenvalue, from the residual of its pair and the distance to the next one."""
    return residual**2 / gap if residual < gap / 2 else residual


def _tracked(
    space: RitzBasis, values: Tensor, coordinates: Tensor, error: float, converged: bool
) -> Sharpness:
    residuals = torch.tensor([error], dtype=torch.float64)
    vector = space.vectors(coordinates[:1])
    return Sharpness(values[:1], residuals, space.products, converged, vector)
