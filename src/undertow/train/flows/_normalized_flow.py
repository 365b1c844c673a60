"""The flow of rho and V, where a homogeneous ReLU network is rho f_V, under the square loss.

V_k = W_k / ||W_k||_F are the normalised layers and rho is the product of the norms (Xu et al.,
Dynamics in Deep Classifiers trained with the Square Loss, Research, 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from undertow.objective import whole_number


@dataclass(frozen=True, eq=False)
class NormalizedPath:
    """Runs of `normalized_flow` as they were at their times.

    At a time that a run did not reach, as it diverged or ran out of steps, all but the times and
    steps are NaN.

    Attributes:
        times: t.
        rho: not finite from where a run diverged.
        outputs: f_V of the run's own inputs.
        stable_ranks: 1 / s_1^2 of every V_k, whose Frobenius norm is one.
        steps: how many were taken by then; where a time was not reached, in all.
        layers: V at the last time that a run reached.
        labels: y.
        decay: lambda.
    """

    times: Float64[Tensor, "runs readings"]
    rho: Float64[Tensor, "runs readings"]
    outputs: Float64[Tensor, "runs readings samples"]
    stable_ranks: Float64[Tensor, "runs readings layers"]
    steps: Int64[Tensor, "runs readings"]
    layers: list[Float64[Tensor, "runs out in"]]
    labels: Float64[Tensor, "runs samples"]
    decay: Float64[Tensor, " runs"]

    @property
    def margins(self) -> Float64[Tensor, "runs readings samples"]:
        """The normalised margins y f_V."""
        return self.labels[:, None] * self.outputs

    @property
    def equilibrium(self) -> Float64[Tensor, "runs readings"]:
        """The rho = mu / (M + lambda) at which rho' is zero for the V of that time."""
        return self.margins.mean(2) / (self.outputs.square().mean(2) + self.decay[:, None])

    def facts(self) -> dict[str, Shaped[Tensor, "runs readings"]]:
        """What each run was at each time, in numbers; margins are y f_V.

        Returns:
            `diverged` (rho is not a positive number), `rho`, `moved` (by how much its logarithm
            since the reading before; infinite at the first), `margin` (the mean), `least_margin`,
            `margin_cv` (standard deviation over |mean|), `fitted` (the share of positive ones),
            `loss` (the mean square of rho y f_V - 1), `stable_rank` of the first layer, and
            `steps_taken`.
        """
        margins, mean = self.margins, self.margins.mean(2)
        first = torch.full_like(self.rho[:, :1], math.inf)
        return {
            "diverged": ~((self.rho > 0) & self.rho.isfinite()),
            "rho": self.rho,
            "moved": torch.cat([first, self.rho.log().diff(dim=1).abs()], dim=1),
            "margin": mean,
            "least_margin": margins.amin(2),
            "margin_cv": margins.std(2, correction=0) / mean.abs(),
            "fitted": (margins > 0).double().mean(2),
            "loss": (self.rho[..., None] * margins - 1).square().mean(2),
            "stable_rank": self.stable_ranks[..., 0],
            "steps_taken": self.steps,
        }

    def predict(
        self, inputs: Float[Tensor, "runs samples features"]
    ) -> Float64[Tensor, "runs samples"]:
        """f_V of other inputs, V that of the last time that a run reached."""
        return forward(inputs.double(), self.layers).f


def normalized_flow(
    inputs: Float[Tensor, "runs samples features"],
    labels: Float[Tensor, "runs samples"],
    layers: Sequence[Float[Tensor, "runs out in"]],
    rho: Float[Tensor, " runs"],
    *,
    decay: Float[Tensor, " runs"],
    times: Float[Tensor, "runs readings"],
    slowed: bool = True,
    max_steps: int = 300_000,
) -> NormalizedPath:
    """Follow rho and V from time 0, many runs as one batched program, in float64.

        rho' = -2 (rho M - mu) - 2 decay rho,    mu = mean(y f),  M = mean(f^2)
        V_k' = -(2 / N) rho sum_n (rho f_n - y_n) (df_n / dV_k - V_k f_n)

    where f is the network of layers V, ReLU between them and no biases. It is the gradient flow of
    mean((rho f - y)^2) + decay rho^2 in rho and, on the spheres of norm one, in V.

    V moves rho^2 times as fast as it would fit at rho = 1, while rho takes a time of 1 / decay:
    with `slowed` it is divided by max(rho, 1)^2. That leaves every fixed point where it is, and
    the path too as long as V still fits much faster than rho moves. Steps are Euler's, each run's
    own, half of what the trace of the tangent kernel bears; runs share nothing but the program.

    Args:
        inputs: of each run its own.
        labels: y, one number a sample.
        layers: the start of V, the first of `[out, features]` and the last of one output; their
            norms do not matter.
        rho: its start, positive.
        decay: lambda, of rho^2.
        times: of each run, ascending.
        slowed: whether V is slowed.
        max_steps: runs that need more are not read any further.

    Raises:
        ValueError: shapes that do not fit, a start or a decay out of range, or times that do not
            ascend.
    """
    whole_number("max_steps", max_steps, least=1)
    runs = len(inputs)
    sizes = [tuple(layer.shape[1:]) for layer in layers]
    wide = [inputs.shape[-1], *(size[0] for size in sizes)]
    if sizes != list(zip(wide[1:], wide, strict=False)) or wide[-1] != 1:
        raise ValueError(
            f"layers must lead from {inputs.shape[-1]} features to one output, got {sizes}"
        )
    if labels.shape != inputs.shape[:2]:
        raise ValueError(
            f"labels must be {tuple(inputs.shape[:2])}, one a sample, got {tuple(labels.shape)}"
        )
    own = {"rho": rho, "decay": decay, "times": times}
    own |= {f"layers[{k}]": layer for k, layer in enumerate(layers)}
    for name, value in own.items():
        if len(value) != runs:
            raise ValueError(f"{name} must hold one for each of {runs} runs, got {len(value)}")
    if not bool((rho > 0).all()) or not bool((decay >= 0).all()):
        raise ValueError(f"rho must be positive and decay not negative, got {rho} and {decay}")
    if not bool((times >= 0).all()) or not bool((times.diff(dim=1) > 0).all()):
        raise ValueError(f"times must ascend from 0 or more, got {times.tolist()}")
    start = [layer.double() for layer in layers]
    facts = [value.double() for value in (inputs, labels, rho, decay, times)]
    return _follow(*facts, layers=_unit(start), slowed=slowed, max_steps=max_steps)


def _follow(
    inputs: Tensor,
    labels: Tensor,
    rho: Tensor,
    decay: Tensor,
    times: Tensor,
    *,
    layers: list[Tensor],
    slowed: bool,
    max_steps: int,
) -> NormalizedPath:
    path = _unread(labels, decay, times, layers)
    run = torch.arange(len(inputs))
    index, time, steps = torch.zeros_like(run), torch.zeros_like(rho), 0
    while len(run) and steps < max_steps:
        now = forward(inputs, layers)
        target = times.gather(1, index[:, None])[:, 0]
        due = (time >= target) | ~torch.isfinite(rho)
        if due.any():
            _read(path, run[due], index[due], rho[due], now.f[due], [w[due] for w in layers])
            path.steps[run[due], index[due]] = steps
            index = index + due.long()
            kept = (index < times.shape[1]) & torch.isfinite(rho)
            inputs, labels, rho, decay = (v[kept] for v in (inputs, labels, rho, decay))
            times, run, time, index = (v[kept] for v in (times, run, time, index))
            layers = [layer[kept] for layer in layers]
            continue
        square = now.f.square().mean(1)  # M
        scale = rho.clamp(min=1).square() if slowed else torch.ones_like(rho)
        weights = (rho[:, None] * now.f - labels) * (2 * rho / scale / now.f.shape[1])[:, None]
        directions = now.gradients(layers, weights)
        fastest = torch.stack([d.flatten(1).norm(dim=1) for d in directions]).amax(0)
        rate = rho.square() / scale * now.speed_bound() + square + decay
        step = torch.minimum(0.5 / rate, 0.1 / fastest.clamp(min=1e-12))
        left = target - time
        last = step >= left
        step = torch.where(last, left, step)
        moved = zip(layers, directions, strict=True)
        layers = _unit([layer - step[:, None, None] * way for layer, way in moved])
        pull = (labels * now.f).mean(1) - rho * (square + decay)
        rho = rho + 2 * step * pull
        time = torch.where(last, target, time + step)
        steps += 1
    path.steps[path.steps < 0] = steps
    return path


def _unread(
    labels: Tensor, decay: Tensor, times: Tensor, layers: Sequence[Tensor]
) -> NormalizedPath:
    """A path of which nothing has been read."""
    blank = torch.full_like(times, math.nan)
    return NormalizedPath(
        times,
        rho=blank,
        outputs=blank[..., None].repeat(1, 1, labels.shape[1]),
        stable_ranks=blank[..., None].repeat(1, 1, len(layers)),
        steps=torch.full_like(times, -1, dtype=torch.int64),
        layers=[layer.clone() for layer in layers],
        labels=labels,
        decay=decay,
    )


def _read(
    path: NormalizedPath,
    run: Tensor,
    index: Tensor,
    rho: Tensor,
    outputs: Tensor,
    layers: Sequence[Tensor],
) -> None:
    """Write down what some of the runs are at their times of these indices."""
    path.rho[run, index] = rho
    path.outputs[run, index] = outputs
    for k, layer in enumerate(layers):
        path.layers[k][run] = layer
        largest = torch.linalg.matrix_norm(torch.nan_to_num(layer), 2)
        path.stable_ranks[run, index, k] = largest.pow(-2)


@dataclass(frozen=True)
class Forward:
    """f_V of every run and sample, with what its derivative in each layer is made of.

    df_n / dV_k is the outer product of `signals[k][:, n]` and `activations[k][:, n]`.
    """

    f: Float64[Tensor, "runs samples"]
    activations: list[Float64[Tensor, "runs samples in"]]
    signals: list[Float64[Tensor, "runs samples out"]]

    def speed_bound(self) -> Float64[Tensor, " runs"]:
        """Trace of the tangent kernel over n, on the product of spheres: bounds its norm."""
        squares = self.f.square()
        each = [
            a.square().sum(2) * d.square().sum(2) - squares
            for a, d in zip(self.activations, self.signals, strict=True)
        ]
        return sum(each[1:], each[0]).mean(1)

    def gradients(
        self, layers: Sequence[Tensor], weights: Float64[Tensor, "runs samples"]
    ) -> list[Float64[Tensor, "runs out in"]]:
        """sum_n weights_n (df_n / dV_k - V_k f_n) of each layer."""
        found = []
        for layer, activation, signal in zip(layers, self.activations, self.signals, strict=True):
            gradient = torch.bmm((signal * weights[..., None]).mT, activation)
            inward = (gradient * layer).sum((1, 2), keepdim=True)
            found.append(gradient - layer * inward)
        return found


def forward(inputs: Float64[Tensor, "runs samples features"], layers: Sequence[Tensor]) -> Forward:
    """The network of unit layers `[runs, out, in]` and its derivatives."""
    activations = [inputs]
    for layer in layers[:-1]:
        activations.append(torch.bmm(activations[-1], layer.mT).relu_())
    f = torch.bmm(activations[-1], layers[-1].mT)[..., 0]
    signals = [torch.ones_like(f)[..., None]]
    for layer, activation in zip(layers[:0:-1], activations[:0:-1], strict=True):
        signals.insert(0, torch.bmm(signals[0], layer) * (activation > 0))
    return Forward(f, activations, signals)


def _unit(layers: Sequence[Tensor]) -> list[Tensor]:
    return [layer / layer.flatten(1).norm(dim=1)[:, None, None] for layer in layers]
