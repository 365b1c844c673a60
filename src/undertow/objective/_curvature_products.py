"""Curvature products of a risk over all its microbatches.

Holds what lasts from one call to the next: the graphs, the mode of each kind of product that was
fastest on the first microbatch, and the memory that graphs take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undertow.objective._autotuning import fastest_mode
from undertow.objective._batches import is_finite
from undertow.objective._evaluation import Tensors
from undertow.objective._graphs import graph_bytes
from undertow.objective._linearization import (
    Kind,
    Leaves,
    Linearization,
    Mode,
    second_order,
)
from undertow.objective._module import (
    out_of_memory,
    own_random_state,
    precisely,
    product_type,
    widest,
)
from undertow.objective._risk import EmpiricalRisk
from undertow.objective._second_derivatives import check_second_derivatives
from undertow.objective._sparse import equal

Multiply = Callable[[Linearization, Tensor, Mode], Tensor]
# Length, device and type of directions.
Layout = tuple[int, torch.device, torch.dtype]

# Graphs of first backward passes are kept for further products while they take at most this.
GRAPH_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class Kept:
    """Linearizations of all microbatches, and what they were made at."""

    tensors: Tensors
    fingerprint: Any
    parts: tuple[Linearization, ...]
    count: Tensor


class CurvatureProducts:
    """The Hessian and the Gauss-Newton matrix of a risk, times blocks of directions `[k, p]`.

    Graphs of the first backward pass are kept while parameters, buffers, data and the options of
    the loss have the same values; `release` frees them.

    Args:
        risk: followed as its parameters change.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        self._risk = risk
        self._modes: dict[tuple[Kind, bool], Mode] = {}
        self._kept: dict[Kind, Kept] = {}
        self._bytes_per_sample: dict[Kind, float] = {}
        self._keep = True
        # While parameters, buffers and data hold still: what has been found to be up to date, and
        # the layout of directions.
        self._current: dict[Kind, Kept] | None = None
        self._layout: Layout | None = None

    def product(
        self, kind: Kind, vectors: Float[Tensor, "directions params"]
    ) -> Float[Tensor, "directions params"]:
        """The matrix of the mean loss, "hessian" or "ggn", times each direction.

        Raises:
            TypeError, ValueError: as `Objective.hvp` and `Objective.ggnvp`.
        """
        block = self._checked_block(vectors)
        if len(block) == 0:
            return block
        if kind == "hessian":
            check_second_derivatives(self._risk)
        total, count, reached = self._summed(kind, block, self._risk.known_samples)
        self._risk.check_reached(reached)
        return self._risk.normalized(total, count)

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Parameters, buffers and data hold still inside, so that one comparison will do.

        Attention is unfused until the end.
        """
        outer = self._current, self._layout
        self._layout = self._block_layout()
        self._current = {} if self._current is None else self._current
        try:
            self._risk.stand_in.follow()
            with precisely(), second_order():
                yield
        finally:
            self._current, self._layout = outer

    def release(self) -> None:
        """Free all graphs."""
        self._kept.clear()
        if self._current is not None:
            self._current.clear()

    def __getstate__(self) -> dict[str, Any]:
        # Graphs can be neither copied nor pickled.
        return self.__dict__ | {"_kept": {}, "_current": None, "_layout": None}

    def _checked_block(self, vectors: Tensor) -> Float[Tensor, "directions params"]:
        if not isinstance(vectors, Tensor):
            raise TypeError(f"directions must be a tensor [k, p], got {type(vectors).__name__}")
        size, device, dtype = self._layout or self._block_layout()
        if vectors.ndim != 2 or vectors.shape[1] != size:
            hint = "; write v[None]" if vectors.shape == (size,) else ""
            raise ValueError(
                f"directions must be a block [k, {size}], got {tuple(vectors.shape)}{hint}"
            )
        block = vectors.detach().to(device, dtype)
        if block.is_inference():  # which no graph could hold
            with torch.inference_mode(False):
                block = block.clone()
        if not is_finite(block):
            raise ValueError("directions hold NaN or infinities")
        return block

    def _block_layout(self) -> Layout:
        """How long directions are, where, and of what type."""
        named = dict(self._risk.model.named_parameters())
        chosen = [named[name] for name in self._risk.param_names]
        size = sum(parameter.numel() for parameter in chosen)
        return size, chosen[0].device, product_type(self._risk.dtype or widest(chosen))

    def _summed(
        self,
        kind: Kind,
        block: Float[Tensor, "directions params"],
        expected_samples: int | None,
        *,
        multiply: Multiply = Linearization.product,
        columns: int = 0,
    ) -> tuple[Float[Tensor, "directions params_and_columns"], Tensor, bool]:
        """The summed loss's product, the denominator, and whether the loss depends on theta.

        `multiply` is what to sum over microbatches, with so many more columns than parameters.

        Raises:
            ValueError: if an operation of the model or the loss has no second derivative.
        """
        if kind == "ggn":
            self._risk.check_by_outputs("a Gauss-Newton product")
        with _naming_what_is_missing(), ExitStack() as stack:
            if self._current is None:
                stack.enter_context(self._risk.evaluating())
                stack.enter_context(second_order())
            else:
                stack.enter_context(own_random_state(self._risk.model))
            kept = self._reusable(kind)
            if kept is not None:
                try:
                    first, *others = kept.parts
                    total = self._multiply(kind, block, first, multiply, kept=True)
                    for part in others:
                        total += self._multiply(kind, block, part, multiply, kept=True)
                    return total, kept.count, True
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    self._keep = False
            self._kept.pop(kind, None)
            if self._current is not None:
                self._current.pop(kind, None)
            return self._fresh(kind, block, expected_samples, multiply, columns)

    def centred(
        self,
        block: Float[Tensor, "directions params"],
        means: Float[Tensor, " directions"],
        shares: Float[Tensor, " samples"],
    ) -> Float[Tensor, "directions params_and_one"]:
        """sum_i a_i grad s_i with a_i = <grad s_i, v> - mean share_i, and sum_i a_i share_i.

        s_i is what sample i adds to the sum of the loss, of which the samples must be independent;
        by the graphs of "ggn".
        """

        def multiply(part: Linearization, vectors: Tensor, mode: Mode) -> Tensor:
            return part.centred_product(vectors, mode, means, shares)

        return self._summed("ggn", block, len(shares), multiply=multiply, columns=1)[0]

    def _reusable(self, kind: Kind) -> Kept | None:
        if self._current is not None and kind in self._current:
            return self._current[kind]
        kept = self._kept.get(kind)
        if kept is None or kept.fingerprint != self._risk.fingerprint():
            return None
        now = self._risk.current()
        if now.keys() != kept.tensors.keys() or not all(
            _same(value, then)
            for value, then in zip(now.values(), kept.tensors.values(), strict=True)
        ):
            return None
        self._trust(kind, kept)
        return kept

    def _trust(self, kind: Kind, kept: Kept) -> None:
        if self._current is not None:
            self._current[kind] = kept

    def _multiply(
        self, kind: Kind, block: Tensor, part: Linearization, multiply: Multiply, *, kept: bool
    ) -> Tensor:
        key = (kind, len(block) > 1)
        mode = self._modes.get(key, "loop")
        if key not in self._modes:
            part.build()
            if part.reached:  # nothing to time otherwise, such as where all labels are ignored
                mode, found = fastest_mode(part, block, kept=kept)
                self._modes[key] = mode
                if found is not None and mode == "loop" and multiply is Linearization.product:
                    return found
        if mode == "forward" and kind == "hessian":
            part.free()
        try:
            return multiply(part, block, mode)
        except RuntimeError as error:
            if mode == "loop" or out_of_memory(error):
                raise
            self._modes[key] = "loop"  # which supports everything
            return multiply(part, block, "loop")

    def _fresh(
        self,
        kind: Kind,
        block: Tensor,
        expected_samples: int | None,
        multiply: Multiply,
        columns: int,
    ) -> tuple[Tensor, Tensor, bool]:
        parts: list[Linearization] = []
        total = block.new_zeros(len(block), block.shape[1] + columns)
        counts: list[Tensor] = []
        reached, seen, keep = False, 0, self._keep
        tensors, fingerprint = self._risk.copies(), self._risk.fingerprint()
        leaves = tuple(tensors[name].requires_grad_() for name in self._risk.param_names)

        def compute(tensors: Tensors, inputs: Any, targets: Tensor) -> Any:
            nonlocal keep
            part = self._linearization(kind, leaves, tensors, inputs, targets)
            part.first = seen
            try:
                if kind not in self._bytes_per_sample:
                    size, slow = graph_bytes(part.build, leaves)
                    part.check_differentiable()
                    if slow:
                        part.free()
                    self._bytes_per_sample[kind] = size / len(targets)
                samples = max(expected_samples or 0, len(targets))
                keep = keep and self._bytes_per_sample[kind] * samples <= GRAPH_BYTES
                product = self._multiply(kind, block, part, multiply, kept=keep)
                if not part.finite:  # though its derivatives may be
                    product = torch.full_like(product, math.nan)
            except RuntimeError as error:
                if out_of_memory(error) and parts:
                    keep = False
                    parts.clear()
                    return compute(tensors, inputs, targets)
                raise
            return part, product, self._risk.denominators(targets).sum(), len(targets)

        def collect(result: Any) -> None:
            nonlocal reached, seen, keep
            part, product, part_count, samples = result
            total.add_(product)
            counts.append(part_count)
            reached = reached or part.reached or bool(part_count == 0)
            seen += samples
            keep = keep and seen * self._bytes_per_sample[kind] <= GRAPH_BYTES
            if keep:
                parts.append(part)
            else:
                parts.clear()

        self._risk.sweep(compute, collect, tensors)
        count = torch.stack(counts).sum()
        if keep and reached and count > 0:
            self._kept[kind] = Kept(tensors, fingerprint, tuple(parts), count)
            self._trust(kind, self._kept[kind])
        return total, count, reached

    def _linearization(
        self, kind: Kind, leaves: Leaves, tensors: Tensors, inputs: Any, targets: Tensor
    ) -> Linearization:
        names = self._risk.param_names

        def evaluate(leaves: Leaves) -> tuple[Any, Tensor]:
            chosen = dict(zip(names, leaves, strict=True))
            return self._risk.logits_and_sum({**tensors, **chosen}, inputs, targets)

        return Linearization(
            evaluate, leaves, kind, lambda outputs: self._risk.output_product(outputs, targets)
        )


@contextmanager
def _naming_what_is_missing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "derivative for" not in str(error) or "not implemented" not in str(error):
            raise
        raise ValueError(f"the model or the loss has no second derivative: {error}") from error


def _same(now: Tensor, then: Tensor) -> bool:
    """Whether values are the same; versions would not tell of changes through `.data`."""
    then = then.detach()
    plain = type(now) is Tensor and now.layout is torch.strided and now.device.type == "cpu"
    if plain and now.dtype == then.dtype:
        return np.array_equal(now.numpy(), then.numpy())  # several times as fast as torch.equal
    return equal(now.to(then.dtype), then)
