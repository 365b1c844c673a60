"""Descent on minimisers that form a circle: L = w3^2 e^(k cos phi) / (2 ||w||^2).

The sharpness at the angle phi is e^(k cos phi); where it drifts to, and how fast, has a solution
(arXiv 2206.07085: the sharpness-reduction flow).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from undertow.objective import whole_number
from undertow.train.flows import sharpness_reduction_flow

Array = Float64[np.ndarray, " runs"]

LATE = 0.5  # share of the time after which the edge is read


@dataclass(frozen=True)
class CircleDescent:
    """Runs with lr = 1 at a common intrinsic rate, read at times of equal distance.

    Attributes:
        angle: phi at these times, `[times, runs]`, averaged over the two steps of an oscillation.
        edge: time average of effective rate x sharpness over the later part.
        times: lr weight_decay steps.
    """

    angle: Float64[np.ndarray, "times runs"]
    edge: Array
    times: Float64[np.ndarray, " times"]


def circle_descent(
    angle: Array,
    steepness: Array,
    intrinsic_rate: float,
    time: float,
    *,
    decay: Sequence[bool],
    readings: int = 40,
) -> CircleDescent:
    """Gradient descent with weight decay on L = w3^2 e^(k cos phi) / (2 ||w||^2), w in R^3.

    Phi is the angle of (w1, w2); the minimisers on the unit sphere are the circle w3 = 0, and on it
    lambda_1 = e^(k cos phi). It starts on the circle at the edge of stability, effective rate x
    sharpness = 2, with the oscillation across that belongs to the rate, and drifts with decay as
    `circle_flow` says.

    Args:
        angle: phi of each run at the start.
        steepness: k of each.
        intrinsic_rate: sqrt(2 lr weight_decay).
        time: lr weight_decay steps, at the end.
        decay: whether each run decays its weights; one that does not has as many steps.
        readings: of the angle, evenly spaced.

    Raises:
        TypeError: readings is no whole number.
        ValueError: shapes that differ, a number that is not finite, or a rate or time that is not
            above zero; sqrt(2) is where a step would leave nothing of w.
    """
    angle, steepness = (np.asarray(own, dtype=np.float64) for own in (angle, steepness))
    if not angle.shape == steepness.shape == (len(decay),):
        raise ValueError(
            f"angle, steepness and decay must be one for each run, got {angle.shape}, "
            f"{steepness.shape} and {len(decay)}"
        )
    if not np.isfinite([angle, steepness]).all():
        raise ValueError("angle and steepness must be finite, got NaN or infinity")
    if not 0 < intrinsic_rate < math.sqrt(2):
        raise ValueError(f"intrinsic_rate must be between 0 and sqrt(2), got {intrinsic_rate!r}")
    if not 0 < time < math.inf:
        raise ValueError(f"time must be a finite number above 0, got {time!r}")
    whole_number("readings", readings, least=1)
    clock = intrinsic_rate**2 / 2
    weight_decay = np.where(decay, clock, 0.0)
    every = max(2, round(time / clock / readings))
    slope = steepness * np.sin(angle)
    length = np.sqrt(np.exp(steepness * np.cos(angle)) / 2)  # at the edge
    across = intrinsic_rate / np.sqrt(4 + slope**2)
    first = [np.cos(angle), np.sin(angle), across] / np.sqrt(1 + across**2) * length
    found, edges, before = [angle], [], angle
    path = enumerate(_steps(first, steepness, weight_decay), start=1)
    for step, (weights, edge) in path:
        if step > LATE * every * readings:
            edges.append(edge)
        if step % every >= every - 1 or step % every == 0:
            now = np.arctan2(weights[1], weights[0])
            if step % every == 0:
                found.append((before + now) / 2)
            before = now
        if step == every * readings:
            break
    times = np.arange(readings + 1) * every * clock
    return CircleDescent(np.array(found), np.mean(edges, axis=0), times)


def _steps(
    weights: Float64[np.ndarray, "3 runs"], steepness: Array, weight_decay: Array
) -> Iterator[tuple[Float64[np.ndarray, "3 runs"], Array]]:
    """The weights after each step at lr = 1, and the effective rate x sharpness before it."""
    while True:
        one, two, three = weights
        plane = one * one + two * two
        square = plane + three * three
        cosine, sine = one / np.sqrt(plane), two / np.sqrt(plane)
        sharpness = np.exp(steepness * cosine)
        edge = sharpness / square
        share = three * three / square
        # Gradients of share / 2 x sharpness: of the share, and by the angle.
        turn = -steepness * sine * share * sharpness / (2 * plane)
        gradient = -edge * share * weights
        gradient[2] += edge * three
        gradient[0] -= turn * two
        gradient[1] += turn * one
        weights = (1 - weight_decay) * weights - gradient
        yield weights, edge


def circle_flow(
    angle: float, steepness: float, times: Float64[np.ndarray, " times"]
) -> Float64[np.ndarray, " times"]:
    """Phi on the sharpness-reduction flow at these times, by `flows.sharpness_reduction_flow`.

    Args:
        angle: phi at time 0.
        steepness: k.
        times: increasing, of lr weight_decay steps.

    Raises:
        ValueError: as that function.
    """

    def loss(weights: torch.Tensor) -> torch.Tensor:
        phi = torch.atan2(weights[1], weights[0])
        return weights[2] ** 2 / weights.square().sum() * torch.exp(steepness * phi.cos()) / 2

    start = torch.tensor([np.cos(angle), np.sin(angle), 0.0], dtype=torch.float64)
    flow = sharpness_reduction_flow(loss, np.asarray(times).tolist(), start=start)
    found: np.ndarray = torch.atan2(flow.parameters[:, 1], flow.parameters[:, 0]).numpy()
    return found
