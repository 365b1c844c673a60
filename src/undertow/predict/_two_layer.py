"""The margin of two-layer leaky-ReLU networks from a small start, and which runs get stuck.

f(x) = sum_k a_k phi(w_k . x), phi(z) = max(z, slope z), without biases, both layers trained by
gradient flow on the mean logistic loss from a small start (Lyu, Li, Wang and Arora, 2110.13905).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from undertow.predict._arguments import count, number
from undertow.predict._hard_margin import hard_margin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Float64

_LEAST = 1e-100  # of the inputs' largest entry


@dataclass(frozen=True, eq=False)
class OneNeuron:
    """The best network a phi(w . x) of one neuron, or of several that are multiples of it.

    Attributes:
        sign: of a.
        margin: min_n y_n f(x_n) / ||theta||^2.
        direction: in which its boundary has positive labels, sign x w, of norm one.
        growth: the rate at which a small neuron of this sign grows, before the loss falls, along
            the direction of fastest growth in which it classifies right all samples that are not
            there mirrored; None where there is no such direction. Where others than such
            directions attract neurons, those may grow faster.
    """

    sign: int
    margin: float
    direction: Float64[np.ndarray, " features"]
    growth: float | None

    def __repr__(self) -> str:
        grows = "" if self.growth is None else f", growing at {self.growth:.4g}"
        return f"One neuron, a {'>' if self.sign > 0 else '<'} 0: margin {self.margin:.4g}{grows}."


@dataclass(frozen=True, eq=False)
class TwoLayerMargin:
    """What `two_layer_margin` predicts.

    Attributes:
        linear: the largest margin of a network that is a linear function.
        ceiling: the largest margin of any network: `linear` where the data are symmetric, None
            where they are not, as networks that are not linear may have more.
        direction: of the linear classifier of largest margin w*, of norm one.
        svm_margin: min_n y_n w* . x_n, in units of the inputs.
        multipliers: of each sample, w* / svm_margin = sum_n multipliers_n y_n x_n.
        positive, negative: the best networks of neurons of one sign of a.
        slope: of phi below zero.
        mean: the direction mu / ||mu|| in which small neurons turn, where the data are symmetric.
        growth: ||mu||, where they are: the time to get from scale s to order one is
            log(1 / s) / growth.
    """

    linear: float
    ceiling: float | None
    direction: Float64[np.ndarray, " features"]
    svm_margin: float
    multipliers: Float64[np.ndarray, " samples"]
    positive: OneNeuron
    negative: OneNeuron
    slope: float
    mean: Float64[np.ndarray, " features"] | None = None
    growth: float | None = None

    def __repr__(self) -> str:
        support = int((self.multipliers > 0).sum())
        best = f"margin at most {self.linear:.4g}, that of the SVM's direction ({support} support)"
        if self.ceiling is None:
            return (
                f"Not symmetric: a linear network has {best}; one neuron {self.positive.margin:.4g}"
                f" with a > 0, {self.negative.margin:.4g} with a < 0."
            )
        return f"Symmetric: {best}; {self.stuck_share:.3g} of it with all a_k of one sign."

    def as_dict(self) -> dict[str, float | None]:
        """The numbers of the prediction."""
        names = ("linear", "ceiling", "svm_margin", "slope", "growth")
        found = {name: getattr(self, name) for name in names}
        return found | {"positive": self.positive.margin, "negative": self.negative.margin}

    @property
    def stuck_share(self) -> float:
        """2 slope / (1 + slope): margin over ceiling of the best network of one sign of a.

        Let all a_k > 0 and z = y x of a positive sample: its mirror image has margin
        -f(-x) = sum_k a_k min(w_k . z, slope w_k . z) <= slope v . z with v = sum_k a_k w_k. So the
        least margin is at most slope svm_margin ||v|| <= slope svm_margin ||theta||^2 / 2, which
        one neuron along w* attains. Likewise for a_k < 0.

        Raises:
            ValueError: the data are not symmetric.
        """
        self._of_symmetric("stuck_share")
        return 2 * self.slope / (1 + self.slope)

    def gets_stuck(
        self,
        weights: Float[np.ndarray, "*runs neurons features"],
        outputs: Float[np.ndarray, "*runs neurons"],
    ) -> Bool[np.ndarray, "*runs"]:
        """Which starts end at `stuck_share`: no two w_k . mu / ||mu|| + a_k differ in sign.

        While the loss is at its start, dw_k/dt = a_k mu and da_k/dt = w_k . mu: the sum
        w_k . mu / ||mu|| + a_k grows as e^(||mu|| t) and the difference decays. So from a small
        start every neuron turns to +-(mu / ||mu||, 1), with the sign of that sum. Later
        a_k^2 - ||w_k||^2 is conserved, small, and no a_k changes sign: with all of one sign the
        margin stays below `stuck_share`, and with both it goes to the ceiling.

        Args:
            weights: w at the start; only its signs matter, not the scale.
            outputs: a at the start.

        Raises:
            ValueError: the data are not symmetric, shapes that do not fit, values that are not
                finite, or a run in which no neuron has a sign: it never leaves zero.
        """
        mean = self._of_symmetric("gets_stuck")
        w, a = np.asarray(weights, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
        if w.shape != (*a.shape, len(mean)):
            raise ValueError(
                f"weights must be outputs' shape and {len(mean)} features, got {w.shape} and "
                f"{a.shape}"
            )
        grows = w @ mean + a
        if not np.isfinite(grows).all():
            raise ValueError("weights and outputs must be finite, got NaN or infinity")
        signs = [(sign * grows > 0).any(-1) for sign in (1, -1)]
        if not np.logical_or(*signs).all():
            raise ValueError(
                "weights and outputs must give a neuron of each run a sign, but w . mu / ||mu|| + a"
                " is 0 for all of one: such a run never leaves zero"
            )
        return ~np.logical_and(*signs)

    def failure_probability(self, neurons: int) -> float:
        """2^-(m - 1), of m neurons drawn independently, with w_k and a_k as likely as their signs.

        Raises:
            TypeError: neurons is no whole number.
            ValueError: it is below 1, or the data are not symmetric.
        """
        self._of_symmetric("failure_probability")
        return 2.0 ** (1 - count("neurons", neurons))

    def _of_symmetric(self, name: str) -> Float64[np.ndarray, " features"]:
        if self.mean is None:
            raise ValueError(
                f"{name} is known for symmetric data: inputs must hold -x, labelled -y, for every "
                "x, and these do not; np.concatenate([inputs, -inputs]) with both labels does"
            )
        return self.mean


def two_layer_margin(
    inputs: Float[np.ndarray, "samples features"],
    labels: Sequence[int] | Float[np.ndarray, " samples"],
    *,
    slope: float,
) -> TwoLayerMargin:
    """Margins that f(x) = sum_k a_k phi(w_k . x) can have on these data, and where it goes.

    The margin is min_n y_n f(x_n) / ||theta||^2, theta both layers; gamma is that of the linear
    SVM without a bias, w* its direction, of norm one. Derivations (ours; the theorems of 2110.13905
    are about the same limits):

    - **Linear networks, and the ceiling.** phi(z) - phi(-z) = (1 + slope) z, so that
      f(x) - f(-x) = (1 + slope) v . x with v = sum_k a_k w_k. On symmetric data, where with (x, y)
      there is (-x, -y), the lesser of their margins is at most the mean,
      (1 + slope) / 2 y v . x, and ||v|| <= sum_k |a_k| ||w_k|| <= ||theta||^2 / 2: no network has a
      margin above (1 + slope) gamma / 4. A network that is linear everywhere has
      f = (1 + slope) / 2 v . x, so the same on any data. Two neurons (a, w) and (-a, -w) along w*
      with a = ||w|| attain it.
    - **One neuron.** For a > 0 a positive sample that is right has a phi(w . x) = a w . x, a
      negative one -a phi(w . x) = -a slope w . x: the best w is the SVM's on the data with the
      negative inputs multiplied by slope, and the margin half of that SVM's, since
      a ||w|| <= (a^2 + ||w||^2) / 2. For a < 0 it is the positive inputs that are multiplied.
    - **Before the loss falls** neurons follow da/dt = G(w), dw/dt = a grad G(w), with
      G(w) = sum_n y_n phi(w . x_n) / 2n. On symmetric data G(w) = mu . w,
      mu = (1 + slope) sum_n y_n x_n / 4n. On others, on w that classify right what is not
      mirrored, G(w) = w . M, M = sum_n c_n y_n x_n / 2n with c_n = slope for samples of the other
      sign than a and 1 for those of its own, and neurons grow along M at the rate ||M||.

    Args:
        inputs: x; two-dimensional, a sample a row.
        labels: y, 1 or -1.
        slope: of phi below zero, above 0 and at most 1 (linear); ReLU is outside of the theory.

    Raises:
        ValueError: shapes that do not fit, values out of range, labels of which the data cannot
            be separated by a plane through 0 (the message names samples that prove it).
        RuntimeError: the SVM could not be had to 1e-10.
    """
    slope = number("slope", slope)
    if not 0 < slope <= 1:
        raise ValueError(
            f"slope must be above 0 and at most 1, got {slope}; of a ReLU nothing is predicted"
        )
    x, y = np.asarray(inputs, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if x.ndim != 2 or not x.size or y.shape != x.shape[:1]:
        raise ValueError(
            f"inputs must be [samples, features] and labels [samples], got shapes {x.shape} and "
            f"{y.shape}"
        )
    if not np.isfinite(x).all():
        raise ValueError("inputs must be finite, got NaN or infinity")
    if not _LEAST <= (largest := float(np.abs(x).max())) <= 1 / _LEAST and largest:
        raise ValueError(
            f"inputs must have their largest entry between {_LEAST:g} and {1 / _LEAST:g}, beyond "
            f"which squares leave float64, got {largest:.4g}; divide them by it"
        )
    if not (np.abs(y) == 1).all():
        raise ValueError(f"labels must be 1 or -1, got {np.unique(y)[:5].tolist()}")
    rows = y[:, None] * x + 0.0  # -0 becomes 0
    w, multipliers = hard_margin(rows, "labels")
    gamma = 1 / float(np.linalg.norm(w))
    alone = _not_mirrored(rows, y)
    linear = (1 + slope) * gamma / 4
    mean, growth = None, None
    if not alone.any():
        mu = (1 + slope) / 4 * rows.mean(0)
        growth = float(np.linalg.norm(mu))
        mean = mu / growth
    positive, negative = (_one_neuron(rows, y, sign, slope, alone) for sign in (1, -1))
    ceiling = linear if mean is not None else None
    return TwoLayerMargin(
        linear, ceiling, w * gamma, gamma, multipliers, positive, negative, slope, mean, growth
    )


def _one_neuron(
    rows: Float64[np.ndarray, "samples features"],
    labels: Float64[np.ndarray, " samples"],
    sign: int,
    slope: float,
    alone: Bool[np.ndarray, " samples"],
) -> OneNeuron:
    seen = np.where(labels == sign, 1.0, slope)[:, None] * rows
    w, _ = hard_margin(seen, "labels")
    size = float(np.linalg.norm(w))
    pull = seen.mean(0) / 2
    right = bool((rows[alone] @ pull > 0).all())
    return OneNeuron(
        sign,
        margin=1 / (2 * size),
        direction=w / size,
        growth=float(np.linalg.norm(pull)) if right else None,
    )


def _not_mirrored(
    rows: Float64[np.ndarray, "samples features"], labels: Float64[np.ndarray, " samples"]
) -> Bool[np.ndarray, " samples"]:
    """Samples whose y x is there more or less often with the other label."""
    _, which = np.unique(rows, axis=0, return_inverse=True)
    which = which.ravel()
    return np.bincount(which, weights=labels)[which] != 0
