"""Where SGD on a linear regression with weight decay goes on moving, and by how much.

No weight makes every batch's regularised gradient zero, so SGD never rests. In a fixed order its
epoch is an affine map with one periodic orbit; in any order the noise is, to first order in the
decay, that of the batches' gradients at the ridge solution (Xu et al., CBMM Memo 144).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Float64


def fixed_order_orbit(
    inputs: Float[np.ndarray, "samples features"],
    targets: Float[np.ndarray, "samples outputs"],
    *,
    lr: float,
    weight_decay: float,
    batch_size: int,
) -> Float64[np.ndarray, "batches+1 outputs features"]:
    """The periodic orbit of SGD that goes through the samples in their order, again and again.

    A step on the batch S, of mean squared error over samples and outputs, is

        W <- (1 - lr weight_decay) W - lr 2 / (|S| outputs) (W X_S' - Y_S)' X_S,

    an affine map of W; an epoch of them, W <- W A + B, is one too, and W = B (I - A)^-1 comes back
    to itself. Whatever the start, SGD ends there.

    Returns:
        The weights before the first step of an epoch and after each; the last are the first.

    Raises:
        ValueError: inputs and targets that are no matrices of as many rows, a batch size out of
            1..samples, lr or weight_decay not above 0, or steps so large that no orbit attracts.
    """
    samples, outputs = _checked(inputs, targets, lr, weight_decay, batch_size)
    _, _, basis = np.linalg.svd(inputs, full_matrices=False)  # no gradient leaves the inputs' span
    seen, kept = inputs @ basis.T, 1 - lr * weight_decay
    maps = []
    for first in range(0, samples, batch_size):
        rows, aims = seen[first : first + batch_size], targets[first : first + batch_size]
        scale = 2 * lr / aims.size
        maps.append((kept * np.eye(len(basis)) - scale * rows.T @ rows, scale * aims.T @ rows))
    whole, shift = np.eye(len(basis)), np.zeros((outputs, len(basis)))
    for turn, move in maps:
        whole, shift = whole @ turn, shift @ turn + move
    if np.abs(np.linalg.eigvals(whole)).max() >= 1:
        raise ValueError(f"lr must be so small that an epoch contracts, got {lr}")
    orbit = [np.linalg.solve((np.eye(len(basis)) - whole).T, shift.T).T]
    for turn, move in maps:
        orbit.append(orbit[-1] @ turn + move)
    return np.stack(orbit) @ basis


def ridge_noise(
    inputs: Float[np.ndarray, "samples features"],
    targets: Float[np.ndarray, "samples outputs"],
    *,
    lr: float,
    weight_decay: float,
    batch_size: int,
) -> float:
    """SGD's fluctuation to first order in the decay: that of its steps at the ridge solution W.

    lr rms_S ||grad L_S(W) + weight_decay W|| / ||W||, where gradient descent rests. The mean is
    over batches S drawn without replacement, so that one of all samples has none: under the root
    stands tr Sigma / batch_size x (samples - batch_size) / (samples - 1), with the covariance Sigma
    of the samples' gradients. `measure.update_fluctuation` is what is predicted.

    Raises:
        ValueError: as `fixed_order_orbit`.
    """
    samples, outputs = _checked(inputs, targets, lr, weight_decay, batch_size)
    gram = inputs @ inputs.T + weight_decay * samples * outputs / 2 * np.eye(samples)
    weights = np.linalg.solve(gram, targets).T @ inputs
    errors = 2 / outputs * (inputs @ weights.T - targets)
    # ||e x' + weight_decay W||^2 of each sample, without the matrix.
    squares = (errors**2).sum(1) * (inputs**2).sum(1)
    squares += 2 * weight_decay * ((errors @ weights) * inputs).sum(1)
    squares += weight_decay**2 * (weights**2).sum()
    left = (samples - batch_size) / max(samples - 1, 1)
    trace = max(float(squares.mean()), 0.0)
    return lr * math.sqrt(trace / batch_size * left) / float(np.linalg.norm(weights))


def _checked(
    inputs: np.ndarray, targets: np.ndarray, lr: float, weight_decay: float, batch_size: int
) -> tuple[int, int]:
    """How many samples and outputs there are, of arguments that make a regression."""
    if inputs.ndim != 2 or targets.ndim != 2 or len(inputs) != len(targets):
        raise ValueError(
            "inputs and targets must be matrices of as many rows, got shapes "
            f"{inputs.shape} and {targets.shape}"
        )
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be above 0, got {value}")
    if not 1 <= batch_size <= len(inputs):
        raise ValueError(f"batch_size must be from 1 to {len(inputs)}, got {batch_size}")
    return len(inputs), targets.shape[1]
