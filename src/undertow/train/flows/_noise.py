"""A gradient and its noise, for many replicas at once: what the SDEs of optimizers are driven by.

g = grad L(theta) + C(theta)^(1/2) z with standard normal z, where C is the covariance of the
gradient that an optimizer sees. For an objective C = Sigma / batch_size, and a draw is one backward
pass through losses with centred normal weights: no covariance matrix and no per-sample gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.objective import Objective, whole_number

BatchedGradient = Callable[[Tensor], Tensor]
BatchedNoise = Callable[[Tensor, Tensor], Tensor]

# Replicas go through a network together while their inputs take at most so many bytes.
_TOGETHER_BYTES = 2**23
# Gradients of single samples are taken of so many samples at a time.
_APART = 8
# A covariance may be so far from symmetric or positive, relative to its largest entry.
_ROUNDING = 1e-10


@dataclass(frozen=True, eq=False)
class NoisyGradient:
    """A gradient and the covariance of its noise, as functions of a block of replicas.

    Exactly one of `covariance`, `factor` and `noise` says what the noise is.

    Attributes:
        gradient: theta `[replicas, params]` -> the full gradient of each, same shape, float64.
            Each row depends on its own row alone. Called under `torch.no_grad`.
        covariance: of the gradient that one step sees: the variances `[params]`, or a symmetric
            matrix `[params, params]` without negative eigenvalues.
        factor: A `[params, draws]` with A A^T = covariance.
        noise: (theta, z) -> C(theta)^(1/2) z, row by row, for standard normal z
            `[replicas, noise_size]`; for noise that depends on theta.
        noise_size: how many normal numbers `noise` takes for a replica; as many as parameters
            by default.
    """

    gradient: BatchedGradient
    covariance: Float[Tensor, "params ..."] | None = None
    factor: Float[Tensor, "params draws"] | None = None
    noise: BatchedNoise | None = None
    noise_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("gradient", "noise"):
            value = getattr(self, name)
            if not (callable(value) or (name == "noise" and value is None)):
                raise TypeError(f"{name} must be a function, got {type(value).__name__}")
        if sum(value is not None for value in (self.covariance, self.factor, self.noise)) != 1:
            raise ValueError("give exactly one of covariance, factor and noise")
        if self.noise_size is not None:
            whole_number("noise_size", self.noise_size, least=1)
            if self.noise is None:
                raise ValueError(f"noise_size={self.noise_size} belongs to a noise function")
        for name in ("covariance", "factor"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(f"{name} must be a tensor of real numbers, got {value!r}")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} holds NaN or infinities")
        if self.factor is not None and self.factor.ndim != 2:
            raise ValueError(f"factor must be [params, draws], got {tuple(self.factor.shape)}")
        if self.covariance is not None:
            _check_covariance(self.covariance)


def _check_covariance(covariance: Tensor) -> None:
    shape = tuple(covariance.shape)
    if covariance.ndim not in (1, 2) or len(set(shape)) != 1:
        raise ValueError(f"covariance must be [params] or [params, params], got {shape}")
    slack = _ROUNDING * float(covariance.abs().max())
    if covariance.ndim == 1:
        least = float(covariance.min())
    else:
        if float((covariance - covariance.T).abs().max()) > slack:
            raise ValueError("covariance must be symmetric; for a factor A use factor=A")
        least = float(torch.linalg.eigvalsh(covariance.double())[0])
    if least < -(slack if covariance.ndim == 2 else 0.0):
        raise ValueError(
            f"covariance must have no negative eigenvalue; the smallest is {least:.3g}"
        )


class Drive(Protocol):
    """What a solver needs of a problem; thetas are `[replicas, params]` of float64.

    Attributes:
        size: parameters p.
        draws: normal numbers that a replica takes in a step.
        variance: the diagonal of C where it is the same everywhere, else None.
    """

    size: int
    draws: int
    variance: Float64[Tensor, " params"] | None

    def shaped(self, normals: Float[Tensor, "steps replicas draws"]) -> Tensor:
        """Normal numbers as `advance` and `parts` take them, one step at a time."""

    def advance(
        self, theta: Tensor, shaped: Tensor, *, keep: float, drift: float, spread: float
    ) -> Tensor:
        """Keep x theta - drift x gradient - spread x noise at theta, whose memory may be used."""

    def parts(self, theta: Tensor, shaped: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and noise."""

    def diagonal(self, theta: Tensor) -> Float64[Tensor, "replicas params"]:
        """The diagonal of C at theta."""


class _Explicit:
    """A `NoisyGradient`."""

    def __init__(self, problem: NoisyGradient, size: int, device: torch.device) -> None:
        self._problem = problem
        self.size = size
        self._scale: Tensor | None = None  # of a diagonal
        self._mixing: Tensor | None = None  # [draws, params]
        self.variance: Float64[Tensor, " params"] | None = None
        self.draws = problem.noise_size or size
        covariance, factor = problem.covariance, problem.factor
        given = covariance if covariance is not None else factor
        if given is None:
            return
        if len(given) != size:
            name = "factor" if covariance is None else "covariance"
            raise ValueError(f"{name} has {len(given)} rows for {size} parameters")
        given = given.detach().to(device, torch.float64)
        if covariance is not None and covariance.ndim == 1:
            self._scale, self.variance = given.sqrt(), given
            return
        if covariance is not None:
            values, vectors = torch.linalg.eigh(given)
            given = vectors * values.clamp(min=0).sqrt()
        self._mixing, self.variance = given.T.contiguous(), given.square().sum(1)
        self.draws = len(self._mixing)

    def shaped(self, normals: Float[Tensor, "steps replicas draws"]) -> Tensor:
        if self._scale is not None:
            return normals * self._scale
        normals = normals.double()
        return normals if self._mixing is None else normals @ self._mixing

    def advance(
        self, theta: Tensor, shaped: Tensor, *, keep: float, drift: float, spread: float
    ) -> Tensor:
        gradient, noise = self.parts(theta, shaped)
        if keep != 1:
            theta = theta * keep  # not in place: the gradient may be theta itself
        return theta.add_(gradient, alpha=-drift).add_(noise, alpha=-spread)

    def parts(self, theta: Tensor, shaped: Tensor) -> tuple[Tensor, Tensor]:
        function = self._problem.noise
        noise = shaped if function is None else function(theta, shaped)
        return self._problem.gradient(theta), noise

    def diagonal(self, theta: Tensor) -> Float64[Tensor, "replicas params"]:
        if self.variance is not None:
            return self.variance.expand_as(theta)
        # Squares of the noise, summed over unit vectors in the place of z.
        total = torch.zeros_like(theta)
        for index in range(self.draws):
            unit = torch.zeros(1, len(theta), self.draws, device=theta.device)
            unit[..., index] = 1
            total += self.parts(theta.clone(), self.shaped(unit)[0])[1].square()
        return total


class _Network:
    """An objective in float64, its replicas stacked under `torch.func.vmap`."""

    def __init__(self, objective: Objective, batch_size: int) -> None:
        self.variance: Float64[Tensor, " params"] | None = None
        risk = objective.risk.at(torch.float64).held()
        risk.value()  # its own errors; and a model's own loss shows its denominator
        fixed = risk.own()
        self._chosen = [(name, fixed.pop(name).shape) for name in risk.param_names]
        self._risk, self._fixed = risk, fixed
        self._data = list(risk.batches())
        counts = risk.all_denominators().double()
        self.draws = len(counts)
        if self.draws < 2:
            raise ValueError("data hold one sample: its gradient has no covariance")
        self.size = risk.num_params
        self._mean = 1 / counts.sum()
        self._counts = counts
        # As in `Objective.sample_noise`: a mini-batch's ratio of sums, to first order.
        self._root = 1 / (math.sqrt(self.draws * batch_size) * counts.mean())
        held = max(_bytes(inputs) for inputs, _ in self._data)
        self._together = max(1, _TOGETHER_BYTES // max(1, held))

    def shaped(self, normals: Float[Tensor, "steps replicas draws"]) -> Tensor:
        """The samples' weights in a draw of the noise."""
        weights = normals.double()
        mean = weights @ self._counts * self._mean
        return weights.sub_(mean[..., None]).mul_(self._root)

    def advance(
        self, theta: Tensor, shaped: Tensor, *, keep: float, drift: float, spread: float
    ) -> Tensor:
        weights = torch.add(drift * self._mean, shaped, alpha=spread)
        change = self._pull_back(theta, weights[:, None])[:, 0]
        return theta.mul_(keep).sub_(change)

    def parts(self, theta: Tensor, shaped: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.stack([self._mean.expand_as(shaped), shaped], 1)
        both = self._pull_back(theta, weights)
        return both[:, 0], both[:, 1]

    def diagonal(self, theta: Tensor) -> Float64[Tensor, "replicas params"]:
        """Squares of each sample's gradient less its share of the mean.

        A few samples at a time: the gradient of one costs a pass over its piece of the data.
        """
        mean = self._pull_back(theta, self._mean.expand(len(theta), 1, self.draws))
        total = torch.zeros_like(theta)
        first = 0
        with self._risk.evaluating():
            for inputs, targets in self._data:
                for begin in range(0, len(targets), _APART):
                    chosen = slice(begin, begin + _APART)
                    some = _rows(targets, chosen)
                    each = torch.eye(len(some), dtype=torch.float64, device=theta.device)
                    own = self._gradients(
                        theta,
                        each.expand(len(theta), -1, -1),
                        _rows(inputs, chosen),
                        some,
                    )
                    counts = self._counts[first : first + len(some), None]
                    total += (own - counts * mean).square().sum(1)
                    first += len(some)
        return total * self._root**2

    def _pull_back(self, theta: Tensor, weights: Float64[Tensor, "replicas k samples"]) -> Tensor:
        """Gradients of the samples' losses in so weighted sums, `[replicas, k, params]`."""
        total = torch.zeros(*weights.shape[:2], self.size, dtype=torch.float64, device=theta.device)
        first = 0
        with self._risk.evaluating():
            for inputs, targets in self._data:
                chosen = weights[..., first : first + len(targets)]
                first += len(targets)
                total += self._gradients(theta, chosen, inputs, targets)
        return total

    def _gradients(self, theta: Tensor, weights: Tensor, inputs: Any, targets: Tensor) -> Tensor:
        def losses(own: Tensor) -> Tensor:
            parameters, first = dict(self._fixed), 0
            for name, shape in self._chosen:
                parameters[name] = own[first : first + shape.numel()].reshape(shape)
                first += shape.numel()
            return self._risk.sample_sums(parameters, inputs, targets)

        def one(own: Tensor, rows: Tensor) -> Tensor:
            back = torch.func.vjp(losses, own)[1]
            if len(rows) == 1:
                return back(rows[0])[0][None]
            return torch.func.vmap(lambda row: back(row)[0])(rows)

        return torch.func.vmap(one, chunk_size=self._together)(theta, weights)


def drive(
    problem: Objective | NoisyGradient,
    start: Float[Tensor, "*replicas params"] | None,
    replicas: int | None,
    batch_size: int | None,
) -> tuple[Drive, Float64[Tensor, "replicas params"]]:
    """A problem ready to be solved, and where its replicas start.

    Raises:
        TypeError: if `problem` or `start` is of another kind.
        ValueError: if shapes or sizes do not fit, or the gradient or noise is not finite at the
            start; and as `Objective`.
    """
    if not isinstance(problem, Objective | NoisyGradient):
        raise TypeError(
            f"problem must be an Objective or a NoisyGradient, got {type(problem).__name__}"
        )
    if isinstance(problem, Objective):
        if batch_size is None:
            raise ValueError("an Objective needs batch_size: the noise has covariance Sigma / it")
        if start is None:
            start = problem.risk.theta()
    elif batch_size is not None:
        raise ValueError(
            "batch_size belongs to an Objective; a NoisyGradient has the covariance of a step's "
            "gradient itself"
        )
    if start is None:
        raise ValueError("a NoisyGradient needs start, where the replicas begin")
    theta = stacked("start", start, replicas)
    if isinstance(problem, Objective):
        if theta.shape[1] != problem.num_params:
            raise ValueError(
                f"start has {theta.shape[1]} parameters; the objective has {problem.num_params}"
            )
        assert batch_size is not None
        found: Drive = _Network(problem, whole_number("batch_size", batch_size, least=1))
    else:
        found = _Explicit(problem, theta.shape[1], theta.device)
    _try(found, theta)
    if isinstance(problem, NoisyGradient):
        _check_rows("gradient", problem.gradient, theta)
        if problem.noise is not None:
            # Normal numbers that differ from row to row and from column to column.
            z = torch.arange(len(theta) * found.draws, device=theta.device).double()
            _check_rows("noise", problem.noise, theta, z.sin().reshape(len(theta), found.draws))
    return found, theta


def stacked(
    name: str, value: Float[Tensor, "*replicas params"], replicas: int | None
) -> Float64[Tensor, "replicas params"]:
    """A start for every replica, in memory of its own: a vector is repeated `replicas` times."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        given = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of floating-point numbers, got {given}")
    if value.ndim not in (1, 2) or value.numel() == 0:
        raise ValueError(f"{name} must be [params] or [replicas, params], got {tuple(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} holds NaN or infinities")
    if value.ndim == 2 and replicas not in (None, len(value)):
        raise ValueError(f"{name} has {len(value)} replicas, but replicas={replicas}")
    if value.ndim == 1:
        value = value.expand(
            whole_number("replicas", 1 if replicas is None else replicas, least=1), -1
        )
    return value.detach().to(torch.float64, copy=True).contiguous()


@torch.no_grad()
def _try(problem: Drive, theta: Tensor) -> None:
    """Evaluate once at the start."""
    normals = torch.ones(1, len(theta), problem.draws, device=theta.device)
    parts = problem.parts(theta.clone(), problem.shaped(normals)[0])
    for name, part in zip(("gradient", "noise"), parts, strict=True):
        if not isinstance(part, Tensor) or part.dtype != torch.float64:
            given = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise TypeError(f"{name} must give a float64 tensor, got {given}")
        if part.shape != theta.shape:
            raise ValueError(
                f"{name} must give one row a replica, {tuple(theta.shape)}, got {tuple(part.shape)}"
            )
        if not bool(torch.isfinite(part).all()):
            raise ValueError(f"the {name} at start holds NaN or infinities")


@torch.no_grad()
def _check_rows(name: str, function: Callable[..., Tensor], *blocks: Tensor) -> None:
    """Raise where what a replica gets depends on how many there are, as with a mean."""
    row = function(*(block[:1].clone() for block in blocks))
    together = function(*(block.clone() for block in blocks))[:1]
    if row.shape != together.shape or not torch.allclose(row, together, rtol=1e-6, atol=1e-9):
        raise ValueError(
            f"{name} must treat each replica alone, but that of the first changes with the "
            "others: sum over replicas where a scalar is wanted, do not average"
        )


def _rows(part: Any, chosen: slice) -> Any:
    if isinstance(part, Mapping):
        return {name: _rows(value, chosen) for name, value in part.items()}
    return part[chosen] if isinstance(part, Tensor) else part


def _bytes(part: Any) -> int:
    if isinstance(part, Mapping):
        return sum(_bytes(value) for value in part.values())
    return part.numel() * part.element_size() if isinstance(part, Tensor) else 0
