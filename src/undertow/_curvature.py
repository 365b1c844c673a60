"""Hessian and Gauss-Newton products of the summed loss of one microbatch with many directions.

The graph of the first backward pass is kept, so that a product is one more backward pass. The
Gauss-Newton product J^T H_l J v takes J v as the derivative of the linear map u -> J^T u, and so
never runs the model a second time. Forward over reverse is the other way, at times the faster.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from undertow._losses import OutputProduct

Kind = Literal["hessian", "ggn"]
Mode = Literal["loop", "batched", "forward"]
Choice = TypeVar("Choice", bound=Hashable)
Leaves = tuple[Tensor, ...]
# From the parameters to (logits, summed loss).
Evaluate = Callable[[Leaves], tuple[Any, Tensor]]

# Directions that one batched pass takes together: more cost memory and bring nothing.
BLOCK = 8
# Directions, repeats and seconds of the trial that decides between modes.
_TRIAL_BLOCK = 4
_TRIALS = 6
_TRIAL_SECONDS = 0.02
# What is this much slower at first is not tried again; what is not faster by this is not taken.
_HOPELESS = 4.0
_CLEARLY = 0.9
# Ways to compute the same must agree so far.
_AGREEMENT = 1e-3


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are; a sum tells at a fraction of the cost, unless it overflows."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


@contextmanager
def second_order() -> Iterator[None]:
    """Attention by plain matrix products: the fused kernels have no second derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def pull_back(
    outputs: Sequence[Tensor | None],
    leaves: Leaves,
    cotangents: Sequence[Tensor],
    *,
    batched: bool,
) -> Float[Tensor, "directions params"]:
    """The vector-Jacobian products of `outputs` in `leaves` with a block of cotangents.

    Outputs that are None or constant count as zero. The graph is kept.
    """
    directions = len(cotangents[0])
    found = [
        (output, cotangent)
        for output, cotangent in zip(outputs, cotangents, strict=True)
        if output is not None and output.requires_grad
    ]
    if not found:
        return leaves[0].new_zeros(directions, sum(leaf.numel() for leaf in leaves))
    variables, blocks = zip(*found, strict=True)
    step = BLOCK if batched else 1
    results: list[Tensor] = []
    for start in range(0, directions, step):
        rows = slice(start, start + step)
        gradients = torch.autograd.grad(
            variables,
            leaves,
            [block[rows] if batched else block[start] for block in blocks],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
        )
        shape = (min(step, directions - start), -1) if batched else (-1,)
        flat = [
            leaf.new_zeros(leaf.numel()).expand(*shape[:-1], -1)
            if gradient is None
            else gradient.reshape(shape)
            for leaf, gradient in zip(leaves, gradients, strict=True)
        ]
        results.append(torch.cat(flat, dim=-1))
    if batched:
        return torch.cat(results)
    return results[0][None] if directions == 1 else torch.stack(results)


class Linearization:
    """One microbatch at fixed parameters, ready for products of one kind.

    Args:
        evaluate: maps the parameters to (outputs, summed loss), differentiably.
        leaves: the parameters, which require a gradient.
        kind: "hessian", or "ggn" for the Gauss-Newton matrix at the outputs.
        output_product: from the outputs to the closed-form Hessian product of the loss in them,
            or to None.
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
        self._kind = kind
        self._closed_form = output_product
        self._graph: _HessianGraph | _GaussNewtonGraph | None = None
        self.reached = True

    def free(self) -> None:
        """Drop the graph; the next product that needs it builds it again."""
        self._graph = None

    def build(self) -> _HessianGraph | _GaussNewtonGraph:
        """Run the model and the first backward pass, and keep the graph.

        Sets `reached` to whether the loss depends on the parameters.

        Raises:
            TypeError: for "ggn", if outputs are not a tensor.
        """
        if self._graph is None:
            with torch.enable_grad():
                outputs, total = self._evaluate(self._leaves)
                if self._kind == "hessian":
                    self._graph = _HessianGraph(_slopes(total, self._leaves))
                    self.reached = any(part is not None for part in self._graph.gradients)
                else:
                    self._graph = self._gauss_newton(outputs, total)
                    self.reached = any(part is not None for part in self._graph.pulled)
        return self._graph

    def _gauss_newton(self, outputs: Any, total: Tensor) -> _GaussNewtonGraph:
        if not isinstance(outputs, Tensor):
            raise TypeError(
                "Gauss-Newton products need a model that returns a tensor, or has .logits; got "
                f"{type(outputs).__name__}"
            )
        # J^T u is linear in u, so its derivative in u is the same at every u.
        cotangent = torch.zeros_like(outputs).requires_grad_()
        pulled = _slopes(outputs if total.requires_grad else total, self._leaves, cotangent)
        closed_form = self._closed_form(outputs)
        if closed_form is None:
            (slope,) = _slopes(total, (outputs,))
            closed_form = partial(_generic_product, slope, outputs)
        return _GaussNewtonGraph(outputs, cotangent, pulled, closed_form)

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

    def product(
        self, vectors: Float[Tensor, "directions params"], mode: Mode
    ) -> Float[Tensor, "directions params"]:
        """The matrix times each direction."""
        sizes = [leaf.numel() for leaf in self._leaves]
        shaped = [
            part.reshape(-1, *leaf.shape)
            for part, leaf in zip(vectors.split(sizes, dim=1), self._leaves, strict=True)
        ]
        if mode == "forward" and self._kind == "hessian":
            return self._forward(torch.func.grad(lambda leaves: self._evaluate(leaves)[1]), shaped)
        graph, batched = self.build(), mode == "batched"
        if isinstance(graph, _HessianGraph):
            return pull_back(graph.gradients, self._leaves, shaped, batched=batched)
        if mode == "forward":
            moved = self._forward(lambda leaves: self._evaluate(leaves)[0], shaped)
        else:
            moved = pull_back(graph.pulled, (graph.cotangent,), shaped, batched=batched)
        pushed = graph.output_product(moved.reshape(-1, *graph.outputs.shape))
        return pull_back([graph.outputs], self._leaves, [pushed], batched=batched)

    def _forward(self, function: Callable[[Leaves], Any], shaped: list[Tensor]) -> Tensor:
        """The derivative of `function` along each direction, in forward mode, flattened."""
        load_forward_mode()
        points = tuple(leaf.detach() for leaf in self._leaves)

        def along(*tangents: Tensor) -> Tensor:
            moved = torch.func.jvp(lambda *leaves: function(leaves), points, tangents)[1]
            parts = (moved,) if isinstance(moved, Tensor) else moved
            return torch.cat([part.flatten() for part in parts])

        with torch.enable_grad():
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
    """The outputs, and J^T u, as functions of the parameters and of u."""

    outputs: Tensor
    cotangent: Tensor
    pulled: Sequence[Tensor | None]
    output_product: OutputProduct


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
    return [None if variable is None else next(found) for variable in given]


def _generic_product(slope: Tensor | None, outputs: Tensor, block: Tensor) -> Tensor:
    """The Hessian of a loss in its outputs, from its gradient there."""
    rows = pull_back([slope], (outputs,), [block], batched=False)
    return rows.reshape(block.shape)


def fastest_mode(
    linearization: Linearization, vectors: Float[Tensor, "directions params"], *, kept: bool
) -> Mode:
    """The way to multiply that takes the least time on a microbatch.

    A mode that the model does not support, or only by a slow fallback that torch warns of, is out.
    `kept` says whether the graph stays for the next products; otherwise building it counts.
    """
    block = vectors[:_TRIAL_BLOCK]
    modes: tuple[Mode, ...] = ("loop", "forward")
    if len(block) > 1:
        modes = ("loop", "batched", "forward")

    def run(mode: Mode) -> Tensor:
        if not kept:
            linearization.free()
        return linearization.product(block, mode)

    # The loop always works, or its error is the user's to see.
    return _fastest({mode: partial(run, mode) for mode in modes}, "loop")


def fastest_pull_back(
    output: Tensor, leaves: Leaves, cotangents: Float[Tensor, "directions outputs"]
) -> bool:
    """Whether vector-Jacobian products take less time batched than one after the other."""
    block = cotangents[:_TRIAL_BLOCK]
    if len(block) == 1:
        return False
    run = partial(pull_back, [output], leaves, [block])
    return _fastest({batched: partial(run, batched=batched) for batched in (False, True)}, False)


def _fastest(runs: Mapping[Choice, Callable[[], Tensor]], certain: Choice) -> Choice:
    expected, first = _time(runs[certain])
    seconds = {certain: _repeat(runs[certain], first)}
    for choice, run in runs.items():
        if choice == certain:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                result, first = _time(run)
                # The first run warms up, but one that takes so much longer will not win.
                if first < _HOPELESS * seconds[certain]:
                    seconds[choice] = _repeat(run, first) / _CLEARLY
        except (RuntimeError, UserWarning):  # no derivative of that kind, or a slow one
            continue
        # Batching rules of rarely used derivatives can be wrong.
        if torch.linalg.norm(result - expected) > _AGREEMENT * torch.linalg.norm(expected):
            seconds.pop(choice, None)
    return min(seconds, key=lambda choice: seconds[choice])


def _time(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def _repeat(run: Callable[[], Tensor], first: float) -> float:
    """The least of a few times: two, or more where they are short and so less certain."""
    taken = [_time(run)[1]]
    while len(taken) < _TRIALS and first + sum(taken) < _TRIAL_SECONDS:
        taken.append(_time(run)[1])
    return min(taken)


def graph_bytes(build: Callable[[], object], leaves: Leaves) -> int:
    """Memory that a graph keeps alive, beside the parameters."""
    known = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        build()
    return sum(sizes.values())
