"""Workers of Local SGD in a valley that widens along its floor: what their noise does to them.

L = e^u v^2 / 2 has the floor v = 0 with curvature e^u; noise across the floor pushes u down
(2303.01215). One variable along the minima and one across, so that thousands of runs cost little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.objective import whole_number

_FAINT = 3e-4  # noise that leaves the curvature as it is
_SETTLED = 8.0  # steps before a drift is read, over lr
_DRAWN = 2**21  # normal numbers that are drawn at once, at most, for each generator


def valley_paths(
    *,
    lr: float,
    num_workers: int,
    period: int,
    read_at: Iterable[int],
    noise: tuple[float, float],
    generators: Sequence[torch.Generator],
    replicas: int,
    start: tuple[float, float] = (0.0, 0.0),
    shared: bool = False,
) -> Iterator[Float64[Tensor, "2 runs replicas"]]:
    """Where the average (u, v) of Local SGD's workers on e^u v^2 / 2 is after these many steps.

    Each worker's gradient has normal noise of its own, so much that the mean gradient of all has
    the standard deviations `noise`: averaged at every step (period 1) they are SGD with that noise.
    `flows.valley_floor` and `flows.local_sgd_slow_sde` say where they go in O(1 / lr^2) steps.

    Args:
        lr: learning rate.
        num_workers: K.
        period: H, steps between two averagings.
        read_at: numbers of steps from the start, each read once, in ascending order.
        noise: standard deviations along the floor (of dL/du) and across it, s (of dL/dv).
        generators: of the noise, one for each run; what a run does depends on its own alone.
        replicas: paths of each run.
        start: (u, v) of every worker.
        shared: all workers see one noise, of the standard deviations `noise`: then they never
            part, and averaging does nothing.

    Raises:
        TypeError: a count is no whole number.
        ValueError: a count or a value is out of its range.
    """
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be finite and above 0, got {lr}")
    if not all(0 <= size < math.inf for size in noise):
        raise ValueError(f"noise must be finite and at least 0, got {tuple(noise)}")
    workers = whole_number("num_workers", num_workers, least=1)
    period = whole_number("period", period, least=1)
    replicas = whole_number("replicas", replicas, least=1)
    streams = 1 if shared else workers
    shape = len(generators), replicas, workers
    u, v = (torch.full(shape, value, dtype=torch.float64) for value in start)
    own = tuple(lr * size * math.sqrt(streams) for size in noise)
    most, taken = max(1, _DRAWN // (replicas * streams)), 0
    for step in sorted(set(read_at)):
        while taken < step:
            count = min(most, step - taken)
            along, across = (_normals(generators, size, (count, replicas, streams)) for size in own)
            for index in range(count):
                pull = torch.exp(u).mul_(v).mul_(lr)
                u.addcmul_(pull, v, value=-0.5)
                v.sub_(pull)
                if along is not None:
                    u.add_(along[:, index])
                if across is not None:
                    v.add_(across[:, index])
                taken += 1
                if taken % period == 0 and workers > 1:
                    u.copy_(u.mean(2, keepdim=True))
                    v.copy_(v.mean(2, keepdim=True))
        yield torch.stack([u.mean(2), v.mean(2)])


def valley_multiplier(
    *,
    lr: float,
    num_workers: int,
    period: int,
    steps: int,
    generators: Sequence[torch.Generator],
    replicas: int,
    shared: bool = False,
) -> Float64[Tensor, " runs"]:
    """How much faster Local SGD drifts down the valley than SGD does, where its curvature is one.

    Measured, on `valley_paths` with noise across the floor so faint that the curvature stays: what
    `predict.local_drift_multiplier` predicts. SGD's drift in u, a step, is lr^3 s^2 / (2 (1 - r)),
    r = (1 - lr)^2, for noise of standard deviation s of the mean gradient.

    Args:
        lr: learning rate, below 2.
        num_workers: K.
        period: H.
        steps: over which the drift is read, at least, in whole rounds; 8 / lr go before it.
        generators: one for each run.
        replicas: paths of each run, over which the drift is a mean.
        shared: as in `valley_paths`.

    Raises:
        TypeError: a count is no whole number.
        ValueError: a count or a value is out of its range.
    """
    if not 0 < lr < 2:
        raise ValueError(f"lr must be above 0 and below 2, where steps are stable, got {lr}")
    period = whole_number("period", period, least=1)
    steps = whole_number("steps", steps, least=1)
    begun, taken = (-(-math.ceil(own) // period) * period for own in (_SETTLED / lr, steps))
    ends = valley_paths(
        lr=lr,
        num_workers=num_workers,
        period=period,
        read_at=(begun, begun + taken),
        noise=(0.0, _FAINT),
        generators=generators,
        replicas=replicas,
        shared=shared,
    )
    before, after = (own[0].mean(1) for own in ends)
    usual = lr**3 * _FAINT**2 / (2 * (1 - (1 - lr) ** 2))
    return (before - after) / (taken * usual)


def _normals(
    generators: Sequence[torch.Generator], size: float, shape: tuple[int, int, int]
) -> Float64[Tensor, "runs steps replicas streams"] | None:
    """Normal numbers of this standard deviation; None where it is zero."""
    if not size:
        return None
    drawn = [torch.randn(shape, generator=own, dtype=torch.float64) for own in generators]
    return torch.stack(drawn).mul_(size)
