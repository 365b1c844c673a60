"""What a deterministic flow goes down: a scalar function of the parameters, in float64.

An `Objective` is evaluated by its risk in double precision; a plain function is differentiated as
it is. Solvers see flat numpy arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.objective import CurvatureProducts, Objective, gradient

Array = Float64[np.ndarray, " params"]
Function = Callable[[Tensor], Tensor]


class Potential(ABC):
    """L as a function of flat float64 arrays, with its derivatives and what they cost.

    Where an objective is not finite, so are its value and gradient here: NaN.

    Attributes:
        shape: of theta, as the user sees it.
        start: theta(0), flat.
        gradients: gradients taken so far.
        products: Hessian-vector products taken so far.
    """

    def __init__(self, start: Float[Tensor, " *theta"]) -> None:
        self.shape = start.shape
        self._device = start.device
        self.start: Array = start.detach().double().flatten().cpu().numpy().copy()
        self.gradients = 0
        self.products = 0

    @property
    def size(self) -> int:
        """The number of parameters p."""
        return len(self.start)

    def tensor(self, theta: Float64[np.ndarray, "*batch params"]) -> Tensor:
        """Theta as the user sees it."""
        return torch.tensor(theta, dtype=torch.float64, device=self._device).reshape(
            (*theta.shape[:-1], *self.shape)
        )

    def gradient(self, theta: Array) -> Array:
        """The gradient of L; zero for parameters that it does not depend on."""
        self.gradients += 1
        return self._gradient(theta)

    def hessian_product(
        self, theta: Array, directions: Float64[np.ndarray, "k params"]
    ) -> Float64[np.ndarray, "k params"]:
        """The Hessian of L times each direction."""
        self.products += len(directions)
        block = torch.tensor(directions, dtype=torch.float64, device=self._device)
        return self._hessian_product(theta, block)

    def hessian(self, theta: Array) -> Float64[np.ndarray, "params params"]:
        """The whole Hessian, symmetric to the last bit."""
        matrix = self.hessian_product(theta, np.eye(self.size))
        return (matrix + matrix.T) / 2

    @abstractmethod
    def value(self, theta: Array) -> float:
        """L(theta)."""

    @abstractmethod
    def _gradient(self, theta: Array) -> Array: ...

    @abstractmethod
    def _hessian_product(self, theta: Array, block: Tensor) -> Array: ...


class _FunctionPotential(Potential):
    """A plain function theta -> scalar tensor."""

    def __init__(self, function: Function, start: Tensor) -> None:
        super().__init__(start)
        self._function = function

    def value(self, theta: Array) -> float:
        with torch.no_grad():
            return float(self._scalar(self.tensor(theta)))

    def _gradient(self, theta: Array) -> Array:
        point = self.tensor(theta).requires_grad_()
        return self._slope(point, create_graph=False).detach().flatten().cpu().numpy()

    def _hessian_product(self, theta: Array, block: Tensor) -> Array:
        point = self.tensor(theta).requires_grad_()
        slope = self._slope(point, create_graph=True)
        if not slope.requires_grad:  # L is linear
            return np.zeros((len(block), self.size))
        (product,) = torch.autograd.grad(
            slope,
            point,
            block.reshape(-1, *self.shape),
            is_grads_batched=True,
            allow_unused=True,
            materialize_grads=True,
        )
        # By force: where L is piecewise linear, it may be zeros without memory.
        return product.flatten(1).numpy(force=True)

    def _slope(self, point: Tensor, *, create_graph: bool) -> Tensor:
        with torch.enable_grad():
            loss = self._scalar(point)
        if not loss.requires_grad:
            return torch.zeros_like(point)
        (slope,) = torch.autograd.grad(
            loss, point, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
        return slope

    def _scalar(self, theta: Tensor) -> Tensor:
        loss = self._function(theta)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"objective must return a scalar tensor, got {given}")
        return loss.reshape(())


class _ObjectivePotential(Potential):
    """An objective's risk in float64, with parameters of its own."""

    def __init__(self, objective: Objective, start: Tensor | None) -> None:
        self._risk = objective.risk.at(torch.float64).held()
        self._products = CurvatureProducts(self._risk)
        own = self._risk.theta()
        super().__init__(own if start is None else start.to(own))
        # Its own errors (targets that make no sense, say) come from here; later ones are NaN.
        self._set(self.start)
        gradient(self._risk)

    def value(self, theta: Array) -> float:
        self._set(theta)
        found = _if_finite(self._risk.value)
        return float("nan") if found is None else float(found)

    def _gradient(self, theta: Array) -> Array:
        self._set(theta)
        found = _if_finite(lambda: gradient(self._risk))
        return np.full(self.size, np.nan) if found is None else found.cpu().numpy()

    def _hessian_product(self, theta: Array, block: Tensor) -> Array:
        self._set(theta)
        found = _if_finite(lambda: self._products.product("hessian", block))
        return np.full(tuple(block.shape), np.nan) if found is None else found.numpy(force=True)

    def _set(self, theta: Array) -> None:
        self._risk.move(self.tensor(theta))


def potential(objective: Objective | Function, start: Float[Tensor, " *theta"] | None) -> Potential:
    """The objective or function as a potential, evaluated once to see that it can be.

    Raises:
        TypeError: if `objective` is neither, or does not give a scalar tensor, or `start` is no
            tensor of real floating-point numbers.
        ValueError: if a function has no `start`, `start` has the wrong size or is not finite, or
            L is not finite there; and as `Objective`.
    """
    if not (isinstance(objective, Objective) or callable(objective)):
        raise TypeError(
            "objective must be an Objective or a function theta -> scalar tensor, got "
            f"{type(objective).__name__}"
        )
    if start is None:
        if not isinstance(objective, Objective):
            raise ValueError("a function needs start, the parameters that the flow begins at")
    elif not isinstance(start, Tensor) or not start.is_floating_point():
        given = start.dtype if isinstance(start, Tensor) else type(start).__name__
        raise TypeError(f"start must be a tensor of floating-point numbers, got {given}")
    elif start.numel() == 0 or not torch.isfinite(start).all():
        raise ValueError("start must hold finite numbers, at least one")
    if isinstance(objective, Objective):
        if start is not None and start.shape != (objective.num_params,):
            raise ValueError(
                f"start must be a vector of the objective's {objective.num_params} parameters, "
                f"got shape {tuple(start.shape)}"
            )
        found: Potential = _ObjectivePotential(objective, start)
    else:
        assert start is not None
        found = _FunctionPotential(objective, start)
    value, slope = found.value(found.start), found.gradient(found.start)
    if not (np.isfinite(value) and np.isfinite(slope).all()):
        raise ValueError(f"objective is {value} at start, or its gradient is not finite there")
    return found


def _if_finite(evaluate: Callable[[], Tensor]) -> Tensor | None:
    """What an objective gives, or None where it is not finite; all else it raised at the start."""
    try:
        return evaluate()
    except ValueError:
        return None


def increasing(name: str, values: float | Sequence[float]) -> Float64[np.ndarray, " times"]:
    """`values` as times: one positive number, or several that start at 0 or later and increase.

    Raises:
        ValueError: if they are anything else.
    """
    times = np.atleast_1d(np.asarray(values, dtype=np.float64))
    scalar = np.ndim(values) == 0
    if (
        times.ndim != 1
        or len(times) == 0
        or not np.isfinite(times).all()
        or (np.diff(times) <= 0).any()
        or times[0] < 0
        or times[-1] <= 0
    ):
        wanted = "a positive number" if scalar else "increasing numbers >= 0 that end above 0"
        raise ValueError(f"{name} must be {wanted}, got {values!r}")
    return times
