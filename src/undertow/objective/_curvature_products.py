"""Curvature products and noise draws over all microbatches of an objective.

Holds what lasts from one call to the next: the graphs, the mode of each kind of product that was
fastest on the first microbatch, and the memory that graphs take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undertow.objective._autotuning import fastest_mode, fastest_pull_back
from undertow.objective._linearization import (
    Kind,
    Leaves,
    Linearization,
    Mode,
    graph_bytes,
    pull_back,
    second_order,
)
from undertow.objective._losses import OutputProduct

Tensors = Mapping[str, Tensor]
Compute = Callable[[Tensors, Any, Tensor], Any]
Multiply = Callable[[Linearization, Tensor, Mode], Tensor]

# Graphs of first backward passes are kept for further products while they take at most this.
GRAPH_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class Source:
    """What products need of an objective.

    Attributes:
        param_names: what theta consists of.
        evaluating: a context with the model in eval mode and a random state of its own.
        own_random_state: a context with the latter alone.
        current: all parameters and buffers.
        copies: the same as copies, half precision as single.
        fingerprint: changes when data in memory do.
        logits: those of a microbatch (tensors, inputs).
        logits_and_sum: the logits and the summed loss of a microbatch (tensors, inputs, targets).
        sample_sums: the same for the loss of each sample, `[samples]`.
        count: what the targets of a microbatch add to the denominator.
        output_product: from (outputs, targets) to the closed-form Hessian product of the summed
            loss in the outputs, if there is one.
        sweep: `compute` on each microbatch, halved if it does not fit, its result to `collect`.
        out_of_memory: whether that is what an error says.
    """

    param_names: tuple[str, ...]
    evaluating: Callable[[], AbstractContextManager[None]]
    own_random_state: Callable[[], AbstractContextManager[None]]
    current: Callable[[], Tensors]
    copies: Callable[[], Tensors]
    fingerprint: Callable[[], Any]
    logits: Callable[[Tensors, Any], Any]
    logits_and_sum: Callable[[Tensors, Any, Tensor], tuple[Any, Tensor]]
    sample_sums: Callable[[Tensors, Any, Tensor], Tensor]
    count: Callable[[Tensor], Tensor]
    output_product: Callable[[Tensor, Tensor], OutputProduct | None]
    sweep: Callable[[Compute, Callable[[Any], None], Tensors], None]
    out_of_memory: Callable[[RuntimeError], bool]


@dataclass(frozen=True, eq=False)
class Kept:
    """Linearizations of all microbatches, and what they were made at."""

    tensors: Tensors
    fingerprint: Any
    parts: tuple[Linearization, ...]
    count: Tensor


class Products:
    """Hessian and Gauss-Newton products of an objective."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._modes: dict[tuple[Kind, bool], Mode] = {}
        self._kept: dict[Kind, Kept] = {}
        self._bytes_per_sample: dict[Kind, float] = {}
        self._keep = True
        # While parameters, buffers and data hold still: what has been found to be up to date.
        self._current: dict[Kind, Kept] | None = None

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Parameters, buffers and data hold still inside, so that one comparison will do.

        The caller keeps the model in eval mode.
        """
        outer, self._current = self._current, {} if self._current is None else self._current
        try:
            with second_order():
                yield
        finally:
            self._current = outer

    def release(self) -> None:
        """Free all graphs."""
        self._kept.clear()
        if self._current is not None:
            self._current.clear()

    def __getstate__(self) -> dict[str, Any]:
        # Graphs can be neither copied nor pickled.
        return self.__dict__ | {"_kept": {}, "_current": None}

    def __call__(
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
        with _naming_what_is_missing(), ExitStack() as stack:
            if self._current is None:
                stack.enter_context(self._source.evaluating())
                stack.enter_context(second_order())
            else:
                stack.enter_context(self._source.own_random_state())
            kept = self._reusable(kind)
            if kept is not None:
                try:
                    first, *others = kept.parts
                    total = self._multiply(kind, block, first, multiply, kept=True)
                    for part in others:
                        total += self._multiply(kind, block, part, multiply, kept=True)
                    return total, kept.count, True
                except RuntimeError as error:
                    if not self._source.out_of_memory(error):
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
        """`Linearization.centred_product` summed over all samples, by the graphs of "ggn"."""

        def multiply(part: Linearization, vectors: Tensor, mode: Mode) -> Tensor:
            return part.centred_product(vectors, mode, means, shares)

        return self("ggn", block, len(shares), multiply=multiply, columns=1)[0]

    def _reusable(self, kind: Kind) -> Kept | None:
        if self._current is not None and kind in self._current:
            return self._current[kind]
        kept = self._kept.get(kind)
        if kept is None or kept.fingerprint != self._source.fingerprint():
            return None
        now = self._source.current()
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
            if mode == "loop" or self._source.out_of_memory(error):
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
        tensors, fingerprint = self._source.copies(), self._source.fingerprint()
        leaves = tuple(tensors[name].requires_grad_() for name in self._source.param_names)

        def compute(tensors: Tensors, inputs: Any, targets: Tensor) -> Any:
            nonlocal keep
            part = self._linearization(kind, leaves, tensors, inputs, targets)
            part.first = seen
            try:
                if kind not in self._bytes_per_sample:
                    size, slow = graph_bytes(part.build, leaves)
                    if slow:
                        part.free()
                    self._bytes_per_sample[kind] = size / len(targets)
                samples = max(expected_samples or 0, len(targets))
                keep = keep and self._bytes_per_sample[kind] * samples <= GRAPH_BYTES
                product = self._multiply(kind, block, part, multiply, kept=keep)
                if not part.finite:  # though its derivatives may be
                    product = torch.full_like(product, math.nan)
            except RuntimeError as error:
                if self._source.out_of_memory(error) and parts:
                    keep = False
                    parts.clear()
                    return compute(tensors, inputs, targets)
                raise
            return part, product, self._source.count(targets), len(targets)

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

        self._source.sweep(compute, collect, tensors)
        count = torch.stack(counts).sum()
        if keep and reached and count > 0:
            self._kept[kind] = Kept(tensors, fingerprint, tuple(parts), count)
            self._trust(kind, self._kept[kind])
        return total, count, reached

    def _linearization(
        self, kind: Kind, leaves: Leaves, tensors: Tensors, inputs: Any, targets: Tensor
    ) -> Linearization:
        names = self._source.param_names

        def evaluate(leaves: Leaves) -> tuple[Any, Tensor]:
            chosen = dict(zip(names, leaves, strict=True))
            return self._source.logits_and_sum({**tensors, **chosen}, inputs, targets)

        return Linearization(
            evaluate, leaves, kind, lambda outputs: self._source.output_product(outputs, targets)
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
    return now.shape == then.shape and torch.equal(now.to(then.dtype), then)


def weighted_gradients(
    source: Source, weights: Float[Tensor, "draws samples"]
) -> Float[Tensor, "draws params"]:
    """For each row of weights, the gradient of the so weighted sum of the samples' losses."""
    tensors = source.copies()
    leaves = tuple(tensors[name].requires_grad_() for name in source.param_names)
    weights = weights.to(leaves[0])
    total = leaves[0].new_zeros(len(weights), sum(leaf.numel() for leaf in leaves))
    first = 0
    batched: bool | None = None

    def compute(tensors: Tensors, inputs: Any, targets: Tensor) -> tuple[Tensor, int]:
        nonlocal batched
        with torch.enable_grad():
            sums = source.sample_sums(tensors, inputs, targets)
        chosen = weights[:, first : first + len(targets)]
        if batched is None:
            batched = fastest_pull_back(sums, leaves, chosen)
        return pull_back([sums], leaves, [chosen], batched=batched), len(targets)

    def collect(result: tuple[Tensor, int]) -> None:
        nonlocal first
        total.add_(result[0])
        first += result[1]

    with source.evaluating():
        source.sweep(compute, collect, tensors)
    return total
