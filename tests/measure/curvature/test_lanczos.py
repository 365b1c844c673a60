"""Lanczos runs with long vectors: true pairs from a basis that is only nearly orthogonal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from undertow.measure.curvature import _krylov, _lanczos
from undertow.measure.curvature._krylov import Operator, RitzBasis
from undertow.measure.curvature._lanczos import RitzPairs, largest_pairs
from undertow.measure.curvature._orthogonality import Orthogonality

SIZE = _lanczos._FORESEEN + 7


def spectrum(*largest: float, rest: float = 1.0) -> Tensor:
    """Eigenvalues of a diagonal matrix; the rest evenly between -rest / 4 and rest."""
    bulk = torch.linspace(-rest / 4, rest, SIZE - len(largest), dtype=torch.float64)
    return torch.cat([torch.tensor(largest, dtype=torch.float64), bulk])


def diagonal(values: Tensor, dtype: torch.dtype = torch.float32) -> Operator:
    entries = values.to(dtype)
    return Operator(lambda vectors: vectors * entries, len(values), entries[None])


def pairs_of(operator: Operator, k: int, rtol: float = 1e-3) -> RitzPairs:
    generator = torch.Generator().manual_seed(0)
    return largest_pairs(operator, k, rtol=rtol, start=None, max_products=400, generator=generator)


def check(found: RitzPairs, values: Tensor, rtol: float) -> None:
    k = len(found.values)
    expected = values.sort(descending=True).values[:k]
    assert found.converged
    # Errors of eigenvalues are quadratic in the residual where they are apart.
    torch.testing.assert_close(found.values, expected, rtol=10 * rtol**2 + 1e-6, atol=0)
    gram = found.vectors @ found.vectors.T
    torch.testing.assert_close(gram, torch.eye(k).to(gram), rtol=0, atol=1e-5)
    images = found.vectors.double() * values
    true = (images - found.values[:, None] * found.vectors.double()).norm(dim=1)
    torch.testing.assert_close(found.residuals, true, rtol=0.1, atol=1e-6 * float(expected[0]))
    rounding = 100 * torch.finfo(found.vectors.dtype).eps
    assert (true <= rtol * expected + rounding * expected[0]).all()


OUTLIERS = (40.0, 21.0, 20.0, 9.0, 4.0, 3.0)


@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("k", [1, 5])
def test_pairs_are_true(k: int, rtol: float) -> None:
    values = spectrum(*OUTLIERS)
    check(pairs_of(diagonal(values), k, rtol), values, rtol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_take_as_many_products_as_with_full_orthogonalisation(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = diagonal(spectrum(2.0, 1.8, 1.6, 1.5, 1.4, rest=1.3), dtype)
    reads = 0
    plain = RitzBasis._orthogonalize

    def count(space: RitzBasis, outside: Tensor, column: Tensor) -> None:
        nonlocal reads
        reads += 1
        plain(space, outside, column)

    monkeypatch.setattr(RitzBasis, "_orthogonalize", count)
    foreseen, few = pairs_of(operator, 5), reads
    monkeypatch.setattr(_lanczos, "_FORESEEN", 2 * SIZE)
    reads = 0
    full, many = pairs_of(operator, 5), reads
    assert abs(foreseen.products - full.products) <= 1
    torch.testing.assert_close(foreseen.values, full.values, rtol=1e-6, atol=0)
    assert few < 0.75 * many


def test_clustered_eigenvalues_beyond_a_restart() -> None:
    values = spectrum(2.8, 2.78, 2.75, 2.72, 2.7, rest=2.6)
    found = pairs_of(diagonal(values), 4)
    assert found.products > 40  # more than the basis holds
    check(found, values, 1e-3)


@pytest.mark.parametrize("copies", [2, 3])
def test_multiple_eigenvalues_are_counted(copies: int) -> None:
    values = spectrum(*[30.0] * copies, 12.0, *[10.0] * copies)
    check(pairs_of(diagonal(values), 5), values, 1e-3)


@pytest.mark.parametrize("noise", [0.0, 1e-5])
@pytest.mark.parametrize("allowed", [3e-4, 1e-5])
def test_inner_products_stay_as_small_as_foreseen(allowed: float, noise: float) -> None:
    """Also where products are less exact than numbers."""
    entries = spectrum(*OUTLIERS).float()
    perturbation = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))

    def multiply(vectors: Tensor) -> Tensor:
        shift = noise * 40 * vectors.norm(dim=1, keepdim=True) * perturbation.roll(len(calls))
        calls.append(1)
        return vectors * entries + shift / perturbation.norm()

    calls: list[int] = []
    operator = Operator(multiply, SIZE, entries[None])
    space = RitzBasis(operator, 60, torch.Generator().manual_seed(0))
    watch = Orthogonality(allowed, torch.finfo(torch.float32).eps)
    space.append(space.orthonormal(operator.random(1, space.generator)[0]), watch)
    worst = 0.0
    while not space.full:
        space.append(space.lanczos_direction()[0], watch)
        gram = (space.basis @ space.basis.T).double() - torch.eye(space.size)
        worst = max(worst, float(gram.abs().max()))
    assert worst < 2 * max(allowed, 10 * noise)
    values = torch.linalg.eigvalsh(space.projected).flip(0)[:6]
    expected = torch.tensor(OUTLIERS, dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-5 + 10 * noise, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    k=st.integers(1, 6),
    double=st.booleans(),
)
def test_few_distinct_eigenvalues(seed: int, counts: list[int], k: int, double: bool) -> None:
    """Spaces become invariant again and again; nothing of what was computed is lost."""
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.linspace(1.0, -2.0, len(counts), dtype=torch.float64)
    values = distinct.repeat_interleave(torch.tensor(counts))
    size = len(values)
    draw = torch.randn(size, size, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(draw)[0]
    dtype = torch.float64 if double else torch.float32
    matrix = ((turn * values) @ turn.T).to(dtype)
    operator = Operator(lambda vectors: vectors @ matrix, size, matrix[:1])
    k = min(k, size)
    found = largest_pairs(operator, k, rtol=1e-4, start=None, max_products=400, generator=generator)
    assert found.converged
    assert found.products <= size + 6
    torch.testing.assert_close(found.values, values[:k], rtol=0, atol=1e-5)
    gram = found.vectors @ found.vectors.T
    torch.testing.assert_close(gram, torch.eye(k, dtype=dtype), rtol=0, atol=1e-5)
    images = found.vectors @ matrix - found.values[:, None].to(dtype) * found.vectors
    torch.testing.assert_close(found.residuals, images.double().norm(dim=1), rtol=0.5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    steps=st.lists(st.sampled_from(["append", "extend", "adopt", "restart"]), max_size=12),
)
def test_a_basis_knows_its_images_whatever_it_grew_by(seed: int, steps: list[str]) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    matrix = draw(30, 30)
    matrix = matrix + matrix.T
    operator = Operator(lambda vectors: vectors @ matrix, 30, matrix[:1])
    space = RitzBasis(operator, 20, generator)
    for step in ["append", *steps]:
        if step == "append" and not space.full:
            first = space.size == 0
            space.append(space.orthonormal(draw(30)) if first else space.lanczos_direction()[0])
        elif step == "extend":
            space.extend(draw(2, 30))
        elif step == "adopt":
            vectors = draw(2, 30)
            space.adopt(vectors, vectors @ matrix)
        elif step == "restart" and space.size > 3:
            space.restart(space.size // 2)
        identity = torch.eye(space.size, dtype=torch.float64)
        torch.testing.assert_close(space.basis @ space.basis.T, identity)
        projected = space.basis @ matrix @ space.basis.T
        torch.testing.assert_close(space.projected, projected, rtol=1e-9, atol=1e-9)
        values, coordinates = space.ritz()
        expected = coordinates @ space.basis @ matrix - values[:, None] * space.vectors(coordinates)
        found = space.residuals(values, coordinates)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_little_memory_takes_more_restarts_and_gives_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = spectrum(*OUTLIERS)
    plenty = pairs_of(diagonal(values), 3)
    monkeypatch.setattr(_krylov, "BASIS_BYTES", 10 * SIZE * 4)
    scarce = pairs_of(diagonal(values), 3)
    check(scarce, values, 1e-3)
    assert scarce.products < 2 * plenty.products


@pytest.mark.parametrize("rank", [0, 1, 3, 9])
def test_ranks_below_the_number_of_pairs(rank: int) -> None:
    """As of a Gauss-Newton matrix of few samples: the space is invariant from then on."""
    values = torch.zeros(SIZE, dtype=torch.float64)
    values[:rank] = torch.arange(rank, 0, -1)
    found = pairs_of(diagonal(values), 5)
    assert found.converged
    expected = values.sort(descending=True).values[:5]
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-4)
    gram = found.vectors @ found.vectors.T
    torch.testing.assert_close(gram, torch.eye(5), rtol=0, atol=1e-5)
    assert found.products <= rank + 16
