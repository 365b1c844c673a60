"""One forward pass that is watched, and what its graph says of whose each row is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from undertow.measure.noise._capture import Capture, Collect
from undertow.measure.noise._layer_gradients import by_sample, flat_rows, wide
from undertow.measure.noise._sites import Layout, Site
from undertow.measure.noise._trace import Trace, Tracer
from undertow.objective import EmpiricalRisk, Tensors

# Marks are powers of two, up to this one and down to its inverse: no two are alike to rounding.
_MARKS = 4.0
# What is left where the slopes in the outputs cancel is rounding, up to so many units of theirs.
_NOISE = 4


class Forward:
    """A microbatch's outputs and sum of the loss, under watch.

    Args:
        risk: what is evaluated.
        parameters: and buffers, by name.
        inputs: of the microbatch.
        targets: of the microbatch.
        collect: as of a `Capture`.
        known: as of a `Capture`.
        traced: whether a trace is taken.

    Attributes:
        leaves: parameters to differentiate in.
        capture: what used them.
        trace: None where none was asked for.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        parameters: Tensors,
        inputs: Any,
        targets: Tensor,
        collect: Collect,
        known: Mapping[str, Layout] | None = None,
        *,
        traced: bool,
    ) -> None:
        self.leaves = {n: parameters[n].detach().requires_grad_() for n in risk.param_names}
        self.capture = Capture(self.leaves, len(targets), collect, known)
        tracer = Tracer() if traced else None
        watch: AbstractContextManager[object] = nullcontext() if tracer is None else tracer
        with self.capture:
            outputs, self.total = risk.logits_and_sum(
                {**parameters, **self.leaves}, inputs, targets, watch
            )
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != targets.shape[:1]:
            found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise TypeError(
                "gradients per sample need a model whose output (or its logits) is a tensor with "
                f"the {len(targets)} samples along its first axis, got {found}"
            )
        self.outputs: Tensor = outputs
        self.trace: Trace | None = None
        if tracer is not None:
            self.trace = tracer.trace
            self.trace.by_values |= self.capture.read

    def marked(self, slope: Tensor | None = None) -> Marked:
        """What arrives at each site where every sample's slope is multiplied by a mark of its own.

        Only activations are differentiated in. The slope in the outputs is that of the sum of the
        loss, where no other one is given.
        """
        if slope is None:
            with self.capture.silent():
                (slope,) = torch.autograd.grad(self.total, self.outputs, retain_graph=True)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.rand(len(slope), generator=generator, dtype=torch.float64)
        marks = torch.exp2(_MARKS * (2 * drawn - 1)).to(slope.device)
        shape = (-1,) + (1,) * (slope.ndim - 1)
        # Rounded once, so that a row's mark is the ratio of two numbers at hand.
        given = slope * marks.to(slope.real.dtype).reshape(shape)
        found: tuple[Tensor | None, ...] = ()
        if self.capture.edges:
            with self.capture.silent():
                found = torch.autograd.grad(
                    self.outputs, self.capture.edges, given, retain_graph=True, allow_unused=True
                )
        rows = torch.linalg.vector_norm(flat_rows(wide(slope)), dim=1)
        noise = _NOISE * torch.finfo(slope.dtype).eps * float(rows.max())
        return Marked(marks, dict(zip(map(id, self.capture.sites), found, strict=True)), noise)


class Marked:
    """Gradients at sites under marked slopes."""

    def __init__(
        self, marks: Float64[Tensor, " samples"], found: dict[int, Tensor | None], noise: float
    ) -> None:
        self._marks, self._found, self._noise = marks, found, noise

    def fits(self, site: Site, delta: Tensor, axis: int) -> bool:
        """Whether each row of `delta`, the gradient without marks, is of the sample it lies with.

        A row that several samples have a part in, or another one, comes back with another mark.
        """
        marked = self._found[id(site)]
        if marked is None:
            return False
        samples = len(self._marks)
        rows = flat_rows(wide(by_sample(delta, samples, axis)))
        others = flat_rows(wide(by_sample(marked, samples, axis)))
        marks = self._marks.to(rows.real.dtype)
        away = torch.linalg.vector_norm(others / marks[:, None] - rows, dim=1)
        sizes = torch.linalg.vector_norm(rows, dim=1)
        return bool((agree(away, sizes, delta.dtype) | (sizes + away <= self._noise)).all())


def agree(
    away: Float[Tensor, " samples"], sizes: Float[Tensor, " samples"], dtype: torch.dtype
) -> Bool[Tensor, " samples"]:
    """Whether differences are those of rounding in that type, beside the sizes of what differs."""
    precision = torch.finfo(dtype).eps
    largest = sizes.max() if len(sizes) else sizes.sum()
    return away <= precision**0.5 * sizes + 100 * precision * largest
