"""Gradient flow of two-layer leaky-ReLU networks far past zero loss, many runs as one program.

f(x) = sum_k a_k phi(w_k . x), phi(z) = max(z, slope z), both layers trained on the mean logistic
loss (Lyu, Li, Wang and Arora, 2110.13905), in float64 and in logarithms from 1e-30 to e^-1e10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from undertow.objective import whole_number

_DIAGONAL = 1 + math.sqrt(0.5)  # of the two-stage Rosenbrock scheme, damping what is stiff
_FIRST, _SHRINK, _GROW, _SAFETY = 0.02, 0.2, 1.5, 0.9  # of the first step, and of step sizes
_WEIGHTS = 0.1  # of samples in the loss: how much of them may be misplaced
_SMALLEST = 1e-140  # norm of a neuron whose squares, and of these the errors, are in float64
_DEEPEST = 1e12  # of -log loss: beyond it rounding of the outputs reaches the loss


_Solver = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False, repr=False)
class TwoLayerPath:
    """Runs of `two_layer_flow` where each first had the log loss of a reading, or less.

    What a run did not reach is NaN.

    Attributes:
        log_losses: the logarithm of the mean logistic loss there.
        log_times: the logarithm of the time of the flow; times themselves leave float64's range.
        weights: w.
        outputs: a.
        margins: min_n y_n f(x_n) / ||theta||^2, theta all weights of both layers.
        steps: how many each run tried, those that were too long among them.
        slope: of phi below zero.
    """

    log_losses: Float64[Tensor, "runs readings"]
    log_times: Float64[Tensor, "runs readings"]
    weights: Float64[Tensor, "runs readings neurons features"]
    outputs: Float64[Tensor, "runs readings neurons"]
    margins: Float64[Tensor, "runs readings"]
    steps: Int64[Tensor, " runs"]
    slope: float

    def __repr__(self) -> str:
        runs, there = len(self.steps), self.reached[:, -1]
        if not there.any():
            return f"{runs} two-layer networks, none of which reached its last log loss."
        deep, least = (own[there, -1] for own in (self.log_losses, self.margins))
        return (
            f"{int(there.sum())} of {runs} two-layer networks reached their last log loss, at most "
            f"{float(deep.max()):.4g}, with margins of {float(least.min()):.4g} to "
            f"{float(least.max()):.4g} in {int(self.steps.max())} steps or less."
        )

    @property
    def reached(self) -> Bool[Tensor, "runs readings"]:
        """Whether a run reached a reading."""
        return self.log_losses.isfinite()

    @property
    def linear_parts(self) -> Float64[Tensor, "runs readings features"]:
        """With v = (1 + slope) / 2 sum_k a_k w_k, f is v . x and a part that is even in x."""
        return (1 + self.slope) / 2 * (self.outputs[..., None] * self.weights).sum(-2)

    @property
    def shares(self) -> Float64[Tensor, "runs readings 2"]:
        """Of ||theta||^2, what neurons with a > 0 have, and those with a < 0."""
        own = self.weights.square().sum(-1) + self.outputs.square()
        each = [(own * (sign * self.outputs > 0)).sum(-1) for sign in (1, -1)]
        return torch.stack(each, -1) / own.sum(-1)[..., None]

    @property
    def rank_ratios(self) -> Float64[Tensor, "runs readings"]:
        """Second over first singular value of the matrix of all (w_k, a_k); 0 at rank one."""
        rows = torch.cat([self.weights, self.outputs[..., None]], -1)
        singular = torch.linalg.svdvals(rows.nan_to_num())
        second = singular[..., 1] if singular.shape[-1] > 1 else torch.zeros_like(self.margins)
        return (second / singular[..., 0]).where(self.reached, math.nan)

    def predict(
        self, inputs: Float[Tensor, "runs samples features"]
    ) -> Float64[Tensor, "runs readings samples"]:
        """The function f of other inputs at every reading."""
        hidden = inputs.double()[:, None] @ self.weights.mT
        active = torch.where(hidden > 0, hidden, self.slope * hidden)
        return (active @ self.outputs[..., None])[..., 0]


def two_layer_flow(
    inputs: Float[Tensor, "runs samples features"],
    labels: Float[Tensor, "runs samples"],
    weights: Float[Tensor, "runs neurons features"],
    outputs: Float[Tensor, "runs neurons"],
    *,
    slope: float,
    log_losses: Sequence[float],
    rtol: float = 1e-3,
    max_steps: int = 20_000,
) -> TwoLayerPath:
    """Follow theta' = -grad L from a start to these log losses, in float64 on the processor.

    L is the mean of log(1 + exp(-q_n)), q_n = y_n f(x_n). The path is that of the flow; its time is
    theta' = -grad log L, in which theta grows at a steady rate before and after the loss falls:
    from 1e-20 to a loss of e^-1e10 takes about a thousand steps, where descent on log L, whose
    steps are bound by its curvature, would take some 1e11. Where a neuron's boundary comes to rest
    on a sample the flow slides along a kink, and steps are small.

    A step is that of a two-stage Rosenbrock scheme of second order for any approximation of the
    Jacobian (Verwer, Spee, Blom and Hundsdorfer 1999, ROS2), here -J' D J: J the derivatives of q
    and D the curvature of log L in q, the part that is stiff where several q_n tie for the least.
    Its inverse is one of n x n matrices (Woodbury). Steps are each run's own, such that those of
    the first and the second order differ by at most rtol of each neuron's norm.

    Args:
        inputs: of each run its own.
        labels: y, 1 or -1.
        weights: w at the start. A neuron is zero, and stays so, or of norm 1e-140 or more.
        outputs: a at the start.
        slope: of phi below zero, from 0 (ReLU, at whose kink the flow is not unique) to 1 (linear).
        log_losses: where a run is read: log L, falling, above -1e12.
        rtol: of a step.
        max_steps: runs that need more, such as those that cannot fit, are not read any further.

    Raises:
        ValueError: shapes that do not fit, values that are not finite or out of range.
        TypeError: max_steps is no whole number, or something is no tensor.
    """
    whole_number("max_steps", max_steps, least=1)
    given = {"inputs": inputs, "labels": labels, "weights": weights, "outputs": outputs}
    _check(given, slope, log_losses, rtol)
    x, y, w, a = (value.detach().cpu().double() for value in given.values())
    levels = torch.tensor([*log_losses, -math.inf], dtype=torch.float64)
    path = _unread(w, a, len(log_losses), slope)
    runs = _Runs(x, y, x @ x.mT, slope)
    index, log_time = torch.zeros(len(x), dtype=torch.int64), torch.full_like(y[:, 0], -math.inf)
    alive, step = torch.arange(len(x)), None
    now = runs.at(w, a)
    for taken in range(max_steps + 1):
        path.steps[alive] = taken
        while (due := now.log_loss <= levels[index]).any():
            _read(path, alive[due], index[due], now.of(due), log_time[due])
            index = index + due.long()
        going = index < len(log_losses)
        if not going.all():
            runs, now, alive = runs.of(going), now.of(going), alive[going]
            index, log_time = index[going], log_time[going]
            step = None if step is None else step[going]
        if not len(alive):
            break
        step = _FIRST / now.rate() if step is None else step
        after, error = runs.step(now, step, rtol)
        kept = error <= 1  # what is not finite is not kept
        slower = (math.log(0.5) + torch.logaddexp(-now.log_loss, -after.log_loss)) + step.log()
        log_time = torch.where(kept, torch.logaddexp(log_time, slower), log_time)
        now = after.where(kept, now)
        change = _SAFETY / error.clamp(min=1e-300).sqrt()
        step = step * change.nan_to_num(nan=_SHRINK).clamp(_SHRINK, _GROW)
    return path


@dataclass(frozen=True)
class _State:
    """Networks, their outputs on their own data, and -grad log L."""

    w: Tensor
    a: Tensor
    q: Tensor
    log_loss: Tensor
    pull: Tensor  # -d log L / d q
    phi: Tensor  # [runs, samples, neurons]
    bend: Tensor  # phi'
    to_w: Tensor
    to_a: Tensor

    def of(self, chosen: Tensor) -> _State:
        return _State(**{name: value[chosen] for name, value in vars(self).items()})

    def where(self, chosen: Tensor, other: _State) -> _State:
        def mixed(name: str, value: Tensor) -> Tensor:
            return torch.where(chosen.view(-1, *[1] * (value.ndim - 1)), value, vars(other)[name])

        return _State(**{name: mixed(name, value) for name, value in vars(self).items()})

    def squares(self) -> Tensor:
        """||w_k||^2 + a_k^2, `[runs, neurons]`; never zero."""
        return (self.w.square().sum(2) + self.a.square()).clamp(min=1e-300)

    def rate(self) -> Tensor:
        """By how much of itself the fastest neuron moves in a unit of time."""
        moved = self.to_w.square().sum(2) + self.to_a.square()
        return (moved / self.squares()).amax(1).sqrt().clamp(min=1e-300)


@dataclass(frozen=True)
class _Runs:
    """The data of runs, and their flow."""

    x: Tensor
    y: Tensor
    kernel: Tensor  # x x'
    slope: float

    def of(self, chosen: Tensor) -> _Runs:
        return replace(self, x=self.x[chosen], y=self.y[chosen], kernel=self.kernel[chosen])

    def at(self, w: Tensor, a: Tensor) -> _State:
        hidden = self.x @ w.mT
        bend = torch.where(hidden > 0, 1.0, self.slope).to(hidden)
        phi = bend * hidden
        q = self.y * (phi @ a[..., None])[..., 0]
        # log log(1 + e^-q) is -q where e^-q vanishes beside one.
        each = torch.nn.functional.softplus(-q.clamp(max=40)).log() + (40 - q).clamp(max=0)
        log_loss = each.logsumexp(1) - math.log(q.shape[1])
        mean = torch.nn.functional.logsigmoid(-q) - log_loss[:, None] - math.log(q.shape[1])
        pull = mean.exp()
        to_w, to_a = _backward(self.x, a, phi, bend, self.y * pull)
        return _State(w, a, q, log_loss, pull, phi, bend, to_w, to_a)

    def step(self, now: _State, step: Tensor, rtol: float) -> tuple[_State, Tensor]:
        """Where the networks are a step later, and how far the lower order is from it.

        That is at most one where no neuron is off by more than rtol of its norm, nor the samples'
        weight in the loss by more than _WEIGHTS: a sample that becomes the least in a step that is
        too long has all the weight, and D nothing left that damps.
        """
        solve = self._damped(now, step)
        length = step[:, None, None]
        first = solve(now.to_w, now.to_a)
        halfway = self.at(now.w + length * first[0], now.a + step[:, None] * first[1])
        second = solve(halfway.to_w - 2 * first[0], halfway.to_a - 2 * first[1])
        w = now.w + length * (1.5 * first[0] + 0.5 * second[0])
        a = now.a + step[:, None] * (1.5 * first[1] + 0.5 * second[1])
        apart = (first[0] + second[0]).square().sum(2) + (first[1] + second[1]).square()
        moved = step / 2 * (apart / now.squares()).amax(1).sqrt()
        after = self.at(w, a)
        weighed = (after.pull - halfway.pull).abs().sum(1) / 2
        return after, torch.maximum(moved / rtol, weighed / _WEIGHTS)

    def _damped(self, now: _State, step: Tensor) -> _Solver:
        """To v gives (1 + c J' D J)^-1 v = v - c J' (1 + c D J J')^-1 D J v, c = _DIAGONAL step."""
        signed = now.bend * now.a[:, None]
        gram = (signed @ signed.mT) * self.kernel + now.phi @ now.phi.mT
        gram = self.y[:, :, None] * gram * self.y[:, None]
        bent = now.pull * torch.sigmoid(now.q)
        spread = bent[:, :, None] * bent[:, None] / bent.sum(1).clamp(min=1e-300)[:, None, None]
        curved = torch.diag_embed(bent) - spread
        much = _DIAGONAL * step
        matrix = much[:, None, None] * (curved @ gram)
        matrix.diagonal(dim1=1, dim2=2).add_(1)
        factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)

        def solve(to_w: Tensor, to_a: Tensor) -> tuple[Tensor, Tensor]:
            image = ((self.x @ to_w.mT) * signed + now.phi * to_a[:, None]).sum(2) * self.y
            held = torch.linalg.lu_solve(factors, pivots, curved @ image[..., None])[..., 0]
            back_w, back_a = _backward(self.x, now.a, now.phi, now.bend, self.y * held)
            return to_w - much[:, None, None] * back_w, to_a - much[:, None] * back_a

        return solve


def _backward(
    x: Tensor, a: Tensor, phi: Tensor, bend: Tensor, sent: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of sum_n sent_n f(x_n)."""
    each = sent[..., None]
    return a[..., None] * ((bend * each).mT @ x), (phi * each).sum(1)


def _unread(w: Tensor, a: Tensor, readings: int, slope: float) -> TwoLayerPath:
    """A path of which nothing has been read."""
    blank = torch.full((len(w), readings), math.nan, dtype=torch.float64)
    return TwoLayerPath(
        blank,
        log_times=blank.clone(),
        weights=blank[..., None, None].repeat(1, 1, *w.shape[1:]),
        outputs=blank[..., None].repeat(1, 1, a.shape[1]),
        margins=blank.clone(),
        steps=torch.zeros(len(w), dtype=torch.int64),
        slope=slope,
    )


def _read(path: TwoLayerPath, run: Tensor, index: Tensor, now: _State, log_time: Tensor) -> None:
    """Write down what some runs are at their readings of these indices."""
    path.log_losses[run, index] = now.log_loss
    path.log_times[run, index] = log_time
    path.weights[run, index] = now.w
    path.outputs[run, index] = now.a
    path.margins[run, index] = now.q.amin(1) / now.squares().sum(1)


def _check(
    given: dict[str, Tensor], slope: float, log_losses: Sequence[float], rtol: float
) -> None:
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    inputs, labels, weights, outputs = given.values()
    if inputs.ndim != 3 or weights.ndim != 3 or inputs.shape[::2] != weights.shape[::2]:
        raise ValueError(
            "inputs must be [runs, samples, features] and weights [runs, neurons, features], got "
            f"shapes {tuple(inputs.shape)} and {tuple(weights.shape)}"
        )
    for name, value, whose in (("labels", labels, inputs), ("outputs", outputs, weights)):
        if value.shape != whose.shape[:2]:
            raise ValueError(f"{name} must be {tuple(whose.shape[:2])}, got {tuple(value.shape)}")
    for name, value in given.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} must be finite, got values that are not")
        if not value.numel():
            raise ValueError(f"{name} must hold something, got shape {tuple(value.shape)}")
    norms = torch.hypot(weights.detach().double().norm(dim=2), outputs.detach().double())
    if bool(((norms < _SMALLEST) & (norms > 0)).any()):
        raise ValueError(
            f"weights and outputs of a neuron must be zero or of norm {_SMALLEST:g} or more, got "
            f"{float(norms[norms > 0].min()):.3g}"
        )
    if not bool((labels.abs() == 1).all()):
        raise ValueError(f"labels must be 1 or -1, got {labels.unique().tolist()[:5]}")
    if not 0 <= slope <= 1:
        raise ValueError(f"slope must be from 0 to 1, got {slope}")
    if not (math.isfinite(rtol) and rtol > 0):
        raise ValueError(f"rtol must be a finite number above 0, got {rtol}")
    read_at = torch.tensor(list(log_losses), dtype=torch.float64)
    if not len(read_at) or not bool((read_at.diff() < 0).all()) or not read_at[-1] > -_DEEPEST:
        raise ValueError(f"log_losses must fall and stay above -1e12, got {list(log_losses)}")
