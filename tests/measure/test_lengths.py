"""Lengths and inner products against float64, also of vectors that float32 sums cannot hold."""

from __future__ import annotations

import pytest
import torch

from undertow.measure._lengths import inner, length, lengths


@pytest.mark.parametrize("size", [1, 2**16, 2**16 + 1, 2**23 + 5])
def test_long_vectors_lose_nothing(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    one = torch.randn(size, generator=generator)
    other = one + 0.5 * torch.randn(size, generator=generator)
    wide = one.double(), other.double()
    torch.testing.assert_close(inner(one, other), wide[0] @ wide[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(length(one), wide[0].norm(), rtol=1e-6, atol=0)
    both = torch.stack([one, other])
    torch.testing.assert_close(lengths(both), torch.stack(wide).norm(dim=1), rtol=1e-5, atol=0)
