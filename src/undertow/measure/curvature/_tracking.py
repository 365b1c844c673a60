"""The largest eigenvalue of a curvature matrix, followed along training."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from undertow.measure._arguments import check_rtol
from undertow.measure._lengths import length, lengths
from undertow.measure.curvature._krylov import (
    Curvature,
    RitzBasis,
    affordable,
    curvature_operator,
)
from undertow.measure.curvature._preconditioner import Preconditions, preconditioned
from undertow.measure.curvature._sharpness import Sharpness
from undertow.objective import Objective, outside_inference_mode

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
        preconditioner: the optimizer that moves the parameters, or the diagonal of P by name, as in
            `sharpness`: read anew at each update.
    """

    def __init__(
        self,
        objective: Objective,
        rtol: float = 0.02,
        *,
        curvature: Curvature = "hessian",
        max_products: int = 100,
        preconditioner: Preconditions | None = None,
    ) -> None:
        check_rtol(rtol)
        self._objective = objective
        self._preconditioner = preconditioner
        self._operator = self._plain = curvature_operator(objective, curvature)
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
        if self._preconditioner is None:
            return self._followed()
        under = preconditioned(self._plain, self._objective, self._preconditioner)
        self._operator = under.operator
        return replace(self._followed(), edge=under.edge, scale=under.scale)

    def _followed(self) -> Sharpness:
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
