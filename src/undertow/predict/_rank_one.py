"""How fast label noise draws the neurons of a layer together, or apart (arXiv 2410.16401).

r(x) = sum_j phi(theta_j . x) is trained by SGD whose targets carry fresh noise in every step: near
zero loss the spread of the pre-activations theta_j . x over j decays, or grows where phi''' < 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from undertow.predict._arguments import count, positive
from undertow.predict._normal import density, share_below

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

_Pair = tuple[np.ndarray, np.ndarray]


def rank_one_rate(
    lr: float,
    noise_std: float,
    *,
    activation: str | None = None,
    preactivation: float | Float[np.ndarray, "*shape"] | None = None,
    derivatives: tuple[float, float] | None = None,
    neurons: int | None = None,
    loss_scale: float = 1.0,
    batch_fraction: float = 1.0,
    input_norm: float = 1.0,
    output_weight: float = 1.0,
) -> float | Float64[np.ndarray, "*shape"]:
    """Rate 2 lr^2 noise_std^2 phi'(z) phi'''(z) at which neurons draw together, per step.

    Setting: r(x) = output_weight sum_j phi(theta_j . x), whose output weights are equal and do not
    train; loss_scale sum_i (r(x_i) - y_i - zeta_i)^2 with zeta_i ~ N(0, noise_std^2) drawn anew in
    every step; inputs x_i orthogonal to one another; the network near zero loss. z is the common
    pre-activation there, phi^-1(y_i / (output_weight neurons)). The spread over the neurons of
    theta_j . x_i (their standard deviation, on its geometric average over steps) is then multiplied
    by exp(-rate) per step. **A negative rate means that the spread grows**: the sign is that of
    phi'(z) phi'''(z). At 0, as for quadratic phi, the noise draws the neurons nowhere.

    Derivation, in units where the other factors are 1. A step moves every neuron by
    -2 lr e phi'(z_j), with e the noisy residual. In u(z), defined by du = dz / phi'(z), that is
    -2 lr e - 2 lr^2 e^2 phi''(z_j): the first term is the same for all neurons, so that only the
    second changes the differences of u, by -2 lr^2 E[e^2] phi''' each step per unit of z and at
    E[e^2] = noise_std^2. That is the whole effect while z_j are close, phi' > 0 and lr is small.
    The paper's route, a flow down the trace of the Hessian F = 2 sum_i sum_j phi'(z_ij)^2 on the
    zero-loss manifold, of which a step is a time of lr^2 noise_std^2 / 2, gives the same number.

    With `neurons` the residual's own fluctuation is counted: near zero loss it is an
    autoregression whose E[e^2] is noise_std^2 / (1 - lr h / 2), with h = 2 loss_scale input_norm^2
    output_weight^2 neurons phi'(z)^2 the curvature along it. The rate is divided by 1 - lr h / 2.

    Inputs that are not orthogonal share their rates: `rank_one_modes`.

    Args:
        lr: of plain SGD without momentum.
        noise_std: standard deviation of the noise on a target, in the target's units.
        activation: tanh, sigmoid, softplus, gelu (the exact one), silu, sinh, cubic (z + z^3 / 6)
            or quadratic (z + z^2 / 4); with `preactivation`.
        preactivation: z, one number or an array.
        derivatives: (phi'(z), phi'''(z)), in place of the two.
        neurons: how many there are; None for the limit of a small lr.
        loss_scale: what multiplies a sample's squared error in the loss of one step: 1 for a sum,
            1 / 2 for a sum of halves, 1 / batch_size for a mean. It enters squared, as lr does.
        batch_fraction: the part of the steps in which a sample takes part, batch_size / samples.
            The rate is in proportion to it.
        input_norm: ||x_i||, which enters to the fourth power.
        output_weight: of every neuron, which enters squared.

    Raises:
        ValueError: a number out of range, an activation that is not listed, neither or both ways
            of giving the derivatives, phi'(z) = 0, or lr h >= 2, where descent is not stable.
    """
    lr = positive("lr", lr)
    if not (math.isfinite(noise_std) and noise_std >= 0):
        raise ValueError(f"noise_std must be a finite number >= 0, got {noise_std}")
    if not 0 < batch_fraction <= 1:
        raise ValueError(f"batch_fraction must lie in (0, 1], got {batch_fraction}")
    loss_scale = positive("loss_scale", loss_scale)
    input_norm = positive("input_norm", input_norm)
    output_weight = positive("output_weight", abs(output_weight))
    first, third = _derivatives(activation, preactivation, derivatives)

    shared = loss_scale * input_norm**2 * output_weight
    rate = 2 * batch_fraction * (lr * noise_std * shared) ** 2 * first * third
    if neurons is not None:
        curvature = 2 * shared * output_weight * count("neurons", neurons) * first**2
        if (lr * curvature >= 2).any():
            raise ValueError(
                f"lr x curvature is {lr * curvature.max():.4g}; from 2 on gradient descent does "
                f"not settle at zero loss. Lower lr below {2 / curvature.max():.4g}"
            )
        rate = rate / (1 - lr * curvature / 2)
    return float(rate) if rate.ndim == 0 else rate


def rank_one_modes(
    rates: Float[np.ndarray, " inputs"], gram: Float[np.ndarray, "inputs inputs"]
) -> tuple[Float64[np.ndarray, " inputs"], Float64[np.ndarray, "inputs inputs"]]:
    """The rates at which neurons draw together on inputs that are not orthogonal, per step.

    Differences delta of the pre-activations of two neurons obey delta' = -X X^T diag(c) delta to
    first order, c_i the rate of input i by itself: label noise pulls them together on each input,
    and the weights take what is done for one input to the others. Nearly dependent inputs make the
    slowest rate slow, of the size of the least eigenvalue of X X^T.

    Args:
        rates: c, the `rank_one_rate` at each input's own pre-activation.
        gram: X X^T, of inputs of norm 1.

    Returns:
        The rates, slowest first, and a row for each: the direction in the space of inputs along
        which the spread of the neurons decays at that rate, a left eigenvector of X X^T diag(c).

    Raises:
        ValueError: shapes that do not fit, or a gram matrix that is not symmetric.
    """
    own, gram = (np.asarray(value, dtype=np.float64) for value in (rates, gram))
    if own.ndim != 1 or gram.shape != (len(own), len(own)):
        raise ValueError(
            f"rates and gram must be [inputs] and [inputs, inputs]; got {own.shape} and "
            f"{gram.shape}"
        )
    if not np.allclose(gram, gram.T):
        raise ValueError(f"gram must be symmetric, inputs @ inputs.T; got {gram}")
    values, vectors = np.linalg.eig(own[:, None] * gram)
    order = np.argsort(np.abs(values.real))
    return values.real[order], vectors.real.T[order]


def activation_derivatives(
    activation: str, preactivation: float | Float[np.ndarray, "*shape"]
) -> tuple[Float64[np.ndarray, "*shape"], Float64[np.ndarray, "*shape"]]:
    """phi'(z) and phi'''(z), of whose product `rank_one_rate` has its sign.

    Args:
        activation: as in `rank_one_rate`.
        preactivation: z.

    Raises:
        ValueError: an activation that is not listed, or phi'(z) = 0.
    """
    return _derivatives(activation, preactivation, None)


def _derivatives(
    activation: str | None,
    preactivation: float | np.ndarray | None,
    derivatives: tuple[float, float] | None,
) -> _Pair:
    """phi'(z) and phi'''(z), from whichever way they were given."""
    if derivatives is not None:
        if activation is not None or preactivation is not None:
            raise ValueError("derivatives take the place of activation and preactivation")
        if len(derivatives) != 2:
            raise ValueError(f"derivatives must be (phi'(z), phi'''(z)), got {derivatives}")
        first, third = (np.asarray(value, dtype=np.float64) for value in derivatives)
    elif activation is None or preactivation is None:
        raise ValueError("give activation and preactivation, or derivatives=(phi'(z), phi'''(z))")
    elif activation in ("relu", "leaky_relu"):
        raise ValueError(
            f"activation={activation!r} has phi''' = 0 on either side of its kink and none at it, "
            "so that this theory says nothing of it"
        )
    elif activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    else:
        first, third = _ACTIVATIONS[activation](np.asarray(preactivation, dtype=np.float64))
    if not (np.isfinite(first).all() and np.isfinite(third).all()):
        raise ValueError(f"phi'(z) and phi'''(z) must be finite, got {first} and {third}")
    if (first == 0).any():
        raise ValueError("phi'(z) must not be 0: there the network cannot follow its target")
    return first, third


def _tanh(z: np.ndarray) -> _Pair:
    square = np.tanh(z) ** 2
    return 1 - square, (1 - square) * (6 * square - 2)


def _sigmoid_derivatives(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The logistic function and its first three derivatives."""
    value = (1 + np.tanh(z / 2)) / 2
    slope = value * (1 - value)
    return value, slope, slope * (1 - 2 * value), slope * (1 - 6 * slope)


def _sigmoid(z: np.ndarray) -> _Pair:
    _, first, _, third = _sigmoid_derivatives(z)
    return first, third


def _softplus(z: np.ndarray) -> _Pair:
    value, _, second, _ = _sigmoid_derivatives(z)
    return value, second


def _silu(z: np.ndarray) -> _Pair:
    value, first, second, third = _sigmoid_derivatives(z)
    return value + z * first, 3 * second + z * third


def _gelu(z: np.ndarray) -> _Pair:
    at = density(z)
    return share_below(z) + z * at, at * z * (z**2 - 4)


def _cubic(z: np.ndarray) -> _Pair:
    return 1 + z**2 / 2, np.ones_like(z)


def _sinh(z: np.ndarray) -> _Pair:
    return np.cosh(z), np.cosh(z)


def _quadratic(z: np.ndarray) -> _Pair:
    return 1 + z / 2, np.zeros_like(z)


_ACTIVATIONS: dict[str, Callable[[np.ndarray], _Pair]] = {
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "gelu": _gelu,
    "silu": _silu,
    "cubic": _cubic,
    "sinh": _sinh,
    "quadratic": _quadratic,
}
