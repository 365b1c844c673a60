"""Local SGD in the kernel limit: one round is one linear map of the residual (2107.10868).

Networks that are wide enough move as their linearisation: f(x) changes along the kernel of the
gradients at the start, and nothing in the map of a round is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from undertow.predict._arguments import count, positive

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64


@dataclass(frozen=True, eq=False)
class KernelRounds:
    """What Local SGD does to the residuals f(x) - y of a network that moves as its linearisation.

    Attributes:
        residuals: of the averaged network, at the start and after each round.
        losses: (1 / K) sum_k mean over client k's samples of residual^2 / 2, likewise.
        distances: ||w_k - w_bar|| over all parameters, just before the averaging of each round.
        gradient_drifts: ||grad L_k(w_k) - grad L_k(w_bar)|| / ||grad L_k(w_bar)|| there; NaN or
            infinite where that gradient is zero.
        weights: sum_t lr r_i(t) / n_k over the local steps of a round, by which sample i pushed its
            client: w_k moved by -sum_i weight_i grad f(x_i).
    """

    residuals: Float64[np.ndarray, "readings samples"]
    losses: Float64[np.ndarray, " readings"]
    distances: Float64[np.ndarray, "rounds clients"]
    gradient_drifts: Float64[np.ndarray, "rounds clients"]
    weights: Float64[np.ndarray, "rounds samples"]

    @property
    def rate(self) -> float:
        """Slope of the log loss a round, by least squares over all rounds; below 0 it falls."""
        rounds = np.arange(len(self.losses))
        return float(np.polyfit(rounds, np.log(self.losses), 1)[0])

    def __repr__(self) -> str:
        rounds, clients = self.distances.shape
        return (
            f"KernelRounds of {clients} clients: loss {self.losses[0]:.4g} to "
            f"{self.losses[-1]:.4g} in {rounds} rounds."
        )


def arc_cosine_kernel(
    inputs: Float[np.ndarray, "samples features"],
) -> Float64[np.ndarray, "samples samples"]:
    """K(x, x') = x . x' (pi - theta) / 2 pi, theta the angle between x and x'.

    It is E[1{w.x > 0} 1{w.x' > 0}] x . x' over normal w: of f(x) = sum_j a_j relu(w_j . x) with m
    units and fixed a_j = +-1, the sum over units of grad f(x) . grad f(x') is m K as m grows. Two
    unit vectors at a small angle have eigenvalues near 1 and theta / 2 pi.

    Args:
        inputs: a sample a row, none of them zero.

    Raises:
        ValueError: they are no finite rows, or one is zero.

    Source: Cho and Saul, Kernel Methods for Deep Learning (NeurIPS 2009), degree 0; 2107.10868 for
    the networks.
    """
    x = np.asarray(inputs, dtype=np.float64)
    if x.ndim != 2 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"inputs must be finite, [samples, features], got shape {x.shape}")
    norms = np.linalg.norm(x, axis=1)
    if not norms.all():
        raise ValueError("inputs must not be zero, of which no unit sees anything")
    unit = x / norms[:, None]
    # An arccos loses half of the digits near 0 and pi; |u - v| over |u + v| is tan(theta / 2).
    apart, along = (np.linalg.norm(unit[:, None] + sign * unit[None], axis=2) for sign in (-1, 1))
    angles = 2 * np.arctan2(apart, along)
    return (x @ x.T) * (np.pi - angles) / (2 * np.pi)


def local_sgd_rounds(
    kernel: Float[np.ndarray, "samples samples"],
    *,
    clients: Sequence[Sequence[int] | Int64[np.ndarray, " rows"]]
    | Int64[np.ndarray, "clients rows"],
    period: int,
    lr: float,
    rounds: int,
    residual: Float[np.ndarray, " samples"] | Sequence[float],
    batches: Int64[np.ndarray, "rounds clients period batch"] | None = None,
) -> KernelRounds:
    """The whole course of Local SGD on squared error, in the kernel limit; nothing is fitted.

    Client k takes H = `period` steps on the mean over its n_k samples S_k of residual^2 / 2, then
    all clients' parameters are averaged. With K_kk the kernel on S_k one round is

        r <- r - (1 / K) sum_k K[:, S_k] G_k r_k,
        G_k = (lr / n_k) sum_{h < H} (I - lr K_kk / n_k)^h,

    which is K_kk^-1 (I - (I - lr K_kk / n_k)^H) where K_kk can be inverted. H = 1 is gradient
    descent on all samples. It is exact for models that are linear in their parameters, and the
    limit of wide networks with the kernel of the gradients at the start: m times
    `arc_cosine_kernel` for m ReLU units with fixed output weights +-1.

    Args:
        kernel: grad f(x) . grad f(x'), symmetric.
        clients: the rows of each client's samples; each row belongs to one client.
        period: H, local steps between two averagings.
        lr: learning rate of the parameters.
        rounds: how many.
        residual: f(x) - y at the start.
        batches: the rows that each client's step saw: a round is the product of the maps of its
            batches. None: every step sees all of the client's samples.

    Raises:
        TypeError: a count is no whole number.
        ValueError: a value is out of range, shapes do not fit, the kernel is not symmetric, or the
            clients share rows, leave some out or see a batch of another's.

    Source: 2107.10868 proves convergence by way of this limit; the map itself is derived here.
    """
    k = _kernel(kernel)
    owned = owned_rows(clients, len(k))
    steps, total = count("period", period), count("rounds", rounds, least=0)
    rate = positive("lr", lr)
    r = np.array(residual, dtype=np.float64)
    if r.shape != k.shape[:1] or not np.isfinite(r).all():
        raise ValueError(f"residual must be {len(k)} finite numbers, got shape {r.shape}")
    seen = _batches(batches, owned, steps, total)
    summed = np.zeros_like(k)
    for rows in owned:
        own = np.ix_(rows, rows)
        summed[own] = rate / len(rows) * _geometric(rate / len(rows) * k[own], steps)
    path, weights = np.empty((total + 1, len(k))), np.empty((total, len(k)))
    path[0] = r
    for turn in range(total):
        if seen is None:
            weights[turn] = summed @ path[turn]
        else:
            weights[turn] = sum(_stepped(k, path[turn], own, rate) for own in seen[turn])
        path[turn + 1] = path[turn] - k @ weights[turn] / len(owned)
    each = [_drift(k, rows, weights, len(owned), path) for rows in owned]
    distances, drifts = np.reshape(np.transpose(each, (1, 2, 0)), (2, total, len(owned)))
    losses = np.mean([(path[:, rows] ** 2).mean(1) / 2 for rows in owned], axis=0)
    return KernelRounds(path, losses, distances, drifts, weights)


def _geometric(
    matrix: Float64[np.ndarray, "rows rows"], steps: int
) -> Float64[np.ndarray, "rows rows"]:
    """sum_{h < steps} (I - M)^h of a symmetric M, singular or not."""
    values, vectors = np.linalg.eigh(matrix)
    kept = np.zeros_like(values)
    for _ in range(steps):
        kept = 1 + (1 - values) * kept  # Horner's scheme
    return (vectors * kept) @ vectors.T


def _stepped(
    kernel: np.ndarray, residual: np.ndarray, batches: np.ndarray, lr: float
) -> Float64[np.ndarray, " samples"]:
    """The weights that one client's steps on these batches give its samples."""
    pushed, r = np.zeros(len(kernel)), residual.copy()
    for rows in batches:
        push = np.zeros(len(kernel))
        np.add.at(push, rows, lr * r[rows] / len(rows))
        pushed += push
        r -= kernel @ push
    return pushed


def _drift(
    kernel: Float64[np.ndarray, "samples samples"],
    rows: Int64[np.ndarray, " rows"],
    weights: Float64[np.ndarray, "rounds samples"],
    clients: int,
    path: Float64[np.ndarray, "readings samples"],
) -> tuple[np.ndarray, np.ndarray]:
    """||w_k - w_bar||, and the gradient drift over the gradient's norm, round by round."""
    moved = np.zeros_like(weights)
    moved[:, rows] = weights[:, rows]
    apart = moved - weights / clients
    inner = kernel[np.ix_(rows, rows)]
    center = path[1:, rows]
    gap = path[:-1, rows] - moved @ kernel[:, rows] - center
    with np.errstate(divide="ignore", invalid="ignore"):
        return _length(apart, kernel), _length(gap, inner) / _length(center, inner)


def _length(vectors: np.ndarray, kernel: np.ndarray) -> Float64[np.ndarray, " rounds"]:
    """sqrt(v K v) of each row."""
    return np.sqrt(np.maximum(((vectors @ kernel) * vectors).sum(1), 0))


def _kernel(kernel: Any) -> Float64[np.ndarray, "samples samples"]:
    k = np.asarray(kernel, dtype=np.float64)
    if k.ndim != 2 or k.shape[0] != k.shape[1] or not k.size or not np.isfinite(k).all():
        raise ValueError(f"kernel must be a finite square matrix, got shape {k.shape}")
    if np.abs(k - k.T).max() > 1e-6 * np.abs(k).max():
        raise ValueError("kernel must be symmetric, K(x, x') = K(x', x)")
    return (k + k.T) / 2


def owned_rows(clients: Any, samples: int) -> list[Int64[np.ndarray, " rows"]]:
    """Each client's rows of so many samples.

    Raises:
        ValueError: they are no row numbers, or not each of the samples once.
    """
    owned = [np.asarray(rows) for rows in clients]
    for index, rows in enumerate(owned):
        if rows.ndim != 1 or not rows.size or rows.dtype.kind not in "iu":
            raise ValueError(f"clients[{index}] must be at least one row number, got {rows!r}")
    every = np.sort(np.concatenate(owned)) if owned else np.zeros(0)
    if not np.array_equal(every, np.arange(samples)):
        raise ValueError(
            f"clients must hold each of the rows 0 to {samples - 1} once, got {len(every)} rows "
            f"of {len(owned)} clients"
        )
    return owned


def _batches(batches: Any, owned: list[np.ndarray], period: int, rounds: int) -> np.ndarray | None:
    if batches is None:
        return None
    seen = np.asarray(batches)
    shape = (rounds, len(owned), period)
    if (
        seen.ndim != 4
        or seen.shape[:3] != shape
        or not seen.shape[3]
        or seen.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"batches must be row numbers, [rounds, clients, period, batch] = {shape} and a batch "
            f"size, got shape {seen.shape}"
        )
    for index, rows in enumerate(owned):
        if not np.isin(seen[:, index], rows).all():
            raise ValueError(f"batches of client {index} must hold its own rows alone")
    return seen
