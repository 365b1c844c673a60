"""Hessian and Gauss-Newton products of the summed loss of one microbatch with many directions.

The graph of the first backward pass is kept, so that a product is one more backward pass. The
Gauss-Newton product J^T H_l J v takes J v as the derivative of the linear map u -> J^T u, and so
never runs the model a second time. Forward over reverse is the other way, at times the faster.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import Any, Literal, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from undertow.objective._double_backward import DoubleBackwardMode
from undertow.objective._graphs import check_differentiable
from undertow.objective._losses import OutputProduct
from undertow.objective._module import aligned, dense, unfused, widest

Kind = Literal["hessian", "ggn"]
Mode = Literal["loop", "batched", "forward"]
Leaves = tuple[Tensor, ...]
# From the parameters to (logits, summed loss).
Evaluate = Callable[[Leaves], tuple[Any, Tensor]]

Method = TypeVar("Method", bound=Callable[..., Any])

_NOTHING = nullcontext()
# Directions that one batched pass takes together: more cost memory and bring nothing.
BLOCK = 8


def seconds(device: torch.device) -> float:
    """A clock; on a processor that of this thread, which other programs do not disturb."""
    if device.type == "cpu":
        return time.thread_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def second_order() -> Iterator[None]:
    """Attention by plain matrix products: the fused kernels have no second derivative."""
    with unfused(), sdpa_kernel(SDPBackend.MATH):
        yield


def pull_back(
    outputs: Sequence[Tensor | None],
    leaves: Leaves,
    cotangents: Sequence[Tensor],
    *,
    batched: bool,
    during: AbstractContextManager[object] = _NOTHING,
) -> Float[Tensor, "directions params"]:
    """The vector-Jacobian products of `outputs` in `leaves` with a block of cotangents.

    Outputs that are None or constant count as zero. The graph is kept. `during` is entered for
    backward passes alone: a mode would see every step that shapes vectors.
    """
    directions = len(cotangents[0])
    found = [
        (output, cotangent)
        for output, cotangent in zip(outputs, cotangents, strict=True)
        if output is not None and output.requires_grad
    ]
    if not found:
        kind = widest(leaves)
        return leaves[0].new_zeros(directions, sum(leaf.numel() for leaf in leaves), dtype=kind)
    variables, given = zip(*found, strict=True)
    blocks = [
        block if block.dtype == variable.dtype else block.to(variable.dtype)
        for block, variable in zip(given, variables, strict=True)
    ]
    step = BLOCK if batched else 1
    results: list[Tensor] = []
    for start in range(0, directions, step):
        rows = slice(start, start + step)
        chosen = [block[rows] if batched else block[start] for block in blocks]
        with during:
            gradients = torch.autograd.grad(
                variables,
                leaves,
                chosen,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=batched,
            )
        rank = (min(step, directions - start),) if batched else ()
        flat = [
            leaf.new_zeros(leaf.numel()).expand(*rank, -1)
            if gradient is None
            else dense(gradient).reshape(*rank, leaf.numel())
            for leaf, gradient in zip(leaves, gradients, strict=True)
        ]
        results.append(torch.cat(flat, dim=-1))
    if batched:
        return torch.cat(results)
    return results[0][None] if directions == 1 else torch.stack(results)


def _or_plainly(method: Method) -> Method:
    """Where PyTorch refuses what `DoubleBackwardMode` recorded, the same with corrections alone.

    Not so for (vectors, mode, ...) of another mode than the loop, which has that to fall back on.
    """

    @wraps(method)
    def run(self: Linearization, *args: Any) -> Any:
        try:
            return method(self, *args)
        except RuntimeError:
            mode = args[1] if len(args) > 1 else "loop"
            before = self._double_backward
            if mode != "loop" or not before.fast or not before.used:
                raise
            self._double_backward = DoubleBackwardMode(
                will_be_linear=before.will_be_linear, fast=False
            )
            self.free()
            return method(self, *args)

    return cast(Method, run)


class Linearization:
    """One microbatch at fixed parameters, ready for products of one kind.

    Args:
        evaluate: maps the parameters to (outputs, summed loss), differentiably.
        leaves: the parameters, which require a gradient.
        kind: "hessian", or "ggn" for the Gauss-Newton matrix at the outputs.
        output_product: from the outputs to the closed-form Hessian product of the loss in them,
            or to None.

    Attributes:
        kind: as given.
        reached: whether the loss depends on the parameters.
        finite: whether the loss is.
        first: number of samples in the microbatches before.
        build_seconds: what the last build of the graph took, by `seconds`; 0 before any.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        leaves: Leaves,
        kind: Kind,
        output_product: Callable[[Tensor], OutputProduct | None],
    ) -> None:
        self._evaluate = evaluate
        self._leaves = leaves
        self.kind = kind
        self._closed_form = output_product
        self._graph: _HessianGraph | _GaussNewtonGraph | None = None
        self._double_backward = DoubleBackwardMode(will_be_linear=kind == "ggn")
        self.reached = self.finite = True
        self.first = 0
        self.build_seconds = 0.0

    def free(self) -> None:
        """Drop the graph; the next product that needs it builds it again."""
        self._graph = None

    @_or_plainly
    def build(self) -> _HessianGraph | _GaussNewtonGraph:
        """Run the model and the first backward pass, and keep the graph.

        Sets `reached` to whether the loss depends on the parameters.

        Raises:
            TypeError: for "ggn", if outputs are not a tensor.
            ValueError: for "ggn", if the loss does not depend on the outputs.
        """
        if self._graph is None:
            device = self._leaves[0].device
            start = seconds(device)
            with torch.enable_grad(), self._double_backward:
                outputs, total = self._evaluate(self._leaves)
                self.finite = bool(total.isfinite())
                if self.kind == "hessian":
                    self._graph = _HessianGraph(_slopes(total, self._leaves))
                    self.reached = any(part is not None for part in self._graph.gradients)
                else:
                    self._graph = self._gauss_newton(outputs, total)
                    self.reached = any(part is not None for part in self._graph.pulled)
            self.build_seconds = seconds(device) - start
        return self._graph

    def _gauss_newton(self, outputs: Any, total: Tensor) -> _GaussNewtonGraph:
        if not isinstance(outputs, Tensor):
            raise TypeError(
                "Gauss-Newton products need a model that returns a tensor, or has .logits, got "
                f"{type(outputs).__name__}"
            )
        # J^T u is linear in u, so its derivative in u is the same at every u.
        cotangent = torch.zeros_like(outputs).requires_grad_()
        with self._double_backward.as_linear():
            pulled = _slopes(outputs if total.requires_grad else total, self._leaves, cotangent)
        (slope,) = _slopes(total, (outputs,))
        if slope is None and total.requires_grad:
            raise ValueError(
                "the loss does not depend on the model's outputs, or these are copies of what it "
                "is computed from: Gauss-Newton products need the loss as a function of them"
            )
        product = self._closed_form(outputs)
        own = slope if product is None else None
        product = product or partial(_generic_product, slope, outputs)
        fixed = torch.zeros_like(outputs) if slope is None else slope
        return _GaussNewtonGraph(outputs, cotangent, pulled, product, fixed.detach(), own)

    def check_differentiable(self, *, outputs_only: bool = False) -> None:
        """Raise ValueError where what is differentiated, in products or in outputs, cannot be."""
        graph = self.build()
        if isinstance(graph, _HessianGraph):
            check_differentiable(graph.gradients)
        else:
            check_differentiable([graph.own_slope, *(() if outputs_only else graph.pulled)])

    def output_hessians(
        self, most: int
    ) -> tuple[Float[Tensor, "samples outputs"], Float[Tensor, "samples outputs outputs"]] | None:
        """Outputs, and the loss's Hessian in those of each sample; None above `most` of them.

        Takes the loss for a sum over samples.
        """
        graph = self.build()
        assert isinstance(graph, _GaussNewtonGraph)
        flat = graph.outputs.detach().reshape(len(graph.outputs), -1)
        size = flat.shape[1]
        if size > most:
            return None
        units = torch.eye(size).to(flat)[:, None].expand(size, *flat.shape)
        columns = graph.output_product(units.reshape(size, *graph.outputs.shape))
        return flat, columns.reshape(size, *flat.shape).permute(1, 2, 0)

    @_or_plainly
    def product(
        self, vectors: Float[Tensor, "directions params"], mode: Mode
    ) -> Float[Tensor, "directions params"]:
        """The matrix times each direction."""
        batched = mode == "batched"
        if mode == "forward" and self.kind == "hessian":
            gradient = torch.func.grad(lambda leaves: self._evaluate(leaves)[1])
            return self._forward(gradient, self._shaped(vectors))
        graph, during = self.build(), self._recomputing()
        if isinstance(graph, _HessianGraph):
            shaped = self._shaped(vectors)
            return pull_back(graph.gradients, self._leaves, shaped, batched=batched, during=during)
        moved = self._moved(graph, vectors, mode)
        with during:
            pushed = graph.output_product(moved)
        return pull_back([graph.outputs], self._leaves, [pushed], batched=batched, during=during)

    @_or_plainly
    def centred_product(
        self,
        vectors: Float[Tensor, "directions params"],
        mode: Mode,
        means: Float[Tensor, " directions"],
        shares: Float[Tensor, " all_samples"],
    ) -> Float[Tensor, "directions params_and_one"]:
        """sum_i a_i grad s_i with a_i = <grad s_i, v> - mean share_i, and sum_i a_i share_i.

        For "ggn" and a loss s_i of sample i alone; the shares are those of all microbatches.
        """
        graph = self.build()
        assert isinstance(graph, _GaussNewtonGraph)
        mine = shares[self.first : self.first + len(graph.outputs)]
        along = (self._moved(graph, vectors, mode) * graph.slope).flatten(1)
        along = along.reshape(len(vectors), len(mine), -1).sum(2) - torch.outer(means, mine)
        shape = (*along.shape, *(1,) * (graph.slope.ndim - 1))
        pushed, during = along.reshape(shape) * graph.slope, self._recomputing()
        pulled = pull_back(
            [graph.outputs], self._leaves, [pushed], batched=mode == "batched", during=during
        )
        return torch.cat([pulled, (along @ mine)[:, None]], dim=1)

    def _recomputing(self) -> AbstractContextManager[object]:
        """For checkpointed parts, which run again in the backward pass and must record the same."""
        return self._double_backward if self._double_backward.used else nullcontext()

    def _shaped(self, vectors: Tensor) -> list[Tensor]:
        sizes = [leaf.numel() for leaf in self._leaves]
        return [
            aligned(part.to(leaf.dtype)).reshape(len(vectors), *leaf.shape)
            for part, leaf in zip(vectors.split(sizes, dim=1), self._leaves, strict=True)
        ]

    def _moved(self, graph: _GaussNewtonGraph, vectors: Tensor, mode: Mode) -> Tensor:
        """The change of the outputs along each direction, `[directions, *outputs.shape]`."""
        shaped = self._shaped(vectors)
        if mode == "forward":
            moved = self._forward(lambda leaves: self._evaluate(leaves)[0], shaped)
        else:
            batched, during = mode == "batched", self._recomputing()
            moved = pull_back(
                graph.pulled, (graph.cotangent,), shaped, batched=batched, during=during
            )
        return moved.reshape(-1, *graph.outputs.shape)

    def _forward(self, function: Callable[[Leaves], Any], shaped: list[Tensor]) -> Tensor:
        """The derivative of `function` along each direction, in forward mode, flattened."""
        load_forward_mode()
        points = tuple(leaf.detach() for leaf in self._leaves)

        def along(*tangents: Tensor) -> Tensor:
            moved = torch.func.jvp(lambda *leaves: function(leaves), points, tangents)[1]
            parts = (moved,) if isinstance(moved, Tensor) else moved
            return torch.cat([part.flatten() for part in parts])

        with torch.enable_grad(), DoubleBackwardMode(will_be_linear=False, fast=False):
            if len(shaped[0]) == 1:
                return along(*(part[0] for part in shaped)).detach()[None]
            chunks = zip(*(part.split(BLOCK) for part in shaped), strict=True)
            return torch.cat([torch.func.vmap(along)(*chunk).detach() for chunk in chunks])


@cache
def load_forward_mode() -> None:
    """Let torch load what it loads on first use, and warns its own developers about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


@dataclass(frozen=True, eq=False)
class _HessianGraph:
    """The gradient as a function of the parameters."""

    gradients: Sequence[Tensor | None]


@dataclass(frozen=True, eq=False)
class _GaussNewtonGraph:
    """The outputs, and J^T u, as functions of the parameters and of u; the loss's slope."""

    outputs: Tensor
    cotangent: Tensor
    pulled: Sequence[Tensor | None]
    output_product: OutputProduct
    slope: Tensor
    own_slope: Tensor | None  # with its graph, where there is no closed form


def _slopes(
    output: Tensor, variables: Leaves, cotangent: Tensor | None = None
) -> Sequence[Tensor | None]:
    """The gradient, differentiable again; None for what `output` does not depend on."""
    if not output.requires_grad:
        return [None] * len(variables)
    given = [variable if variable.requires_grad else None for variable in variables]
    chosen = [variable for variable in given if variable is not None]
    found = iter(
        torch.autograd.grad(output, chosen, cotangent, create_graph=True, allow_unused=True)
        if chosen
        else ()
    )
    slopes = [None if variable is None else next(found) for variable in given]
    return [None if slope is None else dense(slope) for slope in slopes]


def _generic_product(slope: Tensor | None, outputs: Tensor, block: Tensor) -> Tensor:
    """The Hessian of a loss in its outputs, from its gradient there."""
    rows = pull_back([slope], (outputs,), [block], batched=False)
    return rows.reshape(block.shape)
