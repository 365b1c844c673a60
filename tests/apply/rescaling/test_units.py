"""Batches as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from undertow import apply

CONFIG = {"optimizer": "sgd", "lr": 0.1, "batch_size": 512, "seq_length": 2048}


@pytest.mark.parametrize(
    ("written", "batch"),
    [
        (1024, 1024),
        (1024.0, 1024),
        ("1024", 1024),
        ("1_024", 1024),
        ("1,024", 1024),
        ("1e3", 1000),
        ("5e5", 500_000),
        ("0.5M", 500_000),
        ("2k", 2000),
        ("1Ki", 1024),
        ("1024 sequences", 1024),
        ("1024seq", 1024),
        ("1024 samples", 1024),
        ("2Mi tokens", 1024),
        ("4096000 tokens", 2000),
    ],
)
def test_a_batch_in_any_of_its_forms(written: Any, batch: int) -> None:
    assert apply.rescale(CONFIG, to_batch=written).to_batch == batch


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("many", "to_batch must be a number of samples"),
        ("1,5", "to_batch must be a number of samples"),
        ("5 apples", "to_batch must be a number of samples"),
        ("0", "to_batch must be at least 1"),
        (-4, "to_batch must be at least 1"),
        ("1.5", "to_batch must be a whole number"),
        (2.5, "to_batch must be a whole number"),
        (True, "to_batch must be a whole number"),
        (None, "to_batch must be a whole number"),
        (float("nan"), "to_batch must be a whole number"),
        ("5000 tokens", "no whole number of sequences of 2048; near it are 4096 and 6144"),
    ],
)
def test_what_is_no_batch_is_refused_by_its_name(written: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        apply.rescale(CONFIG, to_batch=written)


def test_two_batches_in_one_unit_need_no_length() -> None:
    bare = {"optimizer": "sgd", "lr": 0.1}
    found = apply.rescale(bare, from_batch="0.5M tokens", to_batch="2M tokens")
    assert found.groups[0].factor == 4
    with pytest.raises(ValueError, match="in one unit"):
        apply.rescale(bare, from_batch="512 sequences", to_batch="2M tokens")
