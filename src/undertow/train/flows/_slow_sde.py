"""The slow SDE of Local SGD along a manifold of minima (2303.01215).

d zeta = P_zeta[ (Sigma_par / B)^(1/2) dW - (1 / 2B) D^3 L[Sigma_hat (1 + (K - 1) psi)] dt ] in time
lr^2 x steps, where P_zeta follows the gradient flow back to the manifold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.objective import whole_number
from undertow.train.flows._noise import stacked
from undertow.train.flows._potential import increasing
from undertow.train.flows._sde import above_zero
from undertow.train.flows._stochastic import (
    Normals,
    State,
    StochasticFlow,
    check_generator,
    solve,
)

Form = Literal["discrete", "continuous"]

# Eigenvalues below this part of the largest are those of the manifold's own directions.
_FLAT = 1e-6
# The gradient flow takes Runge-Kutta steps of this over the largest eigenvalue ...
_FLOW_STEP = 0.5
# ... until the gradient is so small beside the largest eigenvalue, or so many.
_AT_REST = 1e-8
_FLOW_STEPS = 20_000


@dataclass(frozen=True, eq=False)
class Manifold:
    """A manifold of minima and the gradient's noise on it; functions of one theta `[params]`.

    Attributes:
        loss: theta -> L, a scalar that `torch.func` can differentiate three times.
        covariance: theta -> Sigma `[params, params]`, of the gradient of one sample; called on
            the manifold only.
        projection: Phi, the limit of the gradient flow from a block `[replicas, params]`. By
            default the flow is followed, which takes steps in proportion to the condition
            number of the Hessian across the manifold.
    """

    loss: Callable[[Tensor], Tensor]
    covariance: Callable[[Tensor], Tensor]
    projection: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        for name in ("loss", "covariance", "projection"):
            value = getattr(self, name)
            if not (callable(value) or (name == "projection" and value is None)):
                raise TypeError(f"{name} must be a function, got {type(value).__name__}")


def valley_floor(*, along: float = 0.0, across: float = 1.0) -> Manifold:
    """The floor v = 0 of e^u v^2 / 2, whose curvature is e^u: a manifold on which all is known.

    Args:
        along: standard deviation of the noise of one sample's gradient in u.
        across: that in v.
    """
    covariance = torch.tensor([along**2, across**2], dtype=torch.float64).diag()

    def loss(theta: Tensor) -> Tensor:
        return theta[0].exp() * theta[1] ** 2 / 2

    def down(block: Tensor) -> Tensor:
        u, v = block.unbind(1)  # the gradient flow has du / dv = v / 2
        return torch.stack([u - v.square() / 4, torch.zeros_like(v)], 1)

    return Manifold(loss, lambda theta: covariance, down)


def local_sgd_slow_sde(
    manifold: Manifold,
    time: float | Sequence[float],
    *,
    lr: float,
    num_workers: int,
    period: int,
    batch_size: int,
    start: Float[Tensor, "*replicas params"],
    generator: torch.Generator,
    replicas: int | None = None,
    form: Form = "discrete",
    steps: int = 200,
) -> StochasticFlow:
    """Sample paths of the SDE that Local SGD follows along minima, over O(1 / lr^2) steps.

    With the Hessian's eigenpairs (lambda_i, v_i), Sigma_par the part of Sigma within the manifold
    and Sigma_rest = Sigma - Sigma_par: Sigma_hat = sum_ij <Sigma_rest, v_i v_j^T> v_i v_j^T /
    (lambda_i + lambda_j), and each entry times 1 + (K - 1) psi_ij. In the continuous form
    psi_ij = psi(lr H (lambda_i + lambda_j)), psi(x) = (e^-x - 1 + x) / x. The discrete form counts
    steps: with rho_ij = (1 - lr lambda_i)(1 - lr lambda_j), psi_ij = 1 - (1 - rho_ij^H) /
    (H (1 - rho_ij)), the mean of 1 - rho_ij^s over s = 0 .. H-1, and Sigma_hat has
    (1 - rho_ij) / lr in the place of lambda_i + lambda_j: the covariance of SGD's own recursion.
    At H = 1 it is parallel SGD exactly, where the continuous form has an error lr (K - 1) lambda.
    It ends where SGD does: a replica whose largest eigenvalue is above 2 / lr has diverged.

    Args:
        manifold: the loss, its noise, and the way back to the minima.
        time: the end, in lr^2 x steps; or the increasing times at which to keep the states.
        lr: learning rate.
        num_workers: K; 1 is SGD.
        period: H, steps between two averagings.
        batch_size: B, samples in a step over all workers: a multiple of K.
        start: zeta(0) on the manifold, for each replica or for all.
        generator: where the normal numbers come from.
        replicas: how many, where `start` is for all.
        form: "discrete" or "continuous".
        steps: Euler-Maruyama steps to the end; a little more where several times are asked for.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if an argument is out of its range, `start` is not a minimum, the covariance
            has a negative eigenvalue there, or lr is beyond the stability of SGD (discrete form).
    """
    times = increasing("time", time)
    above_zero("lr", lr)
    whole_number("num_workers", num_workers, least=1)
    whole_number("period", period, least=1)
    if whole_number("batch_size", batch_size, least=1) % num_workers:
        raise ValueError(
            f"batch_size counts all workers' samples: a multiple of {num_workers}, got {batch_size}"
        )
    if form not in ("discrete", "continuous"):
        raise ValueError(f"form must be 'discrete' or 'continuous', got {form!r}")
    if not isinstance(manifold, Manifold):
        raise TypeError(f"manifold must be a Manifold, got {type(manifold).__name__}")
    check_generator(generator)
    zeta = stacked("start", start, replicas)
    multiplier = _Multiplier(lr, num_workers, period, form)
    geometry = _Geometry(manifold)
    geometry.check(zeta, lr if form == "discrete" else None)

    def step(state: State, noise: Tensor, clock: float, length: float) -> State:
        (zeta,) = state
        pairs = geometry.eigenpairs(zeta)
        drift, spread = geometry.fields(zeta, pairs, multiplier, batch_size)
        moved = zeta + drift * length
        moved += torch.einsum("rij,rj->ri", spread, noise.double()) * math.sqrt(length)
        return [geometry.back(moved, pairs[0][:, -1])]

    return solve(
        step,
        [zeta],
        times,
        float(times[-1]) / whole_number("steps", steps, least=1),
        Normals(zeta.shape[1], lambda normals: normals, generator),
        equation=f"slow SDE of Local SGD, {num_workers} workers, {period} local steps",
    )


@dataclass(frozen=True)
class _Multiplier:
    """(1 + (K - 1) psi_ij) over the sum of a pair of eigenvalues, in one of the two forms."""

    lr: float
    num_workers: int
    period: int
    form: Form

    def __call__(self, values: Float64[Tensor, "replicas params"]) -> Tensor:
        first, second = values[:, :, None], values[:, None, :]
        sums = first + second
        if self.form == "continuous":
            psi = _psi(self.lr * self.period * sums)
            return (1 + (self.num_workers - 1) * psi) / sums
        # 1 - rho, without cancellation.
        lost = self.lr * (sums - self.lr * first * second)
        lost = lost.where(lost >= 0, math.nan)  # beyond 2 / lr nothing is stationary
        gone = 1 - (1 - lost) ** self.period
        psi = 1 - gone / (self.period * lost)
        return (1 + (self.num_workers - 1) * psi) * self.lr / lost


def _psi(x: Tensor) -> Tensor:
    """(e^-x - 1 + x) / x, for x > 0."""
    return 1 + torch.expm1(-x) / x


class _Geometry:
    """Derivatives of a manifold's loss, for a block of replicas."""

    def __init__(self, manifold: Manifold) -> None:
        self._manifold = manifold
        gradient = torch.func.grad(manifold.loss)
        hessian = torch.func.jacrev(gradient)

        def contraction(theta: Tensor, matrix: Tensor) -> Tensor:
            return (hessian(theta) * matrix).sum()

        self._gradient = torch.func.vmap(gradient)
        self._hessian = torch.func.vmap(hessian)
        self._third = torch.func.vmap(torch.func.grad(contraction))
        self._covariance = torch.func.vmap(manifold.covariance)

    def fields(
        self,
        zeta: Float64[Tensor, "replicas params"],
        pairs: tuple[Tensor, Tensor],
        multiplier: _Multiplier,
        batch_size: int,
    ) -> tuple[Tensor, Tensor]:
        """The drift, and the factor A of the diffusion A A^T."""
        values, vectors = pairs
        flat = values <= _FLAT * values[:, -1:]
        within = flat[:, :, None] & flat[:, None, :]
        rotated = vectors.mT @ self._covariance(zeta) @ vectors
        entries = (rotated * multiplier(values.where(~flat, 0.0))).masked_fill(within, 0.0)
        matrix = vectors @ entries @ vectors.mT
        drift = self._third(zeta, matrix) / (-2 * batch_size)
        inside, turned = torch.linalg.eigh(rotated.where(within, 0.0).nan_to_num())
        spread = vectors @ turned * (inside.clamp(min=0) / batch_size).sqrt()[:, None, :]
        return drift, spread

    def back(self, moved: Tensor, largest: Float64[Tensor, " replicas"]) -> Tensor:
        """Where the gradient flow takes it, from where the largest eigenvalue is about this."""
        if self._manifold.projection is not None:
            return self._manifold.projection(moved)
        length = _FLOW_STEP / largest[:, None]
        for _ in range(_FLOW_STEPS):
            first = -self._gradient(moved)
            moving = first.norm(dim=1) > _AT_REST * largest  # false for what has diverged
            if not bool(moving.any()):
                return moved
            second = -self._gradient(moved + first * length / 2)
            third = -self._gradient(moved + second * length / 2)
            last = -self._gradient(moved + third * length)
            moved = moved + (first + 2 * second + 2 * third + last) * (length / 6)
        moved[moving] = math.nan
        return moved

    def eigenpairs(self, zeta: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues in ascending order `[replicas, params]` and vectors, of the Hessian."""
        hessian = self._hessian(zeta)
        finite = torch.isfinite(hessian).flatten(1).all(1)[:, None, None]
        # A replica that has diverged must not stop the others.
        return torch.linalg.eigh(hessian.where(finite, torch.eye(zeta.shape[1]).to(hessian)))

    @torch.no_grad()
    def check(self, zeta: Float64[Tensor, "replicas params"], lr: float | None) -> None:
        """Raise where a start is not a minimum, or what is given there makes no sense."""
        gradient = self._gradient(zeta).norm(dim=1)
        values, vectors = self.eigenpairs(zeta)
        largest = values[:, -1]
        size = zeta.norm(dim=1).clamp(min=1)
        wrong = ~(gradient <= _FLAT * largest * size) | (values[:, 0] < -_FLAT * largest)
        wrong |= largest <= 0
        if bool(wrong.any()):
            index = int(wrong.nonzero()[0])
            raise ValueError(
                f"start must lie on the manifold of minima; that of replica {index} has gradient "
                f"norm {float(gradient[index]):.3g} and Hessian eigenvalues from "
                f"{float(values[index, 0]):.3g} to {float(largest[index]):.3g}. Follow the "
                "gradient flow from it first"
            )
        covariance = self._covariance(zeta)
        if covariance.shape != vectors.shape or covariance.dtype != zeta.dtype:
            raise ValueError(
                f"covariance must give a float64 matrix {list(vectors.shape[1:])}, got "
                f"{covariance.dtype} {list(covariance.shape[1:])}"
            )
        if not bool(torch.isfinite(covariance).all()):
            raise ValueError("covariance at start holds NaN or infinities")
        least = torch.linalg.eigvalsh(covariance)[:, 0]
        if bool((least < -_FLAT * covariance.flatten(1).abs().amax(1)).any()):
            raise ValueError(
                f"covariance at start has the negative eigenvalue {float(least.min()):.3g}"
            )
        if lr is not None and bool((lr * largest >= 2).any()):
            raise ValueError(
                f"lr must be below 2 / {float(largest.max()):.4g} = {2 / float(largest.max()):.4g} "
                f"for steps of SGD to be stable at start, got {lr:.4g}"
            )
