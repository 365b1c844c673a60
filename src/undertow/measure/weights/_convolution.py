"""Singular values of a convolution as the linear map that it is (Sedghi, Gupta and Long, 2019).

A circular stride-1 convolution is block diagonal in the Fourier basis: one c_out x c_in matrix per
frequency, whose singular values together are those of the whole operator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.measure.weights._spectrum import matrix_spectrum

# Frequency responses are held in double precision in pieces of about this many bytes.
_WORKSPACE_BYTES = 2**27


def operator_spectrum(
    kernels: Float[Tensor, "*batch_out_in_taps"],
    size: Sequence[int],
    *,
    groups: int = 1,
    dilation: Sequence[int] | None = None,
    exact: bool = False,
) -> Float64[Tensor, "*batch values"]:
    """Singular values, in descending order, of a circular stride-1 convolution on `size` inputs.

    There are prod(size) * min(c_out, c_in) of them (over groups, with the group's channels). Zero
    padding changes them at the border only; a stride would keep a part of the output.

    Args:
        kernels: `[*batch, c_out, c_in / groups, *taps]` with one axis of taps per axis of `size`;
            a kernel larger than the input wraps around.
        size: spatial size of the input, such as (32, 32).
        groups: of the convolution.
        dilation: of each spatial axis; 1 by default.
        exact: as in `matrix_spectrum`.

    Raises:
        ValueError: if the axes of kernels, size, groups and dilation do not fit together.
    """
    dimensions = len(size)
    dilation = (1,) * dimensions if dilation is None else tuple(dilation)
    if dimensions == 0 or any(not isinstance(n, int) or n < 1 for n in size):
        raise ValueError(f"size must hold positive whole numbers, such as (32, 32), got {size}")
    if len(dilation) != dimensions:
        raise ValueError(f"dilation must have an entry per axis of size {size}, got {dilation}")
    if kernels.ndim < dimensions + 2:
        raise ValueError(
            f"kernels must be [..., c_out, c_in, {'x'.join('k' * dimensions)}] for inputs of size "
            f"{tuple(size)}, got shape {tuple(kernels.shape)}"
        )
    batch = kernels.shape[: kernels.ndim - dimensions - 2]
    rows, cols, *taps = kernels.shape[len(batch) :]
    if groups < 1 or rows % groups:
        raise ValueError(f"groups must divide the {rows} output channels, got {groups}")
    if kernels.device.type == "mps":  # it has no float64
        kernels = kernels.cpu()

    rows //= groups
    flat = kernels.detach().reshape(-1, rows, cols, math.prod(taps)).to(torch.float64)
    phases, copies = _phases(taps, size, dilation, kernels.device)
    step = max(1, _WORKSPACE_BYTES // (flat.shape[0] * rows * cols * 16))
    values = [
        matrix_spectrum(
            torch.einsum("ft,grct->gfrc", phases[start : start + step], flat.to(phases.dtype)),
            exact=exact,
        )
        for start in range(0, phases.shape[0], step)
    ]
    spectra = torch.cat(values, dim=1).repeat_interleave(copies, dim=1)
    return spectra.reshape(*batch, -1).sort(dim=-1, descending=True).values


def _phases(
    taps: Sequence[int], size: Sequence[int], dilation: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Fourier phases `[frequencies, taps]` and how many frequencies each row stands for.

    A real kernel's response at -u is the conjugate of that at u, so the last axis needs half its
    frequencies.
    """
    phases = torch.ones(1, 1, dtype=torch.complex128, device=device)
    for axis, (count, length, gap) in enumerate(zip(taps, size, dilation, strict=True)):
        last = axis == len(size) - 1
        frequency = torch.arange(length // 2 + 1 if last else length, device=device)
        # Reduced modulo the length first: the angle keeps its digits.
        turns = torch.outer(frequency, gap * torch.arange(count, device=device)) % length
        angle = -2 * math.pi / length * turns.to(torch.float64)
        phases = torch.kron(phases, torch.polar(torch.ones_like(angle), angle))
    half = torch.arange(size[-1] // 2 + 1, device=device)
    copies = torch.where((half == 0) | (2 * half == size[-1]), 1, 2)
    return phases, copies.repeat(math.prod(size[:-1]))
