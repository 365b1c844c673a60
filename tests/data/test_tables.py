"""Small tables as matrices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from undertow import data
from undertow.data import _files


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


def test_the_table_of_garments_holds_as_many_images_as_it_says() -> None:
    here = [*_files.data_folders("fashion-mnist"), *_files._debian_folders()]
    if _files._first_with("train-images-idx3-ubyte", here) is None:
        pytest.skip("Fashion-MNIST is not on this machine")
    table = data.load_table("garments")
    pixels = data.load("fashion-mnist", train_size=3_000).train_inputs.flatten(1).double()
    assert table.dtype == torch.float64
    assert len(table) == 3_000
    assert 300 < table.shape[1] < 784
    assert table.shape[1] == int((pixels.std(0) > 0.3).sum())


def test_garments_that_are_not_here_are_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_files, "_debian_folders", list)
    monkeypatch.setattr(_files, "data_folders", lambda name: [])
    monkeypatch.setattr(_files, "_FASHION_MIRRORS", ("http://127.0.0.1:9/",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError) as raised:
        data.load_table("garments")
    message = str(raised.value)
    assert message.startswith("Fashion-MNIST is not on this machine")
    assert "apt-get install dataset-fashion-mnist" in message
    assert "\n" not in message


def test_a_draw_holds_rows_and_columns_of_the_table() -> None:
    table = data.load_table("tumours")
    drawn, again, other = (
        data.draw_table("tumours", 20, 10, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert drawn.shape == (20, 10)
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)
    whole = data.draw_table("tumours", 569, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole.flatten().sort().values, table.flatten().sort().values)


def test_a_draw_of_more_than_there_is_is_named() -> None:
    with pytest.raises(ValueError, match="tumours has at most \\(569, 30\\), got \\(40, 50\\)"):
        data.draw_table("tumours", 40, 50, generator=torch.Generator())


def test_an_unknown_table_is_named() -> None:
    with pytest.raises(ValueError, match="name must be digits, tumours or garments, got 'wine'"):
        data.load_table("wine")
