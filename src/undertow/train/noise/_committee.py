"""Networks of one hidden layer whose output weights are fixed, trained in their pre-activations.

The soft committee machine (Saad and Solla, 1995), under label noise the model of Gatmiry, Li, Reddi
and Jegelka (arXiv 2410.16401): its neurons draw together where phi' phi''' > 0.
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
from undertow.predict import activation_derivatives

_BLOCK = 500  # steps whose noise is drawn at once
_RIDGE = 1e-4
_TO_REST = (*[0.15] * 40, *[1.0] * 4)  # small steps along the path, then whole ones
_FINE = 0.2  # e-folds of the fastest mode in one step along the mean path
Preactivations = Float64[Tensor, "runs neurons samples"]


@dataclass(frozen=True, eq=False)
class CommitteeMachine:
    """r(x) = sum_j a_j phi(theta_j . x) on squared error sum_i (r(x_i) - y_i)^2, run by run.

    Descent moves theta in the span of the inputs alone, so that the pre-activations Z = Theta X^T
    `[runs, neurons, samples]` are the whole state. All methods take and return them in float64.

    Attributes:
        activation: cubic (z + z^3 / 6), quadratic (z + z^2 / 4), sinh, tanh, softplus or gelu
            (exact).
        gram: X X^T of each run's inputs.
        targets: y.
        output_weights: a, which do not train; None where all are one.

    Raises:
        ValueError: an activation that is not listed, or shapes that do not fit.
    """

    activation: str
    gram: Float64[Tensor, "runs samples samples"]
    targets: Float64[Tensor, "runs samples"]
    output_weights: Float64[Tensor, "runs neurons"] | None = None

    def __post_init__(self) -> None:
        """Hold the activation and the shapes against what is known."""
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(_ACTIVATIONS)}, got {self.activation!r}"
            )
        if self.gram.shape != (*self.targets.shape, self.targets.shape[-1]):
            raise ValueError(
                "gram and targets must be [runs, samples, samples] and [runs, samples], got "
                f"{tuple(self.gram.shape)} and {tuple(self.targets.shape)}"
            )
        weights = self.output_weights
        if weights is not None and (weights.ndim != 2 or len(weights) != len(self.targets)):
            raise ValueError(
                f"output_weights must be [runs, neurons] for {len(self.targets)} runs, got "
                f"{tuple(weights.shape)}"
            )

    @classmethod
    def fitting(
        cls,
        activation: str,
        gram: Float64[Tensor, "runs samples samples"],
        z: Preactivations,
        output_weights: Float64[Tensor, "runs neurons"] | None = None,
    ) -> CommitteeMachine:
        """With the targets that neurons of these pre-activations fit."""
        free = cls(activation, gram, torch.zeros_like(z[:, 0]), output_weights)
        return cls(activation, gram, free._weighted(free._phi(z)[0]).sum(1), output_weights)

    def slopes(self, z: Preactivations) -> Preactivations:
        """phi'(z)."""
        return self._phi(z)[1]

    def bends(self, z: Preactivations) -> Preactivations:
        """phi''(z); at the flattest exact fit c_i / a_j, a matrix of rank one.

        The features z themselves have rank one there where all a_j are equal, or phi'' is linear.
        """
        return _BENDS[self.activation](z)

    def hessian_trace(self, z: Preactivations) -> Float64[Tensor, " runs"]:
        """F = tr Hess L at zero loss, 2 sum_i ||x_i||^2 sum_j (a_j phi'(z_ij))^2."""
        norms = self.gram.diagonal(dim1=1, dim2=2)
        return 2 * (self._weighted(self.slopes(z)).square().sum(1) * norms).sum(1)

    def descend(
        self,
        z: Preactivations,
        steps: int,
        generators: Sequence[torch.Generator],
        *,
        lr: Float[Tensor, " runs"],
        noise_std: Float[Tensor, " runs"],
        on: Literal["targets", "preactivations"] = "targets",
    ) -> Preactivations:
        """Full-batch descent, Z <- Z - 2 lr (e a phi'(Z)) X X^T, with fresh noise in every step.

        Args:
            z: the start, left as it is.
            steps: how many.
            generators: of each run's noise; what a run draws does not depend on the others.
            lr: theta_j <- theta_j - lr sum_i 2 e_i a_j phi'(z_ij) x_i, e = r - y.
            noise_std: standard deviation of the noise, which is on the targets that a step sees, or
                on every pre-activation after it.
            on: what the noise is on.

        Raises:
            ValueError: `on` is another word, or the generators are not as many as the runs.
        """
        if on not in ("targets", "preactivations"):
            raise ValueError(f"on must be 'targets' or 'preactivations', got {on!r}")
        if len(generators) != len(z):
            raise ValueError(
                f"generators must be one for each of {len(z)} runs, got {len(generators)}"
            )
        steps = whole_number("steps", steps, least=0)
        size = z.shape[1:] if on == "preactivations" else (1, z.shape[2])
        doubled, wanted = 2 * lr[:, None, None] * self.gram, self.targets[:, None]
        z = z.clone()
        for begin in range(0, steps, _BLOCK):
            count = min(_BLOCK, steps - begin)
            own = [torch.randn(count, *size, generator=g, dtype=z.dtype) for g in generators]
            for drawn in noise_std[:, None, None] * torch.stack(own, dim=1):
                value, slope = map(self._weighted, self._phi(z))
                residual = value.sum(1, keepdim=True).sub_(wanted)
                if on == "targets":
                    residual.sub_(drawn)
                z.baddbmm_(slope.mul_(residual), doubled, alpha=-1)
                if on == "preactivations":
                    z.add_(drawn)
        return z

    def at_rest(self, z: Preactivations) -> Preactivations:
        """Where noise-free descent from z comes to rest at zero loss.

        Follows de/dt = -e by the shortest way in theta, which for orthogonal inputs is the path of
        the gradient flow. Of runs whose residual fluctuates it leaves what lies on the set of exact
        fits. With more inputs than dimensions, where equal neurons cannot undo every residual, a
        small ridge keeps the step finite.
        """
        for fraction in _TO_REST:
            value, slope = map(self._weighted, self._phi(z))
            residual = value.sum(1) - self.targets
            tangent = self._tangent(slope)
            ridge = _RIDGE * tangent.diagonal(dim1=1, dim2=2).mean(1)
            tangent.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
            pull = torch.linalg.solve_ex(tangent, residual).result
            z = z - fraction * (slope * pull[:, None]) @ self.gram
        return z

    def flatten(
        self,
        z: Preactivations,
        steps: int,
        *,
        lr: Float[Tensor, " runs"],
        noise_std: Float[Tensor, " runs"],
    ) -> Preactivations:
        """Where label noise takes z in so many steps, by its mean path; nothing in it is fitted.

        For a small lr that is the gradient flow of tr Hess L on the set of exact fits, on which a
        step is a time of lr^2 noise_std^2 / 2 (Li, Wang and Arora, arXiv 2110.06914). At a finite
        one the noise goes down -(2 / lr) tr log(1 - lr Hess L / 2), since what is curved more
        fluctuates more (Damian, Ma and Lee, arXiv 2106.06530). The mean path holds while
        fluctuations are small beside the scale on which phi' changes.

        Args:
            z: the start, which is first taken to rest.
            steps: how many.
            lr: as in `descend`.
            noise_std: likewise, of noise on the targets.

        Returns:
            NaN for runs whose lr x curvature is 2 or more at the start, where descent does not
            settle.
        """
        z, time = self.at_rest(z), steps * (lr * noise_std) ** 2 / 2
        fastest = self._fastest(z, lr)
        z = torch.where(fastest.isnan()[:, None, None], math.nan, z)
        folds = float((fastest.nan_to_num() * time).max())
        pieces = max(1, math.ceil(folds / _FINE))
        each = (time / pieces)[:, None, None]
        for _ in range(pieces):  # Runge and Kutta's
            first = self._flattening(z, lr)
            second = self._flattening(z + each / 2 * first, lr)
            third = self._flattening(z + each / 2 * second, lr)
            fourth = self._flattening(z + each * third, lr)
            z = z + each / 6 * (first + 2 * second + 2 * third + fourth)
        return self.at_rest(z)

    def _flattening(self, z: Tensor, lr: Tensor) -> Tensor:
        """The time derivative of that path, tangent to the set of exact fits."""
        slope = self._weighted(self.slopes(z))
        tangent = self._tangent(slope)
        damped = torch.eye(z.shape[2], dtype=z.dtype) - lr[:, None, None] * tangent
        shaken = self.gram * torch.linalg.inv_ex(damped).inverse
        pull = 4 * (self._weighted(self.bends(z)) * (slope @ shaken)) @ self.gram
        normal = torch.linalg.solve_ex(tangent, (slope * pull).sum(1)).result
        return (slope * normal[:, None]) @ self.gram - pull

    def _fastest(self, z: Tensor, lr: Tensor) -> Tensor:
        """No mode of the path is faster, `[runs]`, at the start; NaN where descent is unstable."""
        half = self._tangent(self._weighted(self.slopes(z)))
        finite = half.isfinite().flatten(1).all(1)
        half = torch.where(finite[:, None, None], half, 0.0)
        room = torch.where(finite, 1 - lr * torch.linalg.eigvalsh(half)[:, -1], math.nan)
        known = z.nan_to_num(0.0, 0.0, 0.0).numpy()
        first, third = map(torch.from_numpy, activation_derivatives(self.activation, known))
        own = self._weighted(self._weighted((first * third).abs())).amax((1, 2))
        widest = torch.linalg.eigvalsh(self.gram)[:, -1]
        largest = 4 * own * widest * self.gram.diagonal(dim1=1, dim2=2).amax(1)
        return torch.where(room > 0, largest / room, math.nan)

    def _tangent(self, slope: Tensor) -> Tensor:
        """Half of the Hessian at zero loss in the space of outputs, of weighted slopes."""
        return self.gram * (slope.mT @ slope)

    def _weighted(self, values: Tensor) -> Tensor:
        """Times the neurons' output weights."""
        return values if self.output_weights is None else values * self.output_weights[..., None]

    def _phi(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Both phi and phi' at once: fresh tensors, which may be written into."""
        return _ACTIVATIONS[self.activation](z)


def _cubic(z: Tensor) -> tuple[Tensor, Tensor]:
    square = z * z
    slope = (square * 0.5).add_(1)
    return square.mul_(1 / 6).add_(1).mul_(z), slope


def _quadratic(z: Tensor) -> tuple[Tensor, Tensor]:
    return (z * 0.25).add_(1).mul_(z), (z * 0.5).add_(1)


def _sinh(z: Tensor) -> tuple[Tensor, Tensor]:
    return z.sinh(), z.cosh()


def _tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    value = z.tanh()
    return value, 1 - value * value


def _softplus(z: Tensor) -> tuple[Tensor, Tensor]:
    return -(-z).sigmoid().log(), z.sigmoid()


def _gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    below = (z * math.sqrt(0.5)).erf_().add_(1).mul_(0.5)
    density = (z * z).mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
    return z * below, density.mul_(z).add_(below)


def _tanh_bend(z: Tensor) -> Tensor:
    value, slope = _tanh(z)
    return -2 * value * slope


def _softplus_bend(z: Tensor) -> Tensor:
    slope = z.sigmoid()
    return slope * (1 - slope)


def _gelu_bend(z: Tensor) -> Tensor:
    square = z * z
    return (2 - square) * (square / -2).exp() / math.sqrt(2 * math.pi)


_ACTIVATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "cubic": _cubic,
    "quadratic": _quadratic,
    "sinh": _sinh,
    "tanh": _tanh,
    "softplus": _softplus,
    "gelu": _gelu,
}
_BENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "cubic": torch.clone,
    "quadratic": lambda z: torch.full_like(z, 0.5),
    "sinh": torch.sinh,
    "tanh": _tanh_bend,
    "softplus": _softplus_bend,
    "gelu": _gelu_bend,
}
