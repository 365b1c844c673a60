"""The fluctuation of updates: none of a drift, and the size of noise."""

from __future__ import annotations

import pytest
import torch

from undertow.measure import update_fluctuation


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_drift_is_no_fluctuation() -> None:
    start, drift = draw(0, 2, 3, 4), draw(1, 2, 3, 4)
    path = torch.stack([start + time * drift for time in range(9)])
    assert update_fluctuation(path).max() < 1e-14


def test_it_is_the_size_of_the_noise_per_weight_in_each_run() -> None:
    start = torch.stack([torch.eye(20, dtype=torch.float64), 10 * torch.eye(20).double()])
    noise = 1e-3 * draw(2, 400, 2, 20, 20)
    path = torch.cat([start[None], start + (noise + 0.5).cumsum(0)])
    expected = torch.tensor([1e-3 * 20 / 20**0.5, 1e-4 * 20 / 20**0.5], dtype=torch.float64)
    torch.testing.assert_close(update_fluctuation(path), expected, rtol=0.02, atol=0)
    torch.testing.assert_close(update_fluctuation(path[:, 0]), update_fluctuation(path)[0])


def test_two_times_are_one_update_and_tell_nothing() -> None:
    with pytest.raises(ValueError, match=r"at least 3 times, got shape \(2, 3, 4\)"):
        update_fluctuation(draw(0, 2, 3, 4))
