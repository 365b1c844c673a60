"""Descent past zero loss: near the flow, in epochs at a loss-based rate, and far beyond any float.

arXiv 1906.05890, section on the loss-based learning rate and appendix K: lr = alpha / Loss, with
alpha searched so that the loss falls; the loss is held as its log.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Generator, Tensor

from undertow.train.past_zero._networks import LogDomain, Stacked, norm_of, spread
from undertow.train.past_zero._scheduler import GROW, SHRINK

_WEIGHTLESS = 40.0  # e^-40 of the largest weight is below rounding
_LATER = 0.3  # of the least margin: samples that far from it cannot come near within one round


@dataclass(frozen=True, eq=False)
class Dips:
    """By how much the margins fell on the way, while gradient flow lets the smoothed one only rise.

    Attributes:
        steps: those that began below the threshold, and so count.
        falls: those in which the smoothed margin fell, by more than rounding.
        deepest: the largest fall of the smoothed margin below its highest value before, as a share
            of its last one.
        deepest_least: the same of the least margin q_min / rho^L.
    """

    steps: Int[Tensor, " E"]
    falls: Int[Tensor, " E"]
    deepest: Float64[Tensor, " E"]
    deepest_least: Float64[Tensor, " E"]

    def as_dict(self) -> dict[str, Any]:
        """Every number by its name."""
        return {name: value.tolist() for name, value in self.__dict__.items()}

    def __repr__(self) -> str:
        worst = float(self.deepest.max())
        return (
            f"Dips of {len(self.steps)} networks: the smoothed margin fell in "
            f"{int(self.falls.sum()):,} of {int(self.steps.sum()):,} steps, by at most {worst:.2g} "
            "of its last value."
        )


def descend_log_loss(
    networks: LogDomain, steps: int, *, drop: float, degree: float, rtol: float = 1e-12
) -> Dips:
    """Plain gradient descent on log Loss, by steps that would each lower it by `drop`.

    theta <- theta - drop grad log Loss / ||grad log Loss||^2: to first order log Loss falls by
    `drop`. As it goes to zero this is gradient flow in another time, along which f^-1(log(1 /
    Loss)) / rho^L never falls once Loss is below its threshold.

    Args:
        networks: they are moved.
        steps: how many.
        drop: above 0.
        degree: L of the networks.
        rtol: falls by a smaller share than this are rounding.

    Raises:
        ValueError: steps below 1, or drop that is not positive.
    """
    _check_positive("drop", drop)
    _check_count("steps", steps)
    members = len(networks.inputs)
    zeros = torch.zeros(members, dtype=torch.float64)
    counted, falls = zeros.clone(), zeros.clone()
    highest = dict.fromkeys(("smoothed", "normalized"), zeros - math.inf)
    depth = {name: zeros.clone() for name in highest}
    before = zeros + math.inf
    for step in range(steps + 1):
        now = networks.normalized_margins(degree)
        below = now["smoothed"] > 0
        counted += (before < math.inf) & below
        falls += below & (now["smoothed"] < before * (1 - rtol)) & (before < math.inf)
        for name, value in now.items():
            highest[name] = torch.where(below, torch.maximum(highest[name], value), highest[name])
            depth[name] = torch.where(
                below, torch.maximum(depth[name], highest[name] - value), depth[name]
            )
        before = torch.where(below, now["smoothed"], before)
        if step < steps:
            _, gradient = networks.log_gradient()
            networks.move(gradient, -drop / norm_of(gradient).square())
    last = now["smoothed"].abs()
    return Dips(counted.long(), falls.long(), depth["smoothed"] / last, depth["normalized"] / last)


def loss_based_epochs(
    networks: LogDomain,
    epochs: int,
    *,
    batch_size: int,
    generators: Sequence[Generator],
    alpha: float = 0.1,
    constant: bool = False,
) -> Float64[Tensor, " E"]:
    """Mini-batch SGD at lr = alpha / mean loss, with the paper's search for alpha by epochs.

    An epoch that does not lower the full loss is taken back and alpha divided by 2^(1/10);
    otherwise alpha is multiplied by 2^(1/5). What is taken back counts as an epoch.

    Args:
        networks: they are moved.
        epochs: passes over the data.
        batch_size: samples in a step; the last batch of an epoch may be smaller.
        generators: one for each member, of its order of samples.
        alpha: at the start, of all members.
        constant: plain SGD at the learning rate alpha instead, on the mean loss.

    Returns:
        alpha at the end.
    """
    members, size = networks.labels.shape
    rate = torch.full((members,), alpha, dtype=torch.float64)
    last = networks.log_loss()
    for _ in range(epochs):
        kept = networks.params
        order = torch.stack([torch.randperm(size, generator=each) for each in generators])
        frame = torch.zeros_like(last) if constant else last - math.log(size)
        for rows in order.split(batch_size, dim=1):
            log_sum, gradient = networks.log_gradient(rows)
            relative = (log_sum - math.log(rows.shape[1]) - frame).exp()
            networks.move(gradient, -rate * relative)
        if constant:
            continue
        now = networks.log_loss()
        fell = now <= last  # NaN did not
        _keep(networks, fell, kept)
        last = torch.where(fell, now, last)
        rate = rate * torch.where(fell, GROW, SHRINK)
    return rate


def past_zero_loss(
    networks: LogDomain,
    log_loss: float,
    *,
    relative_step: float = 3e-3,
    momentum: float = 0.9,
    period: int = 50,
    max_steps: int = 100_000,
) -> Float64[Tensor, " E"]:
    """Train until log Loss is as low as this, such as -9,000: far below the least float.

    Steps have the length `relative_step` x ||theta||, along an average of past directions of
    -grad log Loss: descent at a rate of the order of 1 / Loss. Every `period` steps the full loss
    is read; where it rose they are taken back, and the steps get shorter by 2^(1/2), otherwise
    longer by 2^(1/10), up to `relative_step`. In between, samples whose share in the gradient is
    below rounding are left out. A member that has arrived stays as it is. So it is not the rule of
    `loss_based_epochs`, whose steps are alpha |grad Loss| / Loss and grow with alpha alone.

    Args:
        networks: they are moved.
        log_loss: the log of the summed loss to reach.
        relative_step: the longest step, of the parameters' norm.
        momentum: of the average of directions.
        period: steps between two readings of the full loss.
        max_steps: give up after so many.

    Returns:
        Steps that each member took, those taken back included; NaN for a member that is not there
        after `max_steps`, and stays where it got to: its data may not be separable by it.

    Raises:
        ValueError: an argument out of range.
    """
    _check_positive("relative_step", relative_step)
    _check_count("period", period)
    _check_count("max_steps", max_steps)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and below 1, got {momentum}")
    last = networks.log_loss()
    longest = torch.full_like(last, relative_step)
    length, taken = longest.clone(), torch.zeros_like(last)
    average: Stacked = {name: torch.zeros_like(each) for name, each in networks.params.items()}
    for _ in range(0, max_steps, period):
        going = last > log_loss
        if not going.any():
            break
        kept = networks.params
        rows = _weighty(networks)
        for _ in range(period):
            _, gradient = networks.log_gradient(rows)
            scale = (1 - momentum) / norm_of(gradient)
            average = {
                name: momentum * average[name] + spread(scale, each) * each
                for name, each in gradient.items()
            }
            networks.move(average, torch.where(going, -length * networks.norm(), 0.0))
        now = networks.log_loss()
        fell = (now < last) & going
        _keep(networks, fell, kept)
        average = {name: each * spread(fell, each) for name, each in average.items()}
        average = {name: each.nan_to_num(0.0) for name, each in average.items()}
        last = torch.where(fell, now, last)
        length = torch.where(fell, torch.minimum(length * 2**0.1, longest), length * 2**-0.5)
        taken += period * going
    return torch.where(last <= log_loss, taken, math.nan)


def _weighty(networks: LogDomain) -> Int[Tensor, "E k"] | None:
    """Each member's samples that may have weight in the gradient within the next steps."""
    margins = networks.margins(soft=networks.loss == "logistic")
    least = margins.amin(1, keepdim=True)
    slack = (_LATER * least).clamp(min=_WEIGHTLESS)
    count = int((margins - least <= slack).sum(1).max())
    if bool((least <= 0).any()) or count == margins.shape[1]:
        return None
    return margins.argsort(1)[:, :count]


def _keep(networks: LogDomain, fell: Tensor, before: Stacked) -> None:
    networks.params = {
        name: torch.where(spread(fell, each), each, before[name])
        for name, each in networks.params.items()
    }


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
