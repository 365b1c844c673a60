"""Networks of one hidden layer whose output weights are one, trained in their pre-activations.

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

_BLOCK = 500  # steps whose noise is drawn at once
_RIDGE = 1e-4
_TO_REST = (*[0.15] * 40, *[1.0] * 4)  # small steps along the path, then whole ones
Preactivations = Float64[Tensor, "runs neurons samples"]


@dataclass(frozen=True, eq=False)
class CommitteeMachine:
    """r(x) = sum_j phi(theta_j . x) on squared error sum_i (r(x_i) - y_i)^2, run by run.

    Descent moves theta in the span of the inputs alone, so that the pre-activations Z = Theta X^T
    `[runs, neurons, samples]` are the whole state. All methods take and return them in float64.

    Attributes:
        activation: cubic (z + z^3 / 6), quadratic (z + z^2 / 4), tanh, softplus or gelu (exact).
        gram: X X^T of each run's inputs.
        targets: y.

    Raises:
        ValueError: an activation that is not listed, or shapes that do not fit.
    """

    activation: str
    gram: Float64[Tensor, "runs samples samples"]
    targets: Float64[Tensor, "runs samples"]

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

    @classmethod
    def agreeing(
        cls,
        activation: str,
        gram: Float64[Tensor, "runs samples samples"],
        common: Float64[Tensor, "runs samples"],
        neurons: int,
    ) -> CommitteeMachine:
        """With the targets that so many neurons fit when all of them have `common`."""
        free = cls(activation, gram, torch.zeros_like(common))
        return cls(activation, gram, neurons * free._phi(common)[0])

    def slopes(self, z: Preactivations) -> Preactivations:
        """phi'(z)."""
        return self._phi(z)[1]

    def hessian_trace(self, z: Preactivations) -> Float64[Tensor, " runs"]:
        """F = tr Hess L at zero loss, 2 sum_i ||x_i||^2 sum_j phi'(z_ij)^2."""
        norms = self.gram.diagonal(dim1=1, dim2=2)
        return 2 * (self.slopes(z).square().sum(1) * norms).sum(1)

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
        """Full-batch descent, Z <- Z - 2 lr (e phi'(Z)) X X^T, with fresh noise in every step.

        Args:
            z: the start, left as it is.
            steps: how many.
            generators: of each run's noise; what a run draws does not depend on the others.
            lr: theta_j <- theta_j - lr sum_i 2 e_i phi'(z_ij) x_i, e = r - y.
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
                value, slope = self._phi(z)
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
            value, slope = self._phi(z)
            residual = value.sum(1) - self.targets
            tangent = self.gram * (slope.mT @ slope)
            ridge = _RIDGE * tangent.diagonal(dim1=1, dim2=2).mean(1)
            tangent.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
            pull = torch.linalg.solve_ex(tangent, residual).result
            z = z - fraction * (slope * pull[:, None]) @ self.gram
        return z

    def _phi(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Both phi and phi' at once: fresh tensors, which may be written into."""
        return _ACTIVATIONS[self.activation](z)


def _cubic(z: Tensor) -> tuple[Tensor, Tensor]:
    square = z * z
    slope = (square * 0.5).add_(1)
    return square.mul_(1 / 6).add_(1).mul_(z), slope


def _quadratic(z: Tensor) -> tuple[Tensor, Tensor]:
    return (z * 0.25).add_(1).mul_(z), (z * 0.5).add_(1)


def _tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    value = z.tanh()
    return value, 1 - value * value


def _softplus(z: Tensor) -> tuple[Tensor, Tensor]:
    return -(-z).sigmoid().log(), z.sigmoid()


def _gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    below = (z * math.sqrt(0.5)).erf_().add_(1).mul_(0.5)
    density = (z * z).mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
    return z * below, density.mul_(z).add_(below)


_ACTIVATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "cubic": _cubic,
    "quadratic": _quadratic,
    "tanh": _tanh,
    "softplus": _softplus,
    "gelu": _gelu,
}
