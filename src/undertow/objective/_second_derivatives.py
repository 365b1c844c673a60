"""Whether second derivatives are those of the loss, tried on a few samples in float64.

A Hessian is symmetric, v.Hw = w.Hv. Where an operation's backward pass is written by hand, as in
an autograd.Function, products are compared with differences of gradients too: tensors that it
keeps count as constants when it is differentiated, and often leave a matrix that is symmetric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.modules.module import register_module_forward_hook

from undertow.objective._double_backward import DoubleBackwardMode
from undertow.objective._independence import FAILURES, Unable, attempted
from undertow.objective._inputs import taken_to
from undertow.objective._linearization import Leaves, pull_back, second_order
from undertow.objective._risk import EmpiricalRisk

Evaluate = Callable[[Leaves], Tensor]

# What products may differ by: in float64, where parts of a model may still be in single precision,
# and in the model's own type; and the directions in which they are compared. One pair that
# happens to agree so far is a matter of 1 in 1,000 in float64.
_EXACT, _ROUNDED = 1e-5, 2e-2
_DIRECTIONS = {_EXACT: 2, _ROUNDED: 5}
_SAMPLES = 4
# Differences of gradients take steps of so much of the parameters' size: short, so that no ReLU
# changes sides. Those of both steps must agree, and differ by so much from the product.
_STEPS = (1e-7, 3e-8)
_WRONG = 1e-2


def check_second_derivatives(risk: EmpiricalRisk) -> None:
    """Try the Hessian of a few samples, once for a risk and its copies.

    What cannot be tried is left to the products, which say why.

    Raises:
        ValueError: if it is not symmetric, or not the derivative of the gradient.
    """
    if risk.findings.curved:
        return
    fault = _first_fault(risk)
    if fault:
        raise ValueError(fault)
    risk.findings.curved = True


def _first_fault(risk: EmpiricalRisk) -> str:
    """What is wrong on a few samples, and on a whole microbatch too.

    A few may have no Hessian but rounding: a batch-normalised output of samples with one target.
    """
    fault = ""
    for inputs, targets in _batches(risk):
        for exact, tolerance in ((risk.at(torch.float64), _EXACT), (risk, _ROUNDED)):
            try:
                fault = attempted(partial(_fault_of_hessian, exact, inputs, targets, tolerance))
            except Unable:
                continue
            if not fault:
                return ""
            break
    return fault


def _batches(risk: EmpiricalRisk) -> Iterator[tuple[Any, Tensor]]:
    """A few samples; then a whole microbatch, for models that take no other."""
    few = risk.findings.few(risk)
    if few is not None:
        some = slice(_SAMPLES)
        yield taken_to(few[0], some, few[1].device), few[1][some]
    yield from islice(risk.batches(), 1)


def _fault_of_hessian(risk: EmpiricalRisk, inputs: Any, targets: Tensor, tolerance: float) -> str:
    tensors = risk.copies()
    leaves = tuple(tensors[name].requires_grad_() for name in risk.param_names)
    device, every = leaves[0].device, slice(None)
    inputs, targets = taken_to(inputs, every, device), taken_to(targets, every, device)

    def evaluate(leaves: Leaves) -> Tensor:
        chosen = dict(zip(risk.param_names, leaves, strict=True))
        return risk.logits_and_sum({**tensors, **chosen}, inputs, targets)[1]

    with (
        risk.evaluating(),
        second_order(),
        torch.enable_grad(),
        DoubleBackwardMode(will_be_linear=False, fast=False),
    ):
        fault = _fault(evaluate, leaves, tolerance)
        if not fault:
            return ""
        culprit = _culprit(risk, lambda: evaluate(leaves), tolerance)
        return (
            f"the Hessian would be wrong: {fault}, by the second derivative of {culprit}; write "
            "that in plain operations of PyTorch, or take the Gauss-Newton matrix "
            '(curvature="ggn", ggnvp)'
        )


def _fault(evaluate: Evaluate, leaves: Leaves, tolerance: float) -> str:
    """What is wrong with the Hessian of a function, "" for nothing that shows."""
    total = evaluate(leaves)
    if not total.requires_grad:
        return ""
    gradients = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    size = sum(leaf.numel() for leaf in leaves)
    drawn = torch.randn(_DIRECTIONS[tolerance], size, generator=generator).to(leaves[0])
    shaped = [
        part.reshape(-1, *leaf.shape).to(leaf)
        for part, leaf in zip(
            drawn.split([leaf.numel() for leaf in leaves], dim=1), leaves, strict=True
        )
    ]
    images = pull_back(gradients, leaves, shaped, batched=False).to(drawn)
    across = images @ drawn.T
    sizes = torch.linalg.vector_norm(images, dim=1)
    apart = (across - across.T).abs() / (sizes[:, None] + sizes).clamp_min(
        torch.finfo(sizes.dtype).tiny
    )
    if not images.isfinite().all():
        return ""
    if apart.max() > tolerance:
        return f"it is not symmetric (v.Hw and w.Hv differ by {float(apart.max()):.1%})"
    if tolerance == _EXACT and _by_hand(total):
        return _against_differences(evaluate, leaves, [part[0] for part in shaped], images[0])
    return ""


def _against_differences(
    evaluate: Evaluate, leaves: Leaves, direction: Sequence[Tensor], image: Tensor
) -> str:
    """Compare a product with differences of gradients along its direction."""
    squares = sum(float(leaf.detach().square().sum()) for leaf in leaves)
    size = (squares / sum(leaf.numel() for leaf in leaves)) ** 0.5 or 1.0

    def gradient(step: float) -> Tensor:
        moved = tuple(
            (leaf.detach() + step * part).requires_grad_()
            for leaf, part in zip(leaves, direction, strict=True)
        )
        found = torch.autograd.grad(
            evaluate(moved), moved, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.flatten() for part in found])

    found = [
        (gradient(step * size) - gradient(-step * size)) / (2 * step * size) for step in _STEPS
    ]
    scale = torch.linalg.vector_norm(image)
    errors = [float(torch.linalg.vector_norm(each - image)) for each in found]
    unsure = float(torch.linalg.vector_norm(found[0] - found[1]))
    # A ReLU that changes sides, or single precision inside, leaves the two apart.
    if min(errors) > _WRONG * float(scale) and unsure < min(errors) / 10:
        share = min(errors) / max(float(scale), errors[0])
        return f"it is not the derivative of the gradient (its products are {share:.1%} off)"
    return ""


def _by_hand(total: Tensor) -> list[str]:
    """The autograd.Functions in a graph, by name."""
    found: dict[str, None] = {}
    waiting, seen = [total.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            found[type(node).__name__.removesuffix("Backward")] = None
        waiting += [after for after, _ in node.next_functions]
    return list(found)


def _culprit(risk: EmpiricalRisk, evaluate: Callable[[], Tensor], tolerance: float) -> str:
    """The first of the innermost modules whose own second derivative is wrong, in words."""
    named = {name: module for name, module in risk.model.named_modules() if name}
    places = {id(risk.stand_in.of(module)): name for name, module in named.items()}
    found: list[str] = []
    inside = False

    def tried(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal inside
        if inside or found:
            return
        inside = True
        try:
            if _is_faulty(module, args, kwargs, tolerance):
                kind = type(module).__name__
                where = places.get(id(module))
                found.append(f"the module {where} ({kind})" if where else f"a {kind}")
        except FAILURES:
            pass
        finally:
            inside = False

    handle = register_module_forward_hook(tried, with_kwargs=True)
    try:
        names = _by_hand(evaluate())
    finally:
        handle.remove()
    by_hand = f" (autograd.Function {', '.join(names)})" if names else ""
    return (found[0] if found else "some operation of the model or the loss") + by_hand


def _is_faulty(module: nn.Module, args: Any, kwargs: Any, tolerance: float) -> bool:
    """Whether the second derivative of a module in its inputs and parameters is wrong."""
    given = [
        part.detach().clone().requires_grad_()
        if isinstance(part, Tensor) and part.is_floating_point()
        else part
        for part in args
    ]
    moving = [part for part in given if isinstance(part, Tensor) and part.requires_grad]
    own = [each for each in module.parameters() if each.requires_grad and each.is_leaf]

    def evaluate(leaves: Leaves) -> Tensor:
        inputs = iter(leaves)
        output = module.forward(
            *(next(inputs) if any(part is m for m in moving) else part for part in given),
            **kwargs,
        )
        output = output[0] if isinstance(output, tuple) else output
        weights = torch.linspace(0.5, 1.5, output.numel()).to(output)
        return (torch.tanh(output).flatten() * weights).sum()

    return bool(_fault(evaluate, (*moving, *own), tolerance))
