"""Where a deep ReLU stack stops changing its input (Xu and Zhang, arXiv 2107.12530).

With W_l = I + P_l, hidden states at least zero and ReLU 1-Lipschitz, a layer moves its input by
||h_{l+1} - h_l|| <= ||P_l|| ||h_l|| + ||b_l||, so summable perturbations and biases converge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from undertow.measure.weights import matrix_spectrum
from undertow.objective import StandIn, evaluating

_UNKNOWN = (math.nan, math.nan, math.nan)
# Change nothing in eval mode.
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True, eq=False)
class DepthConvergence:
    """How far each block of a stack moves its input, beside what its weights allow.

    Norms are Euclidean over all coordinates of a sample, spectral for matrices; states are numbered
    from the one that enters the first block.

    Attributes:
        blocks: the blocks by name, `0` for a module or `0-1` for a linear layer and its ReLU.
        movement: ||h_{l+1} - h_l||.
        bound: ||P_l|| ||h_l|| + ||b_l||, and the norm of what is negative in h_l where a ReLU would
            cut it off; NaN for a block whose form is not recognised.
        state_norm: ||h_l||.
        norm_bound: prod_{i<l} (1 + ||P_i||) (||h_0|| + sum_{i<l} ||b_i||).
        remaining: ||h_L - h_l||, what the blocks from l on change.
        perturbation: ||P_l|| = ||W_l - I||; of a residual branch the product of its norms.
        bias: ||b_l||; of a residual branch each times the norms of the matrices after it.
        partial_sums: of `perturbation`; NaN from a block of unknown form on. With biases alike, a
            sum that stays bounded in depth makes the stack converge; one that grows leaves it open.
        settled_depth: the least depth from which on all states are within `tolerance` of the last
            one, relative to its norm: later blocks can be left out.
        tolerance: as given.
    """

    blocks: tuple[str, ...]
    movement: Float64[Tensor, "blocks batch"]
    bound: Float64[Tensor, "blocks batch"]
    state_norm: Float64[Tensor, "states batch"]
    norm_bound: Float64[Tensor, "states batch"]
    remaining: Float64[Tensor, "states batch"]
    perturbation: Float64[Tensor, " blocks"]
    bias: Float64[Tensor, " blocks"]
    partial_sums: Float64[Tensor, " blocks"]
    settled_depth: Int64[Tensor, " batch"]
    tolerance: float

    def __repr__(self) -> str:
        depth, unknown = len(self.blocks), int(self.perturbation.isnan().sum())
        known = f"||P_l|| add up to {float(self.perturbation.nansum()):.4g}"
        if unknown:
            known += f" ({unknown} blocks of unknown form left out)"
        return (
            f"DepthConvergence of {depth} blocks: {known}; after block "
            f"{int(self.settled_depth.max())} no state is further than {self.tolerance:g} from the "
            f"last one, relative to it, over {self.state_norm.shape[1]} samples."
        )


def depth_convergence(
    stack: nn.Sequential, x: Tensor, *, tolerance: float = 1e-3
) -> DepthConvergence:
    """Measure how a stack of equal-width blocks converges in depth, on some inputs.

    Blocks are the longest run, in the order of an `nn.Sequential` (nested ones are opened, dropout
    and identities passed over), of either a `Linear` with as many outputs as inputs followed by a
    `ReLU`, or of modules with parts that keep the shape of their input, such as residual blocks.
    What comes before is run and not counted; what comes after is ignored. A residual block is
    recognised when it equals h + g(h), or its ReLU, on the data, with g the chain of the block's
    linear layers with ReLUs between; any other block is measured without a bound. Runs in eval
    mode; the model is left as found.

    Args:
        stack: the network.
        x: inputs with samples along the first axis.
        tolerance: relative, for `settled_depth`.

    Raises:
        TypeError: stack is no `nn.Sequential`, or x no floating-point tensor of its parameters'
            type.
        ValueError: it has no such block, or x is empty or not finite, or states are not finite.
    """
    if not isinstance(stack, nn.Sequential):
        raise TypeError(
            f"stack must be an nn.Sequential of blocks, got {type(stack).__name__}. Pass the part "
            "of the model that is one"
        )
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor [batch, ...], got {kind}")
    if x.ndim < 2 or x.numel() == 0 or not torch.isfinite(x).all():
        raise ValueError(
            f"x must hold at least one sample, [batch, ...], all finite, got {tuple(x.shape)}"
        )
    types = {p.dtype for p in stack.parameters() if p.is_floating_point()}
    if types and x.dtype not in types:
        raise TypeError(
            f"x must be in the type of the stack's parameters, {types.pop()}, got {x.dtype}"
        )
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    stand_in = StandIn(stack)
    with evaluating(stack), torch.no_grad():
        return stand_in.apply(stand_in.own(), lambda copied, _: _converging(copied, x, tolerance))


def _converging(stack: nn.Module, x: Tensor, tolerance: float) -> DepthConvergence:
    steps = list(_steps(list(_opened(stack, "")), x))
    blocks = _longest_run(steps)
    if not blocks:
        raise ValueError(
            "stack has no block that keeps the shape of its input: it needs a Linear with as "
            "many outputs as inputs and a ReLU, or a module such as a residual block"
        )
    return _measure(blocks, tolerance)


@dataclass(frozen=True, eq=False)
class _Step:
    """A layer or block of a stack with its input and output."""

    name: str
    modules: Sequence[nn.Module]
    before: Tensor
    after: Tensor

    @property
    def plain(self) -> bool:
        """A linear layer and its ReLU."""
        return len(self.modules) == 2

    @property
    def is_block(self) -> bool:
        has_parts = self.plain or any(True for _ in self.modules[0].children())
        return has_parts and self.before.shape == self.after.shape


def _opened(stack: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, module in stack.named_children():
        if type(module) is nn.Sequential:
            yield from _opened(module, f"{prefix}{name}.")
        elif type(module) not in _IDLE:
            yield prefix + name, module


def _steps(layers: Sequence[tuple[str, nn.Module]], x: Tensor) -> Iterator[_Step]:
    index = 0
    while index < len(layers):
        pair = layers[index : index + 2]
        plain = len(pair) == 2 and type(pair[0][1]) is nn.Linear and type(pair[1][1]) is nn.ReLU
        taken = pair if plain else pair[:1]
        modules = [module for _, module in taken]
        after = x
        for module in modules:
            after = module(after.clone())  # which it may write to
        if not isinstance(after, Tensor) or not torch.isfinite(after).all():
            raise ValueError(f"layer {taken[-1][0]} of stack gives no finite tensor")
        yield _Step("-".join(name for name, _ in taken), modules, x, after)
        x, index = after, index + len(taken)


def _longest_run(steps: Sequence[_Step]) -> list[_Step]:
    runs = [
        list(run)
        for shape, run in groupby(steps, lambda step: step.after.shape if step.is_block else None)
        if shape is not None
    ]
    return max(runs, key=len, default=[])


def _measure(blocks: Sequence[_Step], tolerance: float) -> DepthConvergence:
    states = torch.stack([_rows(blocks[0].before), *(_rows(block.after) for block in blocks)])
    state_norm = states.norm(dim=2)
    movement = states.diff(dim=0).norm(dim=2)
    remaining = (states - states[-1]).norm(dim=2)
    forms = _forms(blocks).to(states.device)
    perturbation, bias, cuts = forms.unbind(1)
    # A ReLU also cuts off what is negative in the state that enters; nothing after another ReLU.
    negative = states[:-1].clamp(max=0).norm(dim=2)
    bound = perturbation[:, None] * state_norm[:-1] + bias[:, None] + cuts[:, None] * negative
    growth = torch.cat([perturbation.new_zeros(1), perturbation.log1p().cumsum(0)]).exp()
    pushed = torch.cat([bias.new_zeros(1), bias.cumsum(0)])
    far = remaining > tolerance * state_norm[-1]
    depths = torch.arange(1, len(states) + 1, device=states.device)[:, None]
    return DepthConvergence(
        blocks=tuple(block.name for block in blocks),
        movement=movement,
        bound=bound,
        state_norm=state_norm,
        norm_bound=growth[:, None] * (state_norm[0] + pushed[:, None]),
        remaining=remaining,
        perturbation=perturbation,
        bias=bias,
        partial_sums=perturbation.cumsum(0),
        settled_depth=(far * depths).amax(0),
        tolerance=tolerance,
    )


def _rows(state: Tensor) -> Float64[Tensor, "batch coordinates"]:
    return state.flatten(1).double()


def _forms(blocks: Sequence[_Step]) -> Float64[Tensor, "blocks 3"]:
    """Of each block ||P||, ||b||, and whether a ReLU ends it; NaN where its form is not known."""
    chains = [_branch(block) for block in blocks]
    matrices: list[Tensor] = []
    for block, chain in zip(blocks, chains, strict=True):
        for linear in chain or ():
            weight = linear.weight.detach().double()
            identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
            matrices.append(weight - identity if block.plain else weight)
    norms = iter(_spectral_norms(matrices))
    forms = []
    for block, chain in zip(blocks, chains, strict=True):
        if chain is None:
            forms.append(_UNKNOWN)
            continue
        # A linear layer acts on every position of a sequence alike.
        places = block.before[0].numel() / chain[0].in_features
        perturbation, bias = 1.0, 0.0
        for linear in chain:
            norm = next(norms)
            own = 0.0 if linear.bias is None else float(linear.bias.detach().double().norm())
            perturbation, bias = perturbation * norm, bias * norm + own * places**0.5
        cut = block.plain or bool((block.after >= 0).all())
        forms.append((perturbation, bias, float(cut)))
    return torch.tensor(forms, dtype=torch.float64)


def _spectral_norms(matrices: Sequence[Tensor]) -> list[float]:
    """Largest singular values; matrices of one shape in a row are taken together."""
    found: list[float] = []
    for _, group in groupby(matrices, lambda matrix: matrix.shape):
        found += matrix_spectrum(torch.stack(list(group)))[:, 0].tolist()
    return found


def _branch(block: _Step) -> list[nn.Linear] | None:
    """The linear layers of a plain block, or of a residual one that the data confirm."""
    if block.plain:
        linear = block.modules[0]
        assert isinstance(linear, nn.Linear)
        return [linear]
    leaves = [part for part in block.modules[0].modules() if not any(True for _ in part.children())]
    if not all(type(part) in (nn.Linear, nn.ReLU, nn.Identity, nn.Dropout) for part in leaves):
        return None
    linears = [part for part in leaves if isinstance(part, nn.Linear)]
    if not linears or linears[0].in_features != block.before.shape[-1]:
        return None
    between: list[nn.Linear | nn.ReLU] = [
        part for linear in linears for part in (linear, nn.ReLU())
    ][:-1]
    chains: tuple[Sequence[nn.Module], ...] = (leaves, between)
    for chain in chains:
        branch = block.before
        for part in chain:
            if type(part) is nn.Linear and part.in_features != branch.shape[-1]:
                return None
            branch = part(branch) if type(part) is not nn.ReLU else branch.relu()
        if branch.shape == block.before.shape:
            # Rounding of the branch and of the sum. More would let a branch that is small beside
            # h pass for another one.
            eps = torch.finfo(branch.dtype).eps
            total = block.before + branch
            allowed = eps * (1e3 * float(branch.abs().max()) + 4 * float(total.abs().max()))
            if any(_same(form, block.after, allowed) for form in (total, total.relu())):
                return linears
    return None


def _same(found: Tensor, expected: Tensor, allowed: float) -> bool:
    return bool(((found - expected).abs() <= allowed).all())
