"""What is worked out of a frame once: as long as the frame lives, and for its arguments."""

from __future__ import annotations

import gc

import polars as pl

from undertow import lab


def test_a_function_of_a_frame_runs_once_for_each_frame_and_argument() -> None:
    calls: list[tuple[int, int]] = []

    @lab.once
    def grown(frame: pl.DataFrame, by: int, *, twice: bool = False) -> pl.DataFrame:
        calls.append((len(frame), by))
        return frame.with_columns(pl.col("x") + by * (1 + twice))

    one, two = pl.DataFrame({"x": [1]}), pl.DataFrame({"x": [1, 2]})
    assert grown(one, 1) is grown(one, 1)
    assert grown(two, 1)["x"].to_list() == [2, 3]
    assert grown(one, 2)["x"].to_list() == [3]
    assert grown(one, 2, twice=True)["x"].to_list() == [5]
    assert calls == [(1, 1), (2, 1), (1, 2), (1, 2)]
    assert grown.__name__ == "grown"


def test_a_frame_that_is_gone_is_forgotten() -> None:
    lengths = lab.once(len)
    for length in range(50):  # a new frame may be where an old one was
        frame = pl.DataFrame({"x": [0] * length})
        assert lengths(frame) == length
        del frame
        gc.collect()
