"""Laws of the evidence that masks of blocks collect."""

from __future__ import annotations

import math

import numpy as np
import pytest

from undertow import predict

SHAPE = (6, 8)


def drawn(count: int, seed: int = 0) -> np.ndarray:
    """Correlated normal attributions with a mean."""
    random = np.random.default_rng(seed)
    pixels = math.prod(SHAPE)
    mixing = random.normal(size=(pixels, pixels)) / math.sqrt(pixels) + np.eye(pixels)
    values = random.normal(size=(count, pixels)) @ mixing + 0.3 * random.normal(size=pixels)
    return values.reshape(count, *SHAPE)


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(0), np.cov(values.reshape(len(values), -1).T).reshape(SHAPE * 2)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 20])
def test_of_normal_attributions_it_is_the_mean_of_the_best_masks(side: int) -> None:
    values = drawn(20_000)
    blocks = [
        values[:, row : row + side, column : column + side].sum((1, 2))
        for row in range(0, SHAPE[0], side)
        for column in range(0, SHAPE[1], side)
    ]
    best = sum(block.clip(0).mean() for block in blocks)
    assert predict.block_evidence(*moments(values), side) == pytest.approx(best, rel=0.01)


def test_of_white_attributions_it_falls_as_one_over_the_side() -> None:
    mean, covariance = np.zeros((8, 8)), np.eye(64).reshape(8, 8, 8, 8)
    found = [predict.block_evidence(mean, covariance, side) for side in (1, 2, 4, 8)]
    expected = [64 / math.sqrt(2 * math.pi) / side for side in (1, 2, 4, 8)]
    assert found == pytest.approx(expected)


def test_for_and_against_differ_by_the_sum_of_the_mean() -> None:
    mean, covariance = moments(drawn(200))
    for side in (1, 2, 4):
        pro = predict.block_evidence(mean, covariance, side)
        contra = predict.block_evidence(-mean, covariance, side)
        assert pro - contra == pytest.approx(mean.sum())


def test_without_variance_it_is_the_positive_blocks() -> None:
    mean = np.array([[1.0, -2.0], [3.0, 0.0]])
    assert predict.block_evidence(mean, np.zeros((2, 2, 2, 2)), 1) == 4.0
    assert predict.block_evidence(mean, np.zeros((2, 2, 2, 2)), 2) == 2.0


def test_what_is_no_covariance_is_refused() -> None:
    mean = np.zeros((2, 2))
    with pytest.raises(ValueError, match="covariance must be of the shape of mean twice"):
        predict.block_evidence(mean, np.eye(4), 1)
    with pytest.raises(ValueError, match="covariance must be of the shape of mean twice"):
        predict.block_evidence(np.zeros(4), np.eye(4), 1)
    with pytest.raises(ValueError, match="variance is at least 0"):
        predict.block_evidence(mean, -np.eye(4).reshape(2, 2, 2, 2), 1)
    with pytest.raises(ValueError, match="variance is at least 0"):
        predict.block_evidence(mean * math.nan, np.eye(4).reshape(2, 2, 2, 2), 1)
    with pytest.raises(ValueError, match="side must be at least 1"):
        predict.block_evidence(mean, np.eye(4).reshape(2, 2, 2, 2), 0)
