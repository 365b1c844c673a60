"""The affine piece of a piecewise linear network around an input, and how far it reaches.

While the activation pattern holds, f(x') = A x' + c (Xu and Zhang, arXiv 2107.12530, section 2, for
ReLU networks of any depth). The region is a polytope, and its distances are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from undertow.measure._kinds import check_model
from undertow.measure._pieces import Trace, trace
from undertow.objective import StandIn, evaluating

# Directions are followed so many at a time that what they give takes about so many bytes.
_BLOCK_BYTES = 2**27


@dataclass(frozen=True, eq=False)
class AffineRegion:
    """The affine map of a network on the activation region of each sample.

    Attributes:
        matrix: A, with outputs and inputs flattened.
        offset: c.
        pattern: for each nonlinearity, by the path of its module (with `#2`, `#3` where a module
            calls several), the piece that each unit is on: whether a ReLU's input is positive, how
            many kinks of a hardtanh or clamp it exceeds, the flat position of a max pool's maximum.
    """

    matrix: Float[Tensor, "batch outputs inputs"]
    offset: Float[Tensor, "batch outputs"]
    pattern: Mapping[str, Tensor]

    def __call__(self, inputs: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch outputs"]:
        """A x + c for one input per sample; equal to the network's output inside the region."""
        return (self.matrix @ inputs.flatten(1)[..., None])[..., 0] + self.offset

    def __repr__(self) -> str:
        batch, outputs, inputs = self.matrix.shape
        units = sum(pattern[0].numel() for pattern in self.pattern.values()) if batch else 0
        return (
            f"AffineRegion: f(x) = A x + c with A {outputs} x {inputs} for each of {batch} "
            f"samples, while the pattern of {units:,} units in {len(self.pattern)} layers holds; "
            "in eval mode (batch-norm statistics frozen, dropout off)."
        )


@dataclass(frozen=True, eq=False)
class Boundary:
    """The nearest boundary of each sample's activation region.

    Attributes:
        distance: to it; infinite where there is none.
        layer: which of `layers` changes its pattern there; -1 where there is none.
        layers: the paths of the nonlinearities, as in `AffineRegion.pattern`.
    """

    distance: Float[Tensor, "*directions batch"]
    layer: Int[Tensor, "*directions batch"]
    layers: tuple[str, ...]

    def __repr__(self) -> str:
        low, high = float(self.distance.min()), float(self.distance.max())
        return (
            f"Boundary: the activation pattern first changes at a distance of {low:.4g} to "
            f"{high:.4g}, over {self.distance.numel()} samples or directions."
        )


def activation_region(model: nn.Module, x: Float[Tensor, "batch ..."]) -> AffineRegion:
    """The activation pattern at each input, and the exact affine map that holds with it.

    The pattern includes the positions of max pools. Piecewise linear are ReLU, LeakyReLU, PReLU,
    ReLU6, hardtanh, clamp, abs, hardsigmoid and max pooling, as modules or functions; everything
    else must be affine in eval mode (linear, convolution, batch norm, average pooling, sums,
    reshapes, choices by a constant mask). A unit at a kink is on the piece below it: a ReLU counts
    as inactive, as in PyTorch's derivative. The model is left as found.

    Args:
        model: maps a batch to a batch, one sample independent of the others.
        x: inputs with samples along the first axis, in the floating-point type of the model.

    Raises:
        ValueError: a layer is not piecewise linear (it is named), samples are mixed, x is empty, or
            x, the parameters or the outputs are not finite.
        TypeError: model is not a module, does not return a tensor, or x is not floating point or
            of another type than the parameters.
    """
    stand_in = _checked(model, x)
    with evaluating(model), torch.no_grad():
        inputs = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            here = trace(stand_in, inputs)
            matrix = _jacobian(here.outputs, inputs)
        # A third copy of the batch, anywhere else: there too the map must be the frozen network.
        ramp = torch.arange(x.numel(), device=x.device).cos().view(x.shape).to(x)
        probe = ramp * max(1.0, float(x.abs().max()))
        rows = torch.cat([x, torch.zeros_like(x), probe])
        again = trace(stand_in, rows, frozen=here.pieces)
        _check_samples_apart(here, again, x)
        _, offset, there = again.outputs.split(len(x))
        pattern = {piece.layer: piece.pattern for piece in here.pieces}

        def fits(region: AffineRegion) -> bool:
            return _close(region(x), here.outputs) and _close(region(probe), there)

        region = AffineRegion(matrix, offset, pattern)
        differentiable = all(piece.differentiable for piece in here.pieces)
        if not (differentiable and fits(region)):
            # At a kink PyTorch's derivative may be of no piece, and a model may detach.
            region = AffineRegion(_columns(stand_in, x, here), offset, pattern)
            if not fits(region):
                raise ValueError(
                    "model mixes samples, or computes outside PyTorch: its map of one sample "
                    "depends on the others, or is not affine on a piece"
                )
    return region


def region_radius(
    model: nn.Module, x: Float[Tensor, "batch ..."], directions: Float[Tensor, "... batch ..."]
) -> Boundary:
    """How far the activation pattern at x holds along a direction.

    The distance is the largest t for which x + s direction keeps its pattern for all 0 <= s < t, in
    lengths of the direction. It is exact: every pre-activation is affine in s until the first one
    changes sign.

    Args:
        model: as in `activation_region`.
        x: inputs with samples along the first axis.
        directions: one for each sample, in the shape of x, or several: `[directions, *x.shape]`.

    Raises:
        ValueError, TypeError: as in `activation_region`, or the shape does not fit.
    """
    stand_in = _checked(model, x)
    if not isinstance(directions, Tensor):
        raise TypeError(f"directions must be a tensor, got {type(directions).__name__}")
    single = directions.shape == x.shape
    if not single and directions.shape[1:] != x.shape:
        raise ValueError(
            f"directions must have the shape of x, {tuple(x.shape)}, or [directions, "
            f"{', '.join(map(str, x.shape))}], got {tuple(directions.shape)}"
        )
    if not directions.is_floating_point():
        raise TypeError(f"directions must be floating point, got {directions.dtype}")
    if not torch.isfinite(directions).all():
        raise ValueError("directions hold NaN or infinities")
    distances, layers = [], []
    with evaluating(model), torch.no_grad():
        here = trace(stand_in, x)
        block = (directions[None] if single else directions).to(x)
        for part in block.split(_block_size(here, x)):
            slopes, _ = _slopes(stand_in, x, here, part)
            times = torch.where(slopes < 0, here.margins / -slopes, torch.inf)
            distance, layer = _nearest(here, times)
            distances.append(distance)
            layers.append(layer)
    shape = x.shape[:1] if single else block.shape[:2]
    return Boundary(
        torch.cat(distances).view(shape), torch.cat(layers).view(shape), _layer_names(here)
    )


def boundary_distance(model: nn.Module, x: Float[Tensor, "batch ..."]) -> Boundary:
    """Euclidean distance from each input to the nearest boundary of its activation region.

    The region is a polytope with a hyperplane for each unit, so the distance is the least |z| /
    ||grad z|| over all pre-activations z (and over the lead of each max pool's maximum): exact for
    the pattern, a lower bound for where the affine map itself changes. The gradients of all units
    take one forward pass over a frozen network for each input coordinate.

    Args:
        model: as in `activation_region`.
        x: inputs with samples along the first axis.

    Raises:
        ValueError, TypeError: as in `activation_region`.
    """
    stand_in = _checked(model, x)
    with evaluating(model), torch.no_grad():
        here = trace(stand_in, x)
        squares = torch.zeros_like(here.margins)
        for directions in _coordinates(here, x):
            slopes, _ = _slopes(stand_in, x, here, directions)
            squares += slopes.square().sum(0)
        lengths = squares.sqrt()
        distances = torch.where(lengths > 0, here.margins / lengths, torch.inf)
        distance, layer = _nearest(here, distances[None])
    return Boundary(distance[0], layer[0], _layer_names(here))


def _checked(model: nn.Module, x: Tensor) -> StandIn:
    """What is run in the place of a model."""
    check_model(model)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor [batch, ...], got {kind}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x must hold at least one sample, [batch, ...], got {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise ValueError("x holds NaN or infinities")
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if types and x.dtype not in types:
        raise TypeError(
            f"x must be in the type of the model's parameters, {types.pop()}, got {x.dtype}"
        )
    return StandIn(model)


def _columns(model: StandIn, x: Tensor, here: Trace) -> Float[Tensor, "batch outputs inputs"]:
    """The Jacobian of the frozen network column by column, as differences of an affine map."""
    found = [_slopes(model, x, here, directions)[1] for directions in _coordinates(here, x)]
    return torch.cat(found).permute(1, 2, 0).contiguous()


def _coordinates(here: Trace, x: Tensor) -> Iterator[Float[Tensor, "directions batch ..."]]:
    """Unit vectors along every input coordinate, for each sample the same, in blocks."""
    size = x[0].numel()
    for coordinates in torch.arange(size, device=x.device).split(_block_size(here, x)):
        basis = torch.zeros(len(coordinates), size, dtype=x.dtype, device=x.device)
        basis[torch.arange(len(coordinates)), coordinates] = 1
        yield basis[:, None].expand(-1, len(x), -1).reshape(-1, *x.shape)


def _jacobian(
    outputs: Float[Tensor, "batch outputs"], inputs: Tensor
) -> Float[Tensor, "batch outputs inputs"]:
    batch, count = outputs.shape
    if not outputs.requires_grad:
        return outputs.new_zeros(batch, count, inputs[0].numel())
    rows = []
    eye = torch.eye(count, dtype=outputs.dtype, device=outputs.device)
    block = max(1, _BLOCK_BYTES // (8 * inputs.numel()))
    for part in eye.split(block):
        wanted = part[:, None].expand(-1, batch, -1)
        (found,) = torch.autograd.grad(
            outputs, inputs, wanted, retain_graph=True, is_grads_batched=True
        )
        rows.append(found.flatten(2))
    return torch.cat(rows).transpose(0, 1).contiguous()


def _slopes(
    model: StandIn, x: Tensor, here: Trace, directions: Float[Tensor, "directions batch ..."]
) -> tuple[Float[Tensor, "directions batch units"], Float[Tensor, "directions batch outputs"]]:
    """Derivatives of all margins and outputs along directions: differences of affine functions."""
    # Differences over a short way drown in the rounding of biases, so all directions are brought to
    # one length, by powers of two, which round nothing.
    limits = torch.finfo(x.dtype)
    _, exponents = torch.frexp(directions.flatten(2).abs().amax(2))
    reach = round(-math.log2(limits.eps) / 2)
    powers = (reach - exponents).clamp(max=int(math.log2(limits.max)) - 1)
    scale = torch.ldexp(torch.ones_like(powers, dtype=x.dtype), powers)
    far = directions * scale.view(*scale.shape, *[1] * (x.ndim - 1))
    found = trace(
        model,
        torch.cat([x[None], torch.zeros_like(x)[None], far]).flatten(0, 1),
        frozen=here.pieces,
    )
    _check_samples_apart(here, found, x)

    def along(values: Tensor) -> Tensor:
        copies = values.unflatten(0, (-1, len(x)))
        origin, ends = copies[1], copies[2:]
        slopes = ends - origin
        # A difference within rounding error is no slope: two pooled values that are equal would
        # seem to part at once.
        noise = 4 * limits.eps * torch.maximum(ends.abs(), origin.abs())
        return torch.where(slopes.abs() > noise, slopes, 0.0) / scale[..., None]

    return along(found.margins), along(found.outputs)


def _nearest(
    here: Trace, distances: Float[Tensor, "directions batch units"]
) -> tuple[Tensor, Tensor]:
    if distances.shape[-1] == 0:
        none = distances.new_full(distances.shape[:-1], torch.inf)
        return none, torch.full_like(none, -1, dtype=torch.int64)
    distance, unit = distances.min(-1)
    sizes = torch.tensor([piece.margins.shape[1] for piece in here.pieces], device=unit.device)
    layer = torch.bucketize(unit, sizes.cumsum(0), right=True)
    return distance, torch.where(torch.isfinite(distance), layer, -1)


def _layer_names(here: Trace) -> tuple[str, ...]:
    return tuple(piece.layer for piece in here.pieces)


def _block_size(here: Trace, x: Tensor) -> int:
    numbers = 4 * (here.margins.numel() + x.numel())
    return max(1, _BLOCK_BYTES // (x.element_size() * numbers))


def _check_samples_apart(here: Trace, again: Trace, x: Tensor) -> None:
    """The frozen network at x itself is the network; else copies of the batch were mixed."""
    batch = len(x)
    if not (
        _close(again.outputs[:batch], here.outputs) and _close(again.margins[:batch], here.margins)
    ):
        raise ValueError(
            "model mixes samples, or moves the batch away from the first axis: its map of one "
            "sample depends on the others"
        )


def _close(found: Tensor, expected: Tensor) -> bool:
    found, expected = found.detach(), expected.detach()
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    tolerance = scale * torch.finfo(expected.dtype).eps ** 0.5
    return bool(torch.allclose(found, expected, rtol=0.0, atol=tolerance))
