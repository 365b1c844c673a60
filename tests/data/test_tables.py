"""Small tables as matrices."""

from __future__ import annotations

import pytest
import torch

from undertow import data


def test_columns_of_tumours_are_standardised() -> None:
    table = data.load_table("tumours")
    assert table.shape == (569, 30)
    assert table.dtype == torch.float64
    assert table.mean(0).abs().max() < 1e-12
    assert table.std(0).tolist() == pytest.approx([1.0] * 30)


def test_the_table_of_digits_holds_pixels_that_vary() -> None:
    table = data.load_table("digits")
    pixels = data.load("digits").train_inputs.flatten(1).double()
    assert len(table) == len(pixels)
    assert 30 < table.shape[1] < pixels.shape[1]
    kept = [any(torch.equal(column, own) for own in table.T) for column in pixels.T]
    spread = pixels.std(0)
    assert spread[kept].min() > spread[~torch.tensor(kept)].max()


def test_an_unknown_table_is_named() -> None:
    with pytest.raises(ValueError, match="name must be digits, tumours or garments, got 'wine'"):
        data.load_table("wine")
