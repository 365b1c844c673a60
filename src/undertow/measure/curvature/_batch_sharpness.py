"""Batch sharpness: the curvature of a minibatch's loss along its own gradient (arXiv 2412.20553).

What sits at 2 / lr for SGD with small batches, where the sharpness of the whole loss stays below.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from undertow.measure._arguments import check_rtol, or_new
from undertow.measure._kinds import check_objective
from undertow.measure._lengths import inner
from undertow.measure._nested import together
from undertow.measure.curvature._stopping import FIRST, half_width, still_wanted
from undertow.objective import Objective, outside_inference_mode, taken, whole_number


@dataclass(frozen=True)
class BatchSharpness:
    """An estimate of batch sharpness.

    Attributes:
        value: the mean over batches B of g_B^T H_B g_B / |g_B|^2.
        stderr: its standard error; 0 where every batch was taken.
        interval: a 95% interval of the value, by Student's t, a little wider for having stopped on
            the error.
        pooled: the mean of g_B^T H_B g_B over the mean of |g_B|^2.
        pooled_stderr: its standard error, to first order.
        batch_size: samples in a batch.
        batches: how many were taken.
        converged: whether the standard error of the value is within `rtol`.
    """

    value: float
    stderr: float
    interval: tuple[float, float]
    pooled: float
    pooled_stderr: float
    batch_size: int
    batches: int
    converged: bool

    def __repr__(self) -> str:
        low, high = self.interval
        known = f"exactly, from all {self.batches} batches of {self.batch_size}"
        if self.stderr:
            state = "converged" if self.converged else "NOT converged"
            known = (
                f"with standard error {self.stderr:.2g} (95% interval {low:.6g} to {high:.6g}), "
                f"{state} after {self.batches} batches of {self.batch_size}"
            )
        return (
            f"Batch sharpness {self.value:.6g} {known}; pooled {self.pooled:.6g}. Batch-norm "
            "statistics frozen, dropout off."
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields, for a logger."""
        return asdict(self)


@outside_inference_mode
def batch_sharpness(
    objective: Objective,
    rtol: float = 0.05,
    *,
    batch_size: int,
    replacement: bool = False,
    max_batches: int = 1000,
    generator: torch.Generator | None = None,
) -> BatchSharpness:
    """The mean curvature of minibatch losses along their own gradients.

    With L_B the mean loss of a batch B of `batch_size` samples, g_B its gradient and H_B its
    Hessian,

        E_B [ g_B^T H_B g_B / |g_B|^2 ],

    the expected curvature along its own gradient that 2412.20553 has, as in its code
    (`--batch-sharpness`). A step of SGD changes the loss of its own batch by
    -lr |g_B|^2 (1 - lr r_B / 2) with that ratio r_B, to second order, so 2 / lr is where steps
    overshoot, and what SGD settles at; with momentum b, small batches settle at 2 (1 - b) / lr
    (2604.14108). `pooled`, E[g_B^T H_B g_B] / E[|g_B|^2], weighs batches by what they move; its
    edge is where the mean of those changes vanishes. The two differ where gradients of batches
    differ in length.

    With all samples in one batch it is the curvature along the full gradient, at most the
    sharpness.

    Drawn afresh until the standard error is within `rtol` of the mean, with few looks at it; where
    there are no more than 24 batches, each is taken once and the value is exact. A batch costs
    about four gradients of its own.

    Args:
        objective: its samples are held in memory, and cut as its microbatches are.
        rtol: of the standard error, relative to the mean.
        batch_size: samples in a batch: what training uses.
        replacement: whether a batch may hold a sample twice. Epochs over shuffled data have none.
        max_batches: stop there, not converged, as where the mean is nearly zero.
        generator: for the batches; by default the same on every call.

    Raises:
        TypeError: if `objective` is of another kind, or a count is no whole number.
        ValueError: if there are fewer samples than `batch_size`, an argument is out of its range,
            samples differ in shape, or a batch has gradient zero, and so no direction; and as
            `Objective.hvp`.
    """
    check_objective(objective)
    check_rtol(rtol)
    batch_size = whole_number("batch_size", batch_size, least=1)
    max_batches = whole_number("max_batches", max_batches, least=FIRST)
    samples = objective.num_samples
    if batch_size > samples and not replacement:
        raise ValueError(
            f"batch_size must be at most the {samples} samples, got {batch_size}; or draw with "
            "replacement=True"
        )
    generator = or_new(generator)
    batches = _Batches(objective)
    possible = samples**batch_size if replacement else math.comb(samples, batch_size)
    if possible <= FIRST:
        every = (
            itertools.product(range(samples), repeat=batch_size)
            if replacement
            else itertools.combinations(range(samples), batch_size)
        )
        found = batches.measured(torch.tensor(list(every)))
        return _estimate(found, batch_size, exact=True)
    found = batches.measured(_draw(samples, batch_size, FIRST, replacement, generator))
    while True:
        count = len(found)
        ratios = found[:, 0] / found[:, 1]
        stderr = float(ratios.std()) / math.sqrt(count)
        target = rtol * abs(float(ratios.mean()))
        room = max_batches - count
        if stderr <= target or room <= 0:
            return _estimate(found, batch_size, converged=stderr <= target)
        more = still_wanted(count, stderr, target, room)
        fresh = max(1, min(more, room, 3 * count))
        drawn = _draw(samples, batch_size, fresh, replacement, generator)
        found = torch.cat([found, batches.measured(drawn)])


def _draw(
    samples: int, size: int, count: int, replacement: bool, generator: torch.Generator
) -> Int64[Tensor, "count size"]:
    device = generator.device
    if replacement:
        return torch.randint(samples, (count, size), generator=generator, device=device)
    rows = [torch.randperm(samples, generator=generator, device=device) for _ in range(count)]
    return torch.stack([row[:size] for row in rows])


class _Batches:
    """An objective's loss on one batch of its samples at a time."""

    def __init__(self, objective: Objective) -> None:
        self._piece = len(next(iter(objective.batches()))[1])
        self._inputs, self._targets = together(objective.risk)
        self._chosen: Tensor = torch.arange(1)
        self._objective = Objective(
            objective.model,
            objective.loss,
            self,
            params=objective.param_names,
            microbatch=self._piece,
        )

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        yield taken(self._inputs, self._chosen), self._targets[self._chosen]

    def measured(self, batches: Int64[Tensor, "batches size"]) -> Float64[Tensor, "batches two"]:
        """g^T H g and |g|^2 of each batch."""
        rows = []
        for chosen in batches:
            self._chosen = chosen.to(self._targets.device)
            gradient = self._objective.gradient()
            square = inner(gradient, gradient)
            if square == 0:
                raise ValueError(
                    f"the loss of a batch of {len(chosen)} samples has gradient zero, and no "
                    "direction to measure along: batch_size must be larger, or training not done"
                )
            (image,) = self._objective.hvp(gradient[None])
            self._objective.release()  # the next batch is another one
            rows.append(torch.stack([inner(gradient.to(image), image), square]))
        return torch.stack(rows).cpu()


def _estimate(
    found: Float64[Tensor, "batches two"],
    batch_size: int,
    *,
    exact: bool = False,
    converged: bool = True,
) -> BatchSharpness:
    count = len(found)
    ratios = found[:, 0] / found[:, 1]
    value = float(ratios.mean())
    curved, square = found.mean(0).tolist()
    pooled = curved / square
    half = stderr = pooled_stderr = 0.0
    if not exact:
        stderr = float(ratios.std()) / math.sqrt(count)
        off = (found[:, 0] - pooled * found[:, 1]) / square
        pooled_stderr = float(off.std()) / math.sqrt(count)
        half = half_width(stderr, count)
    return BatchSharpness(
        value,
        stderr,
        (value - half, value + half),
        pooled,
        pooled_stderr,
        batch_size,
        count,
        converged,
    )
