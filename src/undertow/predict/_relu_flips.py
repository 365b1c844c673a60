"""How many activation signs of a wide ReLU network Local SGD flips, to leading order in its width.

The mechanism of 2107.10868: ReLU gradients are not Lipschitz, but few signs flip, m^-1/2 of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from undertow.predict._arguments import count, positive
from undertow.predict._kernel_rounds import arc_cosine_kernel, local_sgd_rounds, owned_rows

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64

    from undertow.predict._kernel_rounds import KernelRounds

_MOST = 0.5  # of all signs: beyond it the leading order says nothing


@dataclass(frozen=True, eq=False)
class ReluFlips:
    """Shares of activation signs that differ, over all samples and units.

    Attributes:
        since_start: between the averaged network after each round and the start.
        between: between w_k and w_bar just before the averaging of each round, on client k's own
            samples, all clients together.
        gradient_drifts: ||grad L_k(w_k) - grad L_k(w_bar)|| / ||grad L_k(w_bar)|| there: of the
            residuals' change, as of `KernelRounds`, and of flipped signs, which add in squares.
        stderr: of the last of `since_start`, from the units that were drawn.
        draws: units drawn for each sample.
    """

    since_start: Float64[np.ndarray, " rounds"]
    between: Float64[np.ndarray, " rounds"]
    gradient_drifts: Float64[np.ndarray, "rounds clients"]
    stderr: float
    draws: int

    def __repr__(self) -> str:
        return (
            f"ReluFlips: {self.since_start[-1]:.3%} +- {self.stderr:.3%} of the signs since the "
            f"start, {self.between[0]:.3%} to {self.between[-1]:.3%} between clients and average."
        )


def relu_flips(
    inputs: Float[np.ndarray, "samples features"],
    *,
    width: int,
    init_std: float,
    clients: Sequence[Sequence[int] | Int64[np.ndarray, " rows"]]
    | Int64[np.ndarray, "clients rows"],
    period: int,
    lr: float,
    rounds: int,
    residual: Float[np.ndarray, " samples"] | Sequence[float],
    draws: int = 256,
    seed: int = 0,
) -> ReluFlips:
    """Signs of w_j . x_i that Local SGD flips in f(x) = sum_j a_j relu(w_j . x), a_j = +-1 fixed.

    Only units near zero flip, and near zero the density of w_j . x_i is that at zero,
    1 / (init_std ||x_i|| sqrt(2 pi)). There each unit's u = w_j . x_i moves along one dimension: a
    local step of the client that has sample i adds

        -lr a_j / n_k (sum_l 1{w_j . x_l > 0} x_i . x_l r_l + 1{u > 0} ||x_i||^2 r_i),

    l its other samples, r the residuals of the kernel limit (`local_sgd_rounds`), and the other
    clients' rounds and the averaging move it likewise. The last term ends where u falls below zero,
    so that a unit that the others push back up stays at zero: first order in the displacement alone
    counts such units as flipped. Signs of a unit at other samples are drawn given that u is near
    zero. Both shares are of order width^-1/2, and what is left out is of order 1 / width.

    Args:
        inputs: a sample a row, none of them zero.
        width: m, units of the hidden layer.
        init_std: of the normal weights w_j at the start.
        clients: as of `local_sgd_rounds`.
        period: H, local steps between two averagings.
        lr: learning rate of the weights.
        rounds: how many, at least 1.
        residual: f(x) - y at the start.
        draws: units drawn for each sample.
        seed: which ones.

    Raises:
        TypeError: a count is no whole number.
        ValueError: as of `arc_cosine_kernel` and `local_sgd_rounds`; or units move so far that more
            than few signs flip, where the leading order says nothing: the network is too narrow.

    Source: derived here; 2107.10868 bounds the share from above.
    """
    total, each = count("rounds", rounds), count("draws", draws, least=2)
    x = np.asarray(inputs, dtype=np.float64)
    units = count("width", width)
    kernel = units * arc_cosine_kernel(x)
    owned = owned_rows(clients, len(x))
    path = local_sgd_rounds(
        kernel, clients=owned, period=period, lr=lr, rounds=total, residual=residual
    )
    steps = _own_steps(kernel, path.residuals[:-1], owned, period, lr)
    random = np.random.default_rng(count("seed", seed, least=0))
    signs = np.where(random.random(each) < 0.5, -1.0, 1.0)
    # What unit j and sample i feel of sample l: a_j 1{w_j . x_l > 0} x_i . x_l, `[i, j, l]`.
    gram = x @ x.T
    felt = (
        _seen(x, gram, random.standard_normal((each, x.shape[1]))) * gram[:, None] * signs[:, None]
    )
    mates = _mates(owned, len(x))
    near = felt * mates[:, None]
    far = (felt - near) @ path.weights.T  # pushes of other clients, `[i, j, rounds]`
    own = np.diag(gram)[:, None] * signs  # of sample i itself, while u > 0
    # No u moves farther than this, so that units from farther away cannot flip.
    sizes = np.abs(steps).sum((0, 1))
    moved = np.abs(near) @ sizes + np.abs(own) * sizes[:, None]
    reach = (moved + np.abs(far).sum(2)).max(1)
    spread = positive("init_std", init_std) * np.sqrt(np.diag(gram))
    start = reach[:, None] * (2 * random.random((len(x), each)) - 1)
    weight = 2 * reach / (spread * math.sqrt(2 * math.pi))  # of all units, those within reach
    clients_share = 1 / len(owned)
    u, since, between = start, [], np.empty((total, len(x)))
    for turn in range(total):
        local = u.copy()
        pushes = near @ steps[turn].T
        for step in range(period):
            local -= pushes[..., step] + (local > 0) * own * steps[turn, step][:, None]
        after = u + clients_share * (local - u - far[..., turn])
        between[turn] = weight * ((local > 0) != (after > 0)).mean(1)
        u = after
        flipped = (u > 0) != (start > 0)
        since.append(weight @ flipped.mean(1) / len(x))
    stderr = math.sqrt(float((weight**2 * flipped.var(1)).sum() / each)) / len(x)
    if max(since) > _MOST:
        raise ValueError(
            f"width = {width} is too narrow: to leading order {max(since):.0%} of the signs would "
            f"flip, which is right of small shares only; at most {_MOST:.0%} will do"
        )
    drifts = _drifts(kernel, path, owned, units * between * np.diag(gram))
    return ReluFlips(np.array(since), between.mean(1), drifts, stderr, each)


def _drifts(
    kernel: Float64[np.ndarray, "samples samples"],
    path: KernelRounds,
    owned: list[Int64[np.ndarray, " rows"]],
    flipped: Float64[np.ndarray, "rounds samples"],
) -> Float64[np.ndarray, "rounds clients"]:
    """Gradient drift over the gradient's norm; `flipped` are sums of ||x_i||^2 over flipped units.

    A unit that flips at sample i changes n_k times the gradient by r_i x_i, those of different
    samples are different units, and as many of them turn on as off.
    """
    found = np.empty_like(path.gradient_drifts)
    for number, rows in enumerate(owned):
        inner, center = kernel[np.ix_(rows, rows)], path.residuals[1:, rows]
        own = path.residuals[:-1, rows] - path.weights[:, rows] @ inner
        norm = ((center @ inner) * center).sum(1)
        size = (flipped[:, rows] * (own**2 + center**2) / 2).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            found[:, number] = np.sqrt(path.gradient_drifts[:, number] ** 2 + size / norm)
    return found


def _own_steps(
    kernel: Float64[np.ndarray, "samples samples"],
    residuals: Float64[np.ndarray, "rounds samples"],
    owned: list[Int64[np.ndarray, " rows"]],
    period: int,
    lr: float,
) -> Float64[np.ndarray, "rounds period samples"]:
    """The pushes lr r_i / n_k at each local step of the client that has sample i."""
    steps = np.empty((len(residuals), period, residuals.shape[1]))
    for rows in owned:
        rate, own = lr / len(rows), residuals[:, rows]
        for step in range(period):
            steps[:, step, rows] = rate * own
            own = own - rate * own @ kernel[np.ix_(rows, rows)]
    return steps


def _seen(
    x: Float64[np.ndarray, "samples features"],
    gram: Float64[np.ndarray, "samples samples"],
    units: Float64[np.ndarray, "draws features"],
) -> Float64[np.ndarray, "samples draws samples"]:
    """Which units see sample l given that w . x_i = 0, `[i, j, l]`; sample i itself left out."""
    onto = units @ x.T
    across = onto[None] - (onto.T / np.diag(gram)[:, None])[:, :, None] * gram[:, None]
    seen = (across > 0).astype(np.float64)
    seen[np.arange(len(x)), :, np.arange(len(x))] = 0
    return seen


def _mates(
    owned: list[Int64[np.ndarray, " rows"]], samples: int
) -> Float64[np.ndarray, "samples samples"]:
    """Which samples are with the same client."""
    owner = np.empty(samples, dtype=np.int64)
    for number, rows in enumerate(owned):
        owner[rows] = number
    return (owner[:, None] == owner).astype(np.float64)
