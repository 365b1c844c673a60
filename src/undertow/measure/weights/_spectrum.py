"""Singular values of many matrices at once, from the Gram matrix of the short side in float64.

Half the product and an eigenproblem of the short side replace a dense SVD; where the rounding of
that could decide a reported rank, `matrix_ranks` falls back to the SVD of just those matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

# Matrices are converted to double precision in pieces of about this many bytes.
_WORKSPACE_BYTES = 2**28
# Tiles of the Gram matrix's product, rows by columns of the factor: they stay in the cache.
_GRAM_BLOCK = 256
_GRAM_DEPTH = 512
# Eigenvalues of a Gram matrix of n-long sums are off by at most about this times n eps s_1^2.
_ROUNDING_FACTOR = 4.0
# A relative error of the effective rank above this sends a matrix to the SVD.
_EFFECTIVE_RANK_RTOL = 1e-6
# Sums of squares that tie with an energy level up to this reach it (equal singular values do).
_ENERGY_TIE = 1e-12
# Squares of entries outside this range could under- or overflow.
_SAFE_RANGE = (1e-100, 1e100)


@dataclass(frozen=True, eq=False)
class SpectrumRanks:
    """Ranks and norms of a batch of matrices, each field shaped as the batch.

    Attributes:
        threshold: the relative threshold that `threshold_rank` was counted at.
        spectra: singular values in descending order, along the last axis.
        threshold_rank: #{i : s_i > threshold ||W||_F}.
        stable_rank: ||W||_F^2 / s_1^2.
        effective_rank: exp(entropy of s / sum(s)) (Roy and Vetterli, 2007).
        spectral_norm: s_1.
        frobenius_norm: ||W||_F.
        energy_ranks: for each energy level q, the least r with s_1^2 + ... + s_r^2 >= q ||W||_F^2.
        from_svd: whether the spectrum came from an SVD and not from a Gram matrix; None where the
            spectra were given.
    """

    threshold: float
    spectra: Float64[Tensor, "*batch values"]
    threshold_rank: Int64[Tensor, "*batch"]
    stable_rank: Float64[Tensor, "*batch"]
    effective_rank: Float64[Tensor, "*batch"]
    spectral_norm: Float64[Tensor, "*batch"]
    frobenius_norm: Float64[Tensor, "*batch"]
    energy_ranks: dict[float, Int64[Tensor, "*batch"]]
    from_svd: Bool[Tensor, "*batch"] | None = None

    def __repr__(self) -> str:
        count = self.spectral_norm.numel()
        mean = self.threshold_rank.double().mean().item()
        return (
            f"Ranks of {count} {'spectrum' if count == 1 else 'spectra'} of length "
            f"{self.spectra.shape[-1]}: {mean:.4g} singular values above "
            f"{self.threshold:g} of the Frobenius norm on average."
        )


def matrix_spectrum(
    matrices: Shaped[Tensor, "*batch rows cols"], *, exact: bool = False
) -> Float64[Tensor, "*batch values"]:
    """Singular values in descending order, in float64, min(rows, cols) of them per matrix.

    By default they are square roots of eigenvalues of the Gram matrix of the short side. The
    error of s^2 is a few rounding errors of s_1^2, so s is good to about 1e-6 relative down to
    s_1 / 10^4 and meaningless below s_1 / 10^7. `exact=True` runs an SVD in float64.
    Memory beyond the result is bounded: large batches and long matrices are taken in pieces.

    Raises:
        ValueError: if the matrices are empty, not numbers of two or more dimensions, or hold
            infinities or NaN.
    """
    flat = _as_batch(matrices)
    return _spectrum(flat, exact=exact).reshape(*matrices.shape[:-2], -1)


def spectrum_ranks(
    spectra: Float[Tensor, "*batch values"],
    threshold: float = 1e-3,
    *,
    energies: Sequence[float] = (0.9, 0.99),
) -> SpectrumRanks:
    """The ranks that given singular values amount to; a zero spectrum has every rank zero.

    Args:
        spectra: singular values, in descending order along the last axis.
        threshold: relative to the Frobenius norm.
        energies: levels q in (0, 1) of the squared Frobenius norm.

    Raises:
        ValueError: if the values are not finite, non-negative and descending, the threshold is
            negative or not finite, or an energy is not strictly between 0 and 1.
    """
    _check_levels(threshold, energies)
    values = spectra.detach().to(torch.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(
            f"spectra needs at least one value per spectrum, got {tuple(spectra.shape)}"
        )
    if not torch.isfinite(values).all() or (values < 0).any() or (values.diff(dim=-1) > 0).any():
        raise ValueError("spectra must be finite, non-negative and in descending order")
    return _ranks(values, threshold, energies)


def matrix_ranks(
    matrices: Shaped[Tensor, "*batch rows cols"],
    threshold: float = 1e-3,
    *,
    energies: Sequence[float] = (0.9, 0.99),
    exact: bool = False,
) -> SpectrumRanks:
    """Ranks and norms of a batch of matrices of one shape, such as one layer of E networks.

    Integer ranks are those that a float64 SVD gives: a matrix goes to the SVD where the rounding
    of its Gram matrix reaches across the threshold or an energy level, or where it could move the
    effective rank by more than one part in a million (as it does for a rank-deficient matrix).

    Args:
        matrices: any real or complex dtype, any device.
        threshold: relative to the Frobenius norm.
        energies: levels q in (0, 1) of the squared Frobenius norm.
        exact: run the SVD on every matrix.

    Raises:
        ValueError: as in `matrix_spectrum` and `spectrum_ranks`.
    """
    _check_levels(threshold, energies)
    flat = _as_batch(matrices)

    def compute(chosen: Tensor | None, svd: bool) -> Tensor:
        return _spectrum(flat if chosen is None else flat[chosen], exact=svd)

    length = max(matrices.shape[-2:])
    result = ranks_with_fallback(compute, length, threshold, energies=energies, exact=exact)
    return _reshape(result, matrices.shape[:-2])


def ranks_with_fallback(
    compute: Callable[[Tensor | None, bool], Float64[Tensor, "batch values"]],
    length: int,
    threshold: float,
    *,
    energies: Sequence[float],
    exact: bool,
) -> SpectrumRanks:
    """Ranks from `compute(None, False)`, with `compute(undecided, True)` where rounding matters.

    `compute` takes a mask over the batch (None for all of it) and whether to use the SVD;
    `length` is that of the sums in the Gram matrix.
    """
    spectra = compute(None, exact)
    if exact:
        from_svd = torch.ones(spectra.shape[:-1], dtype=torch.bool, device=spectra.device)
    else:
        from_svd = _undecided(spectra, length, threshold, energies)
        if from_svd.any():
            spectra[from_svd] = compute(from_svd, True)
    return _ranks(spectra, threshold, energies, from_svd)


def _check_levels(threshold: float, energies: Sequence[float]) -> None:
    if not 0 <= threshold < float("inf"):
        raise ValueError(f"threshold must be a finite number >= 0, such as 1e-3, got {threshold}")
    if isinstance(energies, float):
        raise TypeError(f"energies must be a sequence, such as (0.9, 0.99), got {energies!r}")
    for energy in energies:
        if not 0 < energy < 1:
            raise ValueError(f"energies must lie strictly between 0 and 1, got {energy}")


def _as_batch(matrices: Tensor) -> Tensor:
    """`matrices` as [batch, short, long], checked; a view wherever its strides allow."""
    if matrices.ndim < 2 or not (matrices.is_floating_point() or matrices.is_complex()):
        raise ValueError(
            "matrices must be a floating-point or complex tensor [..., rows, cols], "
            f"got {matrices.dtype} of shape {tuple(matrices.shape)}"
        )
    if matrices.numel() == 0:
        raise ValueError(f"matrices must not be empty, got shape {tuple(matrices.shape)}")
    if matrices.device.type == "mps":  # it has no float64
        matrices = matrices.cpu()
    flat = matrices.detach().reshape(-1, *matrices.shape[-2:])
    return flat if flat.shape[-2] <= flat.shape[-1] else flat.mT


def _spectrum(flat: Shaped[Tensor, "batch short long"], *, exact: bool) -> Tensor:
    batch, short, long = flat.shape
    double = torch.complex128 if flat.is_complex() else torch.float64
    values = torch.empty(batch, short, dtype=torch.float64, device=flat.device)
    step = max(1, _WORKSPACE_BYTES // (short * long * double.itemsize))
    for start in range(0, batch, step):
        piece = flat[start : start + step]
        scale = _largest_entry(piece)
        if not torch.isfinite(scale).all():
            bad = start + int((~torch.isfinite(scale)).nonzero()[0])
            raise ValueError(f"matrix {bad} of the batch holds infinities or NaN")
        if exact:
            values[start : start + step] = torch.linalg.svdvals(piece.mT.to(double))
            continue
        low, high = _SAFE_RANGE
        safe = ((scale > low) & (scale < high)) | (scale == 0)
        scale = torch.where(safe, torch.ones_like(scale), scale)
        if not safe.all():
            piece = piece.to(double) / scale[:, None, None]
        squares = torch.linalg.eigvalsh(_gram(piece, double)).flip(-1)
        values[start : start + step] = squares.clamp(min=0).sqrt() * scale[:, None]
    return values


def _largest_entry(piece: Shaped[Tensor, "batch short long"]) -> Float64[Tensor, " batch"]:
    """The largest modulus in each matrix; NaN or infinite where an entry is."""
    if piece.is_complex():
        return piece.abs().amax((-2, -1)).to(torch.float64)
    # Two reductions without a copy of the moduli.
    return torch.maximum(piece.amax((-2, -1)), -piece.amin((-2, -1))).to(torch.float64)


def _gram(piece: Shaped[Tensor, "batch short long"], double: torch.dtype) -> Tensor:
    """The lower triangle, which is all that `eigvalsh` reads, of piece times its adjoint."""
    batch, short, long = piece.shape
    gram = torch.zeros(batch, short, short, dtype=double, device=piece.device)
    for left in range(0, long, _GRAM_DEPTH):
        columns = piece[:, :, left : left + _GRAM_DEPTH].to(double)
        for top in range(0, short, _GRAM_BLOCK):
            bottom = min(top + _GRAM_BLOCK, short)
            gram[:, top:bottom, :bottom].baddbmm_(columns[:, top:bottom], columns[:, :bottom].mH)
    return gram


def _undecided(
    spectra: Float64[Tensor, "batch values"],
    length: int,
    threshold: float,
    energies: Sequence[float],
) -> Bool[Tensor, " batch"]:
    """Where an error of `_ROUNDING_FACTOR` n eps s_1^2 in each s_i^2 could move a reported rank."""
    count = spectra.shape[-1]
    largest = spectra[..., :1]
    scaled = torch.where(largest > 0, spectra / largest, spectra)
    squares = scaled.square()
    total = squares.sum(-1, keepdim=True)
    error = _ROUNDING_FACTOR * length * torch.finfo(torch.float64).eps

    near_threshold = (squares - threshold**2 * total).abs() <= error * (1 + threshold**2 * count)
    undecided = near_threshold.any(-1)

    sums = squares.cumsum(-1)
    position = torch.arange(1, count + 1, dtype=torch.float64, device=spectra.device)
    for energy in energies:
        near_energy = (sums - energy * total).abs() <= error * (position + energy * count)
        undecided |= near_energy.any(-1)

    # |d entropy| <= sum |dp_i| (|log p_i| + entropy); dp_i from d(s^2) = 2 s ds.
    sum_of_values = scaled.sum(-1, keepdim=True)
    value_errors = error / (scaled + error**0.5)
    shares = (scaled + error**0.5) / sum_of_values
    entropy = torch.special.entr(scaled / sum_of_values).sum(-1)
    slopes = shares.log().abs() + entropy[..., None]
    effective_error = (value_errors / sum_of_values * slopes).sum(-1)
    undecided |= effective_error > _EFFECTIVE_RANK_RTOL
    return undecided & (largest[..., 0] > 0)


def _ranks(
    spectra: Float64[Tensor, "*batch values"],
    threshold: float,
    energies: Sequence[float],
    from_svd: Bool[Tensor, "*batch"] | None = None,
) -> SpectrumRanks:
    largest = spectra[..., 0]
    nonzero = largest > 0
    # Relative to s_1, so that squares neither under- nor overflow.
    scaled = spectra / torch.where(nonzero, largest, torch.ones_like(largest))[..., None]
    squares = scaled.square()
    sums = squares.cumsum(-1)
    total = squares.sum(-1)
    norm = total.sqrt()
    shares = scaled / torch.where(nonzero, scaled.sum(-1), torch.ones_like(largest))[..., None]
    entropy = torch.special.entr(shares).sum(-1)
    return SpectrumRanks(
        threshold=threshold,
        spectra=spectra,
        threshold_rank=(scaled > threshold * norm[..., None]).sum(-1),
        stable_rank=total,
        effective_rank=torch.where(nonzero, entropy.exp(), torch.zeros_like(entropy)),
        spectral_norm=largest,
        frobenius_norm=norm * largest,
        energy_ranks={
            energy: torch.where(
                nonzero,
                1 + (sums < (1 - _ENERGY_TIE) * energy * total[..., None]).sum(-1),
                torch.zeros_like(nonzero, dtype=torch.int64),
            )
            for energy in energies
        },
        from_svd=from_svd,
    )


def _reshape(ranks: SpectrumRanks, batch: torch.Size) -> SpectrumRanks:
    return SpectrumRanks(
        threshold=ranks.threshold,
        spectra=ranks.spectra.reshape(*batch, -1),
        threshold_rank=ranks.threshold_rank.reshape(batch),
        stable_rank=ranks.stable_rank.reshape(batch),
        effective_rank=ranks.effective_rank.reshape(batch),
        spectral_norm=ranks.spectral_norm.reshape(batch),
        frobenius_norm=ranks.frobenius_norm.reshape(batch),
        energy_ranks={q: r.reshape(batch) for q, r in ranks.energy_ranks.items()},
        from_svd=None if ranks.from_svd is None else ranks.from_svd.reshape(batch),
    )
