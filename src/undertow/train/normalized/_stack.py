"""Many normalised perceptrons side by side: matrix products over a leading axis of networks.

Batch norm without affine parameters follows every layer, the output's too, with the statistics of
all training inputs. So L(c w) = L(w), and every parameter is inside of the invariance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from undertow.objective import Objective, whole_number

_EPS = 1e-12  # of the normalisation; a variance is of order one, or a dead feature's zero
_SETTLING = 0.3  # share of the rate at which the oscillation settles

Weights = list[Float[Tensor, "E out in"]]


@dataclass(frozen=True)
class NormalizedNetworks:
    """Networks `[E]` of linear layers and GELU, batch norm after each layer, the output's too.

    Made by `normalized_networks`. The norm has no affine parameters and the statistics of all
    training inputs, so that L(c w) = L(w); the loss is the mean squared error, and every step is of
    gradient descent on all inputs. Nothing changes in place.

    Attributes:
        weights: a matrix a layer.
        inputs: `[E, n, d]`.
        targets: `[E, n, k]`, of mean 0 and variance 1 in each column, which outputs have too.
        lr: `[E]`.
        weight_decay: `[E]`.
    """

    weights: Weights
    inputs: Float[Tensor, "E n d"]
    targets: Float[Tensor, "E n k"]
    lr: Float[Tensor, " E"]
    weight_decay: Float[Tensor, " E"]

    @property
    def effective_lr(self) -> Float[Tensor, " E"]:
        """Of the direction w / ||w||: lr / ((1 - lr weight_decay) ||w||^2)."""
        return self.lr / (1 - self.lr * self.weight_decay) / _inner(self.weights, self.weights)

    @torch.enable_grad()
    def trained(self, steps: int) -> NormalizedNetworks:
        """After so many steps w <- (1 - lr weight_decay) w - lr grad L(w)."""
        whole_number("steps", steps, least=0)
        weights, lr = self.weights, self.lr[:, None, None]
        kept = 1 - lr * self.weight_decay[:, None, None]
        for _ in range(steps):
            leaves = [weight.detach().requires_grad_() for weight in weights]
            slopes = torch.autograd.grad(self.losses(leaves).sum(), leaves)
            pairs = zip(leaves, slopes, strict=True)
            weights = [(w.detach() * kept).sub_(slope * lr) for w, slope in pairs]
        return replace(self, weights=weights)

    def settled(self, steps: int) -> NormalizedNetworks:
        """Where the oscillation at the edge leads when it is damped, on the minimisers below it.

        By so many steps at 0.3 of the rate, without decay. A single snapshot of sharpness at the
        edge is off by some 20%, as the oscillation has it; of what has settled it is not.
        """
        calm = replace(self, lr=_SETTLING * self.lr, weight_decay=0 * self.weight_decay)
        return replace(self, weights=calm.trained(steps).weights)

    def branched(self, decays: Sequence[float]) -> NormalizedNetworks:
        """The same networks once for each weight decay, one after another.

        Raises:
            ValueError: no decay, one that is not finite or below 0, or as large as 1 / lr.
        """
        if not decays:
            raise ValueError("decays must hold at least one weight decay, got none")
        for decay in decays:
            _check_rates(float(self.lr.max()), decay)
        count, copies = len(self.lr), len(decays)
        return NormalizedNetworks(
            [weight.repeat(copies, 1, 1) for weight in self.weights],
            self.inputs.repeat(copies, 1, 1),
            self.targets.repeat(copies, 1, 1),
            self.lr.repeat(copies),
            torch.tensor(decays, dtype=self.lr.dtype, device=self.lr.device).repeat_interleave(
                count
            ),
        )

    def outputs(self, inputs: Float[Tensor, "E m d"] | None = None) -> Float[Tensor, "E m k"]:
        """Of the training inputs, or of others that are normalised by their statistics."""
        return _outputs(self.weights, self.inputs, inputs)

    def losses(self, weights: Weights) -> Float[Tensor, " E"]:
        """Of each network."""
        return (_outputs(weights, self.inputs) - self.targets).square().mean((1, 2))

    @torch.enable_grad()
    def sharpness(
        self, steps: int, start: Weights | None = None
    ) -> tuple[Float[Tensor, " E"], Float[Tensor, " E"], Weights]:
        """The spherical sharpness of each, its relative residual, and what to start from next.

        By so many steps of power iteration; the value is off by less than its residual squared,
        over the distance to the next eigenvalue.
        """
        whole_number("steps", steps, least=1)
        leaves = [weight.detach().clone().requires_grad_() for weight in self.weights]
        slopes = torch.autograd.grad(self.losses(leaves).sum(), leaves, create_graph=True)
        drawn = torch.Generator().manual_seed(0)  # the same for each, whichever are together
        random = [torch.randn(weight.shape[1:], generator=drawn) for weight in leaves]
        ahead = start or [own.to(w).expand_as(w) for own, w in zip(random, leaves, strict=True)]
        for _ in range(steps):
            length = _inner(ahead, ahead).sqrt()[:, None, None]
            top = [part / length for part in ahead]
            ahead = list(torch.autograd.grad(slopes, leaves, top, retain_graph=True))
            value = _inner(ahead, top)
        residual = (_inner(ahead, ahead) - value**2).clamp_min(0).sqrt() / value.abs()
        return value * _inner(self.weights, self.weights), residual, ahead

    def accuracies(
        self, inputs: Sequence[Float[Tensor, "m d"]], labels: Sequence[Int[Tensor, " m"]]
    ) -> list[float]:
        """Of each on its own held-out inputs, normalised by the statistics of training.

        Raises:
            ValueError: networks of one output, or other than one set of inputs and labels for each.
        """
        if len(self.weights[-1][0]) < 2:
            raise ValueError("accuracies are of the largest of several outputs, got one output")
        if not len(inputs) == len(labels) == len(self.lr):
            raise ValueError(
                f"inputs and labels must be one for each of the {len(self.lr)} networks, got "
                f"{len(inputs)} and {len(labels)}"
            )
        found = []
        for place, (own, right) in enumerate(zip(inputs, labels, strict=True)):
            weights = [weight[place : place + 1] for weight in self.weights]
            seen = _outputs(weights, self.inputs[place : place + 1], own[None])
            found.append(float((seen[0].argmax(1) == right).double().mean()))
        return found

    def objective(self, place: int) -> Objective:
        """One network's loss as undertow measures it."""
        modules: list[nn.Module] = []
        for weight in self.weights:
            out, features = weight.shape[1:]
            layer = nn.Linear(features, out, bias=False, dtype=weight.dtype)
            layer.weight.data = weight[place].detach().clone()
            norm = nn.BatchNorm1d(out, eps=_EPS, affine=False, track_running_stats=False)
            modules += [layer, norm, nn.GELU()]
        data = self.inputs[place], self.targets[place]
        return Objective(nn.Sequential(*modules[:-1]), nn.MSELoss(), data)


def normalized_networks(
    sizes: Sequence[int],
    seeds: Sequence[int],
    inputs: Float[Tensor, "E n d"],
    targets: Float[Tensor, "E n k"],
    *,
    lr: float,
    weight_decay: float,
) -> NormalizedNetworks:
    """Networks with rows of norm one or so, each drawn by its own seed.

    Args:
        sizes: inputs, hidden widths and outputs.
        seeds: one for each network.
        inputs: of each; at least two samples.
        targets: of each; they are brought to mean 0 and variance 1 in each column.
        lr: learning rate.
        weight_decay: PyTorch's; below 1 / lr.

    Raises:
        TypeError: data that are no tensors, sizes or seeds that are no whole numbers.
        ValueError: sizes, seeds and data that do not belong together, data that are not finite or
            not floating, a target that is the same for all samples, or rates out of their range.
    """
    for name, data in (("inputs", inputs), ("targets", targets)):
        if not isinstance(data, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(data).__name__}")
        if not data.is_floating_point() or not bool(data.isfinite().all()):
            raise ValueError(f"{name} must be floating and finite, got {data.dtype}")
    for size in sizes:
        whole_number("sizes", size, least=1)
    for seed in seeds:
        whole_number("seeds", seed, least=0)
    _check_rates(lr, weight_decay)
    if inputs.ndim != 3 or targets.ndim != 3 or len(seeds) != len(inputs):
        raise ValueError(
            f"inputs and targets must be [E, n, d] and [E, n, k] with E = {len(seeds)}, one for "
            f"each seed, got {tuple(inputs.shape)} and {tuple(targets.shape)}"
        )
    if sizes[0] != inputs.shape[2] or sizes[-1] != targets.shape[2]:
        raise ValueError(
            f"sizes must run from {inputs.shape[2]} inputs to {targets.shape[2]} outputs, got "
            f"{tuple(sizes)}"
        )
    if inputs.shape[1] != targets.shape[1] or inputs.shape[1] < 2:
        raise ValueError(
            f"inputs and targets must hold the same two samples or more, got {inputs.shape[1]} and "
            f"{targets.shape[1]}"
        )
    if len(sizes) < 2:
        raise ValueError(f"sizes must be inputs and outputs at least, got {tuple(sizes)}")
    if bool((targets == targets[:, :1]).all(1).any()):
        raise ValueError("targets must differ between samples in every column; leave out the rest")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    weights = [
        torch.stack([torch.randn(out, own, generator=drawn) for drawn in generators]).to(inputs)
        / own**0.5
        for own, out in pairwise(sizes)
    ]
    targets = targets - targets.mean(1, keepdim=True)
    targets = targets / targets.square().mean(1, keepdim=True).sqrt()
    rates = [torch.full((len(seeds),), value, dtype=inputs.dtype) for value in (lr, weight_decay)]
    return NormalizedNetworks(weights, inputs, targets, *rates)


def _check_rates(lr: float, weight_decay: float) -> None:
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be a finite number above 0, got {lr}")
    if not 0 <= lr * weight_decay < 1:
        raise ValueError(
            f"weight_decay must be from 0 to below 1 / lr = {1 / lr:g}, got {weight_decay}"
        )


def _outputs(
    weights: Weights, inputs: Float[Tensor, "E n d"], others: Float[Tensor, "E m d"] | None = None
) -> Float[Tensor, "E rows k"]:
    """Of the inputs, or of others that are normalised by the statistics of the inputs."""
    for place, weight in enumerate(weights):
        inputs = inputs @ weight.transpose(1, 2)
        mean = inputs.mean(1, keepdim=True)
        scale = ((inputs - mean).square().mean(1, keepdim=True) + _EPS).rsqrt()
        inputs = (inputs - mean) * scale
        if others is not None:
            others = (others @ weight.transpose(1, 2) - mean) * scale
        if place < len(weights) - 1:
            inputs = functional.gelu(inputs)
            others = None if others is None else functional.gelu(others)
    return inputs if others is None else others.detach()


def _inner(one: Weights, other: Weights) -> Float[Tensor, " E"]:
    """Of each network's weights, as one vector."""
    pairs = zip(one, other, strict=True)
    return torch.stack([(a * b).sum((1, 2)) for a, b in pairs]).sum(0).detach()
