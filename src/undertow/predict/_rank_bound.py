"""The rank that SGD with weight decay cannot exceed (arXiv 2206.05794), and the identity behind it.

A minibatch gradient has rank at most patches x batch_size, and what lies n steps back is scaled by
(1 - lr weight_decay)^n: the weights are that much of the past plus n low-rank terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from undertow.predict._arguments import count, step_decay
from undertow.predict._decay import decay_factor

if TYPE_CHECKING:
    from jaxtyping import Float, Float64


@dataclass(frozen=True)
class RankBound:
    """A bound `rank` on the threshold rank beside `limit`, the rank that any matrix has at most.

    `vacuous` says that the bound is not below the limit, so that it says nothing.
    """

    rank: float
    limit: int
    vacuous: bool

    def __repr__(self) -> str:
        says = "says nothing" if self.vacuous else "is informative"
        return (
            f"Rank at most {self.rank:.4g}, which {says} of a matrix of rank at most {self.limit}."
        )


@dataclass(frozen=True, eq=False)
class RankIdentity:
    """The numerical rank of W_T - f W_(T-n) against n x patches x batch_size.

    `singular_values` are those of the residual, in descending order. Where `bound` reaches their
    number the identity holds of any matrices (`vacuous`).
    """

    rank: int
    bound: int
    holds: bool
    singular_values: Float64[np.ndarray, " values"]

    @property
    def vacuous(self) -> bool:
        """Whether no matrix of this shape could exceed the bound."""
        return self.bound >= len(self.singular_values)

    def __repr__(self) -> str:
        verdict = "holds" if self.holds else "is broken"
        aside = ", and would for any matrix of this shape" if self.vacuous else ""
        return f"The identity {verdict}{aside}: residual of rank {self.rank}, bound {self.bound}."


def rank_bound(
    *,
    batch_size: int,
    lr: float,
    weight_decay: float,
    shape: tuple[int, int],
    patches: int = 1,
    threshold: float = 1e-3,
) -> RankBound:
    """The bound patches x batch_size x log(2 / threshold) / (lr x weight_decay) of the paper.

    The paper's 2 mu lambda is PyTorch's lr x weight_decay. Assumes SGD without momentum at a
    constant learning rate, late enough that ||W_(t+1)|| / ||W_t|| is near 1; then W / ||W|| is
    threshold-close to a matrix of that rank, so no more singular values exceed
    threshold x ||W||_F. Without weight decay the bound is infinite.

    Args:
        batch_size: of a step.
        lr: constant learning rate.
        weight_decay: PyTorch's.
        shape: (rows, cols) of the weight; a convolution's is (c_out, c_in / groups x taps).
        patches: positions that the kernel is applied to (`patch_count`); 1 for a linear layer.
        threshold: relative to the Frobenius norm, in (0, 1).

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if a value is out of its range, or lr x weight_decay >= 1.
    """
    batch_size, patches = count("batch_size", batch_size), count("patches", patches)
    if len(shape) != 2:
        raise ValueError(f"shape must be (rows, cols), got {shape}")
    limit = min(count("shape", side) for side in shape)
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie strictly between 0 and 1, got {threshold}")
    product = step_decay(lr, weight_decay)
    terms = patches * batch_size * math.log(2 / threshold)
    rank = terms / product if product > 0 else math.inf
    return RankBound(rank, limit, rank >= limit)


def patch_count(
    input_size: int | Sequence[int],
    kernel: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> int:
    """Positions that a convolution kernel is applied to: prod floor((n + 2p - d(k-1) - 1)/s + 1).

    `input_size` is the spatial size; a single number for the others stands for every axis.

    Raises:
        TypeError: if a number is not whole.
        ValueError: if a number is out of range, lengths differ, or the kernel does not fit the
            padded input.
    """
    sizes = _axes("input_size", input_size, 0, least=1)
    axes = len(sizes)
    positions = 1
    for size, taps, step, border, gap in zip(
        sizes,
        _axes("kernel", kernel, axes, least=1),
        _axes("stride", stride, axes, least=1),
        _axes("padding", padding, axes, least=0),
        _axes("dilation", dilation, axes, least=1),
        strict=True,
    ):
        room = size + 2 * border - gap * (taps - 1) - 1
        if room < 0:
            raise ValueError(
                f"kernel of {taps} taps at dilation {gap} does not fit an input of {size} "
                f"with padding {border}"
            )
        positions *= room // step + 1
    return positions


def rank_identity(
    later: Float[np.ndarray, "rows cols"],
    earlier: Float[np.ndarray, "rows cols"],
    *,
    lr: float | Float[np.ndarray, " steps"] | Sequence[float],
    weight_decay: float,
    steps: int,
    batch_size: int,
    patches: int = 1,
    tolerance: float | None = None,
) -> RankIdentity:
    """Whether W_T - prod_t (1 - lr_t weight_decay) W_(T-n) has rank at most n patches batch_size.

    An exact identity of SGD without momentum and with coupled decay, for every T and n, whatever
    the network, loss and data; momentum and adaptive methods break it. Computed in float64.

    Args:
        later: W_T, or a kernel whose first axis is c_out.
        earlier: W_(T-n), n = `steps` optimizer steps before.
        lr: constant, or one value for each of those steps.
        weight_decay: PyTorch's.
        steps: n.
        batch_size: of those steps.
        patches: as in `rank_bound`.
        tolerance: singular values of the residual above tolerance x s_1(W_(T-n)) count. By default
            what rounding in the dtype of the weights can leave: eps (max(rows, cols) + 8 steps).

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if shapes differ, values are not finite, or a hyperparameter is out of range.
    """
    steps = count("steps", steps)
    bound = steps * count("patches", patches) * count("batch_size", batch_size)
    new, old = np.asarray(later), np.asarray(earlier)
    if new.shape != old.shape or new.ndim < 2 or new.size == 0:
        raise ValueError(
            f"later and earlier must be matrices of one shape, got {new.shape} and {old.shape}"
        )
    if new.dtype.kind != "f" or old.dtype.kind != "f":
        raise ValueError(f"later and earlier must be real, got {new.dtype} and {old.dtype}")
    if not (np.isfinite(new).all() and np.isfinite(old).all()):
        raise ValueError("later and earlier must be finite; a diverged run has no rank")
    if tolerance is None:
        eps = max(float(np.finfo(new.dtype).eps), float(np.finfo(old.dtype).eps))
        tolerance = eps * (max(new.shape[0], new[0].size) + 8 * steps)
    elif not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be a finite number >= 0, got {tolerance}")
    new = new.reshape(len(new), -1).astype(np.float64)
    old = old.reshape(len(old), -1).astype(np.float64)
    residual = new - decay_factor(lr, weight_decay, steps) * old
    values = np.linalg.svd(residual, compute_uv=False)
    rank = int((values > tolerance * np.linalg.norm(old, 2)).sum())
    return RankIdentity(rank, bound, rank <= bound, values)


def _axes(name: str, value: int | Sequence[int], axes: int, *, least: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * max(axes, 1)
    if not values or (axes and len(values) != axes):
        raise ValueError(f"{name} needs one number per axis of input_size, got {value}")
    return tuple(count(name, each, least=least) for each in values)
