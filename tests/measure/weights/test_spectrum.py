"""Laws of `matrix_spectrum`, `matrix_ranks` and `spectrum_ranks`."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from undertow.measure import matrix_ranks, matrix_spectrum, spectrum_ranks
from undertow.measure.weights import _spectrum

THRESHOLDS = (1e-6, 1e-3, 1e-2, 0.1)
ENERGIES = (0.5, 0.9, 0.99)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def orthogonal(seed: int, n: int) -> Tensor:
    return torch.linalg.qr(draw(seed, n, n)).Q


def with_spectrum(seed: int, values: Tensor, cols: int) -> Tensor:
    n = len(values)
    return orthogonal(seed, n) @ torch.diag(values) @ orthogonal(seed + 1, cols)[:n]


matrices = st.builds(
    lambda seed, rows, cols, rank, decay: (
        draw(seed, rows, min(rank, rows, cols))
        @ torch.diag(torch.logspace(0, -decay, min(rank, rows, cols), dtype=torch.float64))
        @ draw(seed + 1, min(rank, rows, cols), cols)
    ),
    st.integers(0, 10**6),
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(1, 24),
    st.floats(0, 8),
)


@settings(deadline=None, max_examples=60)
@given(matrices, st.sampled_from(THRESHOLDS))
def test_integer_ranks_are_those_of_the_svd(matrix: Tensor, threshold: float) -> None:
    found = matrix_ranks(matrix, threshold, energies=ENERGIES)
    values = torch.linalg.svdvals(matrix)
    squares = values.square()
    assert found.threshold_rank == (values > threshold * squares.sum().sqrt()).sum()
    for energy in ENERGIES:
        reached = squares.cumsum(0) >= energy * squares.sum()
        assert found.energy_ranks[energy] == 1 + int(reached.int().argmax())
    torch.testing.assert_close(found.stable_rank, squares.sum() / squares[0], rtol=1e-9, atol=0)
    shares = values / values.sum()
    effective = torch.exp(-torch.special.xlogy(shares, shares).sum())
    torch.testing.assert_close(found.effective_rank, effective, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=40)
@given(matrices)
def test_gram_values_agree_with_the_svd_down_to_a_ten_thousandth(matrix: Tensor) -> None:
    expected = torch.linalg.svdvals(matrix)
    large = expected > 1e-4 * expected[0]
    found = matrix_spectrum(matrix)
    torch.testing.assert_close(found[large], expected[large], rtol=1e-6, atol=0)
    assert (found.diff() <= 0).all()


@settings(deadline=None, max_examples=30)
@given(matrices, st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_ranks_are_invariant_to_rotations_transposition_and_scale(
    matrix: Tensor, seed: int, scale: float
) -> None:
    rows, cols = matrix.shape
    reference = matrix_ranks(matrix, 1e-2)
    turned = orthogonal(seed, rows) @ matrix @ orthogonal(seed + 1, cols)
    for other in (turned, matrix.mT, scale * matrix):
        found = matrix_ranks(other, 1e-2)
        torch.testing.assert_close(found.stable_rank, reference.stable_rank, rtol=1e-8, atol=0)
        torch.testing.assert_close(
            found.effective_rank, reference.effective_rank, rtol=1e-5, atol=0
        )
    torch.testing.assert_close(
        matrix_ranks(scale * matrix).frobenius_norm, scale * matrix.norm(), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("rank", [1, 3, 7, 12])
def test_product_of_thin_factors_has_their_rank(rank: int) -> None:
    found = matrix_ranks(draw(0, 40, rank) @ draw(1, rank, 12), 1e-9)
    assert found.threshold_rank == rank
    if rank < 12:  # a Gram matrix cannot tell 1e-9 from zero
        assert bool(found.from_svd)


def test_equal_singular_values_give_every_measure_the_dimension() -> None:
    found = matrix_ranks(3 * orthogonal(0, 10), energies=(0.5, 0.9))
    assert found.threshold_rank == 10
    assert found.stable_rank == pytest.approx(10)
    assert found.effective_rank == pytest.approx(10)
    assert found.energy_ranks == {0.5: 5, 0.9: 9}
    assert found.spectral_norm == pytest.approx(3)
    assert found.frobenius_norm == pytest.approx(3 * math.sqrt(10))


def test_zero_matrix_has_rank_zero_by_every_measure() -> None:
    found = matrix_ranks(torch.zeros(2, 5, 3))
    for value in (found.threshold_rank, found.stable_rank, found.effective_rank):
        assert value.tolist() == [0, 0]
    assert all(rank.tolist() == [0, 0] for rank in found.energy_ranks.values())
    assert found.spectra.tolist() == [[0] * 3] * 2


@pytest.mark.parametrize("offset", [-1e-15, 0.0, 1e-15])
def test_value_at_the_threshold_goes_to_the_svd(offset: float) -> None:
    values = torch.ones(20, dtype=torch.float64)
    values[-1] = 1e-3 * math.sqrt(19 / (1 - 1e-6)) * (1 + offset)
    found = matrix_ranks(torch.stack([with_spectrum(0, values, 30), draw(5, 20, 30)]))
    assert found.from_svd is not None
    assert found.from_svd.tolist() == [True, False]


def test_energy_level_at_a_partial_sum_goes_to_the_svd() -> None:
    values = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    at_the_level = matrix_ranks(with_spectrum(0, values, 8), energies=(4 / 6,))
    beside_it = matrix_ranks(with_spectrum(0, values, 8), energies=(0.6,))
    assert bool(at_the_level.from_svd) is True
    assert bool(beside_it.from_svd) is False
    assert at_the_level.energy_ranks[4 / 6] == 1


def test_exact_asks_for_the_svd() -> None:
    matrix = draw(0, 9, 6)
    torch.testing.assert_close(
        matrix_spectrum(matrix, exact=True), torch.linalg.svdvals(matrix), rtol=1e-14, atol=0
    )
    assert bool(matrix_ranks(matrix, exact=True).from_svd) is True


def test_batches_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = draw(3, 2, 3, 31, 17)
    whole = matrix_ranks(batch)
    monkeypatch.setattr(_spectrum, "_WORKSPACE_BYTES", 700)
    monkeypatch.setattr(_spectrum, "_GRAM_BLOCK", 5)
    monkeypatch.setattr(_spectrum, "_GRAM_DEPTH", 7)
    pieces = matrix_ranks(batch)
    assert whole.spectra.shape == (2, 3, 17)
    torch.testing.assert_close(pieces.spectra, whole.spectra, rtol=1e-12, atol=0)
    for i in range(2):
        for j in range(3):
            alone = matrix_ranks(batch[i, j])
            torch.testing.assert_close(alone.spectra, whole.spectra[i, j], rtol=1e-12, atol=0)
            assert alone.threshold_rank == whole.threshold_rank[i, j]


def test_spectra_alone_give_the_same_ranks_as_matrices() -> None:
    found = matrix_ranks(draw(0, 4, 10, 6))
    again = spectrum_ranks(found.spectra)
    assert torch.equal(again.threshold_rank, found.threshold_rank)
    assert torch.equal(again.effective_rank, found.effective_rank)
    assert again.from_svd is None
    assert "4 spectra of length 6" in repr(again)


@pytest.mark.parametrize("scale", [1e-250, 1e-160, 1e160, 1e250])
def test_extreme_scales_neither_underflow_nor_overflow(scale: float) -> None:
    matrix = draw(0, 6, 9)
    reference, found = matrix_ranks(matrix), matrix_ranks(scale * matrix)
    assert found.threshold_rank == reference.threshold_rank
    torch.testing.assert_close(found.stable_rank, reference.stable_rank)
    torch.testing.assert_close(found.spectral_norm / scale, reference.spectral_norm)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.complex128]
)
def test_other_dtypes_are_taken_as_the_numbers_they_hold(dtype: torch.dtype) -> None:
    matrix = draw(1, 7, 5).to(dtype)
    double = torch.complex128 if matrix.is_complex() else torch.float64
    expected = torch.linalg.svdvals(matrix.to(double))
    torch.testing.assert_close(matrix_spectrum(matrix), expected)


def test_gradients_do_not_follow() -> None:
    matrix = draw(0, 3, 3).requires_grad_()
    assert not matrix_spectrum(matrix).requires_grad


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.zeros(3), "rows, cols"),
        (torch.zeros(3, 3, dtype=torch.int64), "floating-point"),
        (torch.zeros(0, 3), "empty"),
        (torch.full((2, 2), math.nan), "infinities or NaN"),
        (torch.full((2, 2), math.inf), "infinities or NaN"),
    ],
)
def test_unusable_matrices_are_refused(matrix: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matrix_spectrum(matrix)


def test_unusable_levels_and_spectra_are_refused() -> None:
    matrix = torch.eye(2)
    with pytest.raises(ValueError, match="threshold"):
        matrix_ranks(matrix, -1.0)
    with pytest.raises(ValueError, match="threshold"):
        matrix_ranks(matrix, math.nan)
    with pytest.raises(ValueError, match="energies"):
        matrix_ranks(matrix, energies=(1.0,))
    with pytest.raises(ValueError, match="descending"):
        spectrum_ranks(torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="at least one"):
        spectrum_ranks(torch.zeros(3, 0))
