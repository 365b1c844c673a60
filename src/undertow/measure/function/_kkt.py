"""How far the direction of the parameters is from a KKT point of the margin problem.

arXiv 1906.05890, section 2: min ||theta||^2 / 2 such that q_n(theta) >= 1, for a network of degree
L. Its KKT points are the directions to which gradient flow on a loss with an exponential tail goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from undertow.measure._evaluation import class_scores, outputs_of, state_of
from undertow.measure._kinds import check_objective
from undertow.measure.function._homogeneity import homogeneity
from undertow.objective import Objective, taken, whole_number

_AT_ONCE = 64  # constraints that are added in a round
_FEASIBLE = 1e-9  # by so much a constraint may be missed


@dataclass(frozen=True, eq=False)
class KKTResidual:
    """The distance of a direction from the KKT points of min ||theta||^2 / 2, q_n >= 1.

    With theta^ = theta / rho, g_n = grad q_n rho / (L q_min) and r_n = q_n / q_min, so that
    theta^ . g_n = r_n >= 1: at a KKT point theta^ = sum mu_n g_n, mu_n >= 0, mu_n (r_n - 1) = 0.
    All numbers are free of the scale of the parameters, and of the inputs.

    Attributes:
        value: 1 - ||v||^2, where v is the shortest vector with g_n . v >= 1: the least over mu of
            ||theta^ - sum mu_n g_n||^2 + 2 sum mu_n (r_n - 1), stationarity and complementarity
            with the best multipliers. 0 at a KKT point, below 1, and ||theta^ - v||^2 is no more.
        interval: what is known of it: it lies between, where constraints were left out.
        stationarity: ||theta^ - mu g|| with those multipliers.
        complementarity: sum mu_n (r_n - 1) with those multipliers.
        alignment: cos(theta, -grad Loss), beta in the paper: with the loss's own multipliers, those
            of the cross-entropy; it goes to 1.
        loss_complementarity: sum mu_n (r_n - 1) / sum mu_n r_n with the loss's own multipliers.
        support: constraints with a positive multiplier.
        degree: L.
        converged: whether the interval is as short as `atol`.
        passes: forward and backward passes over the data, without those of `homogeneity`.
    """

    value: float
    interval: tuple[float, float]
    stationarity: float
    complementarity: float
    alignment: float
    loss_complementarity: float
    support: int
    degree: float
    converged: bool
    passes: int

    def as_dict(self) -> dict[str, Any]:
        """Every number by its name."""
        return dict(self.__dict__)

    def __repr__(self) -> str:
        low, high = self.interval
        known = "" if self.converged else f", between {low:.3g} and {high:.3g} (not converged)"
        return (
            f"KKT residual {self.value:.3g}{known}: a linear step could raise the margin by "
            f"{_raise(self.value):.3g} of it; {self.support} support constraints.\n"
            f"  With the loss's own multipliers: cos(theta, -grad) = {self.alignment:.6g}, "
            f"complementarity {self.loss_complementarity:.3g}."
        )


def kkt_residual(
    objective: Objective,
    *,
    degree: float | None = None,
    atol: float = 1e-4,
    max_active: int = 1024,
) -> KKTResidual:
    """How far the parameters' direction is from a KKT point of the margin (arXiv 1906.05890).

    The best multipliers are those of a support vector machine on the gradients of the margins,
    solved exactly (Lawson and Hanson's least distance problem) on the constraints that matter,
    found by how far the solution misses others. In float64; weights of the loss are a softmax,
    so that it does not matter how far below any float the loss lies. Of ReLU and maxima, the
    gradients are PyTorch's, elements of the paper's Clarke differential; q_n has a constraint for
    each other class.

    Args:
        objective: outputs `[n, C]` with one label a sample, or one output with targets 0 and 1, or
            -1 and +1, as in `margins`. Its loss plays no part.
        degree: L where it is known; measured by `homogeneity` otherwise.
        atol: of the value, at which no more constraints are added.
        max_active: constraints that are written down, each as long as the parameters.

    Raises:
        ValueError: if the network is not homogeneous, the data are not separated, a sample has
            several labels, or an argument is out of range.
    """
    check_objective(objective)
    whole_number("max_active", max_active)
    if not 0 < atol < 1:
        raise ValueError(f"atol must lie strictly between 0 and 1, got {atol}")
    degree = _degree_of(objective, degree)
    risk = objective.risk.at(torch.float64)
    with risk.evaluating(), torch.no_grad():
        risk.check_outputs()
        state = state_of(risk)
        problem = _Problem(objective, risk, state, degree)
        return problem.solve(atol, max_active)


class _Problem:
    """Margins of every label against every other class, and their gradients on demand."""

    def __init__(
        self, objective: Objective, risk: Any, state: Mapping[str, Tensor], degree: float
    ) -> None:
        self.objective, self.risk, self.state, self.degree = objective, risk, dict(state), degree
        self.names = objective.param_names
        self.batches = list(risk.batches())
        gaps, logs = zip(*(self._gaps(batch) for batch in self.batches), strict=True)
        self.sizes = [len(gap) for gap in gaps]
        pairs = torch.cat(gaps)  # infinite at the label itself
        self.least = float(pairs.min())
        missed = int((pairs.amin(1) <= 0).sum())
        if missed:
            raise ValueError(
                f"the data must be separated, so that there is a margin: {missed} of {len(pairs)} "
                "labels do not score highest; train on, or drop them"
            )
        self.ratios = pairs / self.least
        flat = torch.cat([self.state[name].reshape(-1) for name in self.names])
        self.norm = float(flat.norm())
        self.unit = flat / self.norm
        self.scale = self.norm / (degree * self.least)
        self.weights = torch.cat(logs).flatten().softmax(0).view_as(pairs)
        self.passes = 1

    def solve(self, atol: float, max_active: int) -> KKTResidual:
        """Add the constraints that the solution misses, until none is missed by what matters."""
        alignment, loose = self._of_the_loss()
        ratios = self.ratios.flatten()
        chosen = ratios.argsort()[: min(_AT_ONCE, int(ratios.isfinite().sum()))]
        rows = self._rows(chosen)
        while True:
            multipliers = _shortest(rows)
            vector = multipliers @ rows
            square = min(float(vector @ vector), 1.0)
            reached = self._along(vector)
            reached[chosen] = math.inf
            worst = min(1.0, float(reached.min()))
            low = 1 - min(1.0, square / max(worst, 1e-12) ** 2)
            enough = 1 - square - low <= atol
            short = (reached < 1 - _FEASIBLE).nonzero()[:, 0]
            room = min(_AT_ONCE, max_active - len(chosen))
            if enough or not len(short) or room <= 0:
                break
            more = short[reached[short].argsort()[:room]]
            chosen = torch.cat([chosen, more])
            rows = torch.cat([rows, self._rows(more)])
        support = multipliers > 1e-9 * multipliers.max()
        return KKTResidual(
            value=1 - square,
            interval=(low, 1 - square),
            stationarity=float((self.unit - vector).norm()),
            complementarity=float(multipliers @ (ratios[chosen] - 1)),
            alignment=alignment,
            loss_complementarity=loose,
            support=int(support.sum()),
            degree=self.degree,
            converged=enough or not len(short),
            passes=self.passes,
        )

    def _gaps(self, batch: tuple[Any, Tensor]) -> tuple[Tensor, Tensor]:
        """Every label's margin over each class, and the log probability of that class."""
        inputs, targets = batch
        scores, labels = self._scores(self.state, inputs, targets)
        own = scores.gather(1, labels[:, None])
        inf = torch.full_like(own, math.inf)
        logs = scores.log_softmax(1).scatter(1, labels[:, None], -inf)
        return (own - scores).scatter(1, labels[:, None], inf), logs

    def _scores(
        self, state: Mapping[str, Tensor], inputs: Any, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        outputs = outputs_of(self.risk, state, inputs).double()
        scores, labels = class_scores(self.objective.loss, outputs, targets)
        if len(labels) != len(targets):
            raise ValueError(
                f"every sample must have one label that counts, got {len(labels)} labels of "
                f"{len(targets)} samples"
            )
        return scores, labels

    def _graph(self, inputs: Any, targets: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Parameters that record, and every label's margin over each class, its own excepted."""
        own = {name: self.state[name].detach().requires_grad_() for name in self.names}
        scores, labels = self._scores(self.state | own, inputs, targets)
        return list(own.values()), scores.gather(1, labels[:, None]) - scores, labels

    def _rows(self, chosen: Tensor) -> Float64[Tensor, "constraints params"]:
        """The gradients g of chosen constraints, in their order."""
        classes = self.ratios.shape[1]
        found = torch.empty(len(chosen), len(self.unit), dtype=torch.float64)
        start = 0
        for (inputs, targets), size in zip(self.batches, self.sizes, strict=True):
            sample, other = (chosen // classes) - start, chosen % classes
            here = ((sample >= 0) & (sample < size)).nonzero()[:, 0]
            start += size
            if not len(here):
                continue
            needed, where = sample[here].unique(return_inverse=True)
            with torch.enable_grad():
                own, gaps, _ = self._graph(taken(inputs, needed), targets[needed])
                wanted = gaps[where, other[here]]
            eye = torch.eye(len(here), dtype=torch.float64, device=wanted.device)
            parts = torch.autograd.grad(
                wanted, own, eye, is_grads_batched=True, materialize_grads=True
            )
            found[here] = torch.cat([part.flatten(1) for part in parts], 1).cpu() * self.scale
        self.passes += 1
        return found

    def _along(self, vector: Tensor) -> Float64[Tensor, " constraints"]:
        """The numbers g . v of all constraints: a product with the Jacobian, as a double vjp."""
        found = []
        for inputs, targets in self.batches:
            with torch.enable_grad():
                own, gaps, labels = self._graph(inputs, targets)
                dual = torch.zeros_like(gaps, requires_grad=True)
                grads = torch.autograd.grad(
                    gaps, own, dual, create_graph=True, materialize_grads=True
                )
                pieces = vector.to(gaps).split([each.numel() for each in own])
                product = sum(
                    (grad.reshape(-1) @ piece for grad, piece in zip(grads, pieces, strict=True)),
                    start=0.0 * dual.sum(),
                )
                (slopes,) = torch.autograd.grad(product, dual)
            inf = torch.full_like(slopes[:, :1], math.inf)
            found.append((slopes * self.scale).scatter(1, labels[:, None], inf).cpu())
        self.passes += 2
        return torch.cat(found).flatten()

    def _of_the_loss(self) -> tuple[float, float]:
        """The alignment of theta with -grad of the cross-entropy, and the complementarity there."""
        total = torch.zeros_like(self.unit)
        start = 0
        for (inputs, targets), size in zip(self.batches, self.sizes, strict=True):
            with torch.enable_grad():
                own, gaps, _ = self._graph(inputs, targets)
                weighted = (gaps * self.weights[start : start + size].to(gaps)).sum()
                parts = torch.autograd.grad(weighted, own, materialize_grads=True)
            total += torch.cat([part.reshape(-1) for part in parts]).to(total)
            start += size
        self.passes += 1
        heavy = self.weights > 0
        mean = float((self.weights[heavy] * self.ratios[heavy]).sum())
        return float(self.unit @ total / total.norm()), 1 - 1 / mean


def _shortest(rows: Float64[Tensor, "constraints params"]) -> Float64[Tensor, " constraints"]:
    """The multipliers of the shortest v with rows v >= 1 (Lawson and Hanson 1974, chapter 23)."""
    from scipy.optimize import nnls

    # What is asked of the rows is their Gram matrix alone; they are as long as the parameters.
    gram: NDArray[np.float64] = (rows @ rows.T).numpy()
    values, vectors = np.linalg.eigh(gram)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    system = np.concatenate([root.T, np.ones((1, len(root)))])
    goal = np.zeros(len(system))
    goal[-1] = 1.0
    weights, _ = nnls(system, goal, maxiter=50 * len(root))
    return torch.from_numpy(weights / (1 - weights.sum()))


def _degree_of(objective: Objective, degree: float | None) -> float:
    if degree is None:
        found = homogeneity(objective)
        if not found.homogeneous:
            raise ValueError(
                "the network must be homogeneous for its margin to have KKT points: "
                f"f(c theta) misses c^L f(theta) by {found.deviation:.1e}; leave out biases beyond "
                "the first layer and normalisation, or give params without them"
            )
        degree = found.degree
    if not 0 < degree < math.inf:
        raise ValueError(f"degree must be positive and finite, got {degree}")
    return degree


def _raise(value: float) -> float:
    """The share by which the margin of the linear problem lies above that of the parameters."""
    return 1 / math.sqrt(max(1 - value, 1e-300)) - 1
