"""Random starts for products of factors."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
import torch

from undertow.train import balanced_factors, gaussian_factors


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_gaussian_factors_multiply_to_a_matrix_of_their_scale(depth: int) -> None:
    factors = gaussian_factors(300, 200, depth=depth, scale=1e-3, generator=seeded())
    assert [tuple(one.shape) for one in factors] == [(300, 200), *[(200, 200)] * (depth - 1)]
    product = reduce(torch.matmul, factors)
    assert product.dtype == torch.float64
    # Each factor keeps the norm of a vector, but for the root of the scale.
    assert float(product.norm() / 300**0.5) == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_balanced_factors_are_roots_of_one_positive_matrix(depth: int) -> None:
    first, *rest = balanced_factors(5, depth=depth, scale=1e-2, generator=seeded())
    assert all(torch.equal(first, one) for one in rest)
    assert torch.allclose(first, first.mT)
    assert float(torch.linalg.eigvalsh(first)[0]) > 0
    (whole,) = balanced_factors(5, depth=1, scale=1.0, generator=seeded())
    product = torch.linalg.matrix_power(first, depth)
    assert torch.allclose(product, 1e-2 * whole, rtol=1e-10, atol=0)


@pytest.mark.parametrize("draw", [balanced_factors, gaussian_factors])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 0, "scale": 1.0}, "depth must be at least 1, got 0"),
        ({"depth": 2, "scale": 0.0}, "scale must be a finite number above 0, got 0"),
    ],
)
def test_what_is_no_start_is_named(draw: Any, options: dict[str, Any], words: str) -> None:
    sizes = (3,) if draw is balanced_factors else (3, 2)
    with pytest.raises(ValueError, match=words):
        draw(*sizes, generator=seeded(), **options)
