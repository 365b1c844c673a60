"""The store keeps what it was given, whole or not at all, and says what is wrong in one line."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import socket
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from toy_study import Walk

from undertow import lab
from undertow.lab._records import encode_records, join_records
from undertow.lab._seal import check_parquet, sealed_json

ROWS = [
    {"step": 0, "loss": 0.5, "spectrum": [1.0, 0.25]},
    {"step": 1, "loss": 0.25, "spectrum": []},
]


@pytest.fixture
def store(tmp_path: Path) -> lab.Store:
    return lab.Store(tmp_path / "runs [1]")  # brackets, which polars would take for a pattern


def files(store: lab.Store) -> set[str]:
    return {
        path.relative_to(store.path).as_posix() for path in store.path.rglob("*") if path.is_file()
    }


def test_records_come_back_with_the_trials_fields(store: lab.Store) -> None:
    trial = Walk(3)
    store.write_records(trial, ROWS)
    frame = store.records()
    assert frame.columns == ["trial", "seed", "steps", "pause", "fate", "step", "loss", "spectrum"]
    assert frame["trial"].unique().to_list() == [lab.trial_hash(trial)]
    assert frame.select("step", "loss", "spectrum").to_dicts() == ROWS
    assert store.has(lab.trial_hash(trial))
    assert not store.has(lab.trial_hash(Walk(4)))


def test_schemas_that_differ_are_relaxed_and_the_order_is_fixed(store: lab.Store) -> None:
    store.write_records(Walk(1), [{"a": 1, "list": [], "only_here": "x"}])
    store.write_records(Walk(2), [{"a": 0.5, "list": [0.5]}])
    store.write_records(Walk(3), [{"a": None, "list": None}])
    store.write_records(Walk(4), [])
    frame = store.records()
    assert frame.schema["a"] == pl.Float64
    assert frame.schema["list"] == pl.List(pl.Float64)
    assert frame["trial"].to_list() == sorted(lab.trial_hash(Walk(seed)) for seed in (1, 2, 3))
    assert len(store.hashes()) == 4
    asked = [lab.trial_hash(Walk(seed)) for seed in (3, 4, 1)]
    assert store.records(asked)["seed"].to_list() == [3, 1]
    assert list(store.load(asked).trials) == asked  # the one without rows too


def test_records_are_plain_parquet_to_others(store: lab.Store) -> None:
    for seed in range(3):
        store.write_records(Walk(seed), ROWS)
    store.write_records(Walk(3), [{"spectrum": np.arange(5000) / 7}])  # large enough to compress
    ours = store.records([lab.trial_hash(Walk(seed)) for seed in range(3)])
    paths = [store.path / "trials" / f"{lab.trial_hash(Walk(seed))}.parquet" for seed in range(4)]
    theirs = pl.concat([pl.read_parquet(io.BytesIO(path.read_bytes())) for path in paths[:3]])
    assert_frame_equal(ours, theirs)
    assert pl.read_parquet(io.BytesIO(paths[3].read_bytes()))["spectrum"][0][7] == 1.0


@given(
    st.lists(
        st.lists(
            st.dictionaries(
                st.sampled_from("abc"),
                st.none() | st.integers(-9, 9) | st.floats(-9, 9),
                max_size=2,
            ),
            max_size=2,
        ),
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_read_together_is_read_one_by_one(rows: list[list[dict[str, Any]]], order: Any) -> None:
    """Whatever the schemas, in whatever order."""
    with tempfile.TemporaryDirectory() as folder:
        store = lab.Store(folder)
        for seed, own in enumerate(rows):
            store.write_records(Walk(seed), own)
        asked = list(store.hashes())
        order.shuffle(asked)
        with patch("undertow.lab._records._FILES_AT_ONCE", 2):
            together = store.records(asked)
        alone = join_records(frame for each in asked if (frame := store.read(each)) is not None)
        assert_frame_equal(together, alone, check_column_order=False)


def test_kinds_that_cannot_be_joined_are_named(store: lab.Store) -> None:
    store.write_records(Walk(1), [{"a": 0.5}])
    store.write_records(Walk(2), [{"a": [0.5]}])
    with pytest.raises(ValueError, match="different kinds in different trials"):
        store.records()


@given(
    st.lists(st.lists(st.integers(-9, 9) | st.floats(-9, 9), max_size=3), min_size=1, max_size=4)
)
def test_numbers_survive_whatever_their_mixture(values: list[list[float]]) -> None:
    """Left alone, polars would read [[1], [0.5]] as integers and cut the half."""
    rows = [{"x": value} for value in values]
    content = encode_records("identity", Walk(0), rows)
    assert pl.read_parquet(content)["x"].to_list() == values
    check_parquet(content, "identity")


def test_arrays_and_numpy_scalars_are_taken(store: lab.Store) -> None:
    store.write_records(Walk(0), [{"x": np.float32(0.5), "n": np.int64(3), "s": np.eye(2)}])
    assert store.records().select("x", "n", "s").row(0) == (0.5, 3, [[1.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"x": {"nested": 1}}], "'x'"),
        ([{"x": 1}, {"x": "a"}], "'x'.*int, str"),
        ([{"seed": 1}], "'seed' is already a column"),
        ([3], "record 0"),
    ],
)
def test_records_that_are_not_tidy_are_refused(store: lab.Store, rows: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        store.write_records(Walk(0), rows)
    assert store.hashes() == ()


def test_a_file_that_would_not_be_read_is_not_written(
    store: lab.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("undertow.lab._records.LARGEST", 2**12)
    with pytest.raises(ValueError, match="more than a trial's file may hold"):
        store.write_records(Walk(0), [{"x": np.arange(1000) / 7}])


def test_a_failure_is_kept_until_the_trial_succeeds(store: lab.Store) -> None:
    store.write_failure(
        lab.Failure(
            lab.trial_hash(Walk(5)), {"seed": 5}, "RuntimeError", "lost", traceback="line 1"
        )
    )
    (failure,) = store.failures()
    assert (failure.trial, failure.error, failure.message) == (
        lab.trial_hash(Walk(5)), "RuntimeError", "lost",
    )  # fmt: skip
    assert failure.fields["seed"] == 5
    assert "seed=5" in repr(failure)
    store.write_records(Walk(5), ROWS)
    assert store.failures() == ()


@pytest.mark.parametrize("broken", ["fsync", "replace", "write"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_write_that_fails_leaves_nothing_half_written(
    store: lab.Store, monkeypatch: pytest.MonkeyPatch, broken: str, code: int
) -> None:
    store.write_records(Walk(1), ROWS)
    before = files(store)

    def fails(*arguments: Any, **keywords: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        if broken == "write":
            patched.setattr("builtins.open", lambda *a, **k: FullFile(open_really(*a, **k), fails))
        else:
            patched.setattr(os, broken, fails)
        expected = "disk is full.*run the same command" if code == errno.ENOSPC else "may write"
        with pytest.raises(lab.StoreError, match=expected) as raised:
            store.write_records(Walk(2), ROWS)
    assert isinstance(raised.value, OSError)
    assert raised.value.errno == code
    assert files(store) == before
    assert store.records()["seed"].unique().to_list() == [1]


open_really = open


class FullFile:
    """A file whose writes fail."""

    def __init__(self, file: Any, fails: Any) -> None:
        self.file, self.write = file, fails

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def test_a_newer_store_says_upgrade(store: lab.Store) -> None:
    config = {"format": 99, "study": None, "config": {}}
    (store.path / "config.json").write_bytes(sealed_json(config, "config.json"))
    with pytest.raises(lab.StoreError, match="upgrade"):
        lab.Store(store.path)


def test_other_folders_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(lab.StoreError, match="not an Undertow store"):
        lab.Store(tmp_path)
    with pytest.raises(lab.StoreError, match="is a file"):
        lab.Store(tmp_path / "thesis.txt")
    with pytest.raises(lab.StoreError, match="not an Undertow store"):
        lab.Store(tmp_path / "nowhere", create=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_store_holds_one_study_with_any_knobs(store: lab.Store) -> None:
    store.begin("low-rank", {"width": 64})
    store.begin("low-rank", {"width": 128, "bound": math.inf})
    assert lab.Store(store.path).config == {
        "format": 1, "study": "low-rank", "config": {"width": 128, "bound": "Infinity"},
    }  # fmt: skip
    with pytest.raises(lab.StoreError, match="'low-rank', not 'janus'"):
        store.begin("janus", {})


def test_environment_names_versions_and_no_machine(store: lab.Store) -> None:
    assert store.environment == {}
    store.begin("low-rank", {})
    environment = store.environment
    assert set(environment) == {"python", "platform", "cpu_count", "versions"}
    assert {"torch", "polars"} <= environment["versions"].keys()
    path = store.path / "environment.json"
    assert socket.gethostname() not in path.read_text().split()
    path.write_bytes(sealed_json({**environment, "python": "3.0"}, "environment.json"))
    for _ in range(2):
        store.begin("low-rank", {})
        again = store.environment
        assert [earlier["python"] for earlier in again["earlier"]] == ["3.0"]
        assert again["python"] == environment["python"]


def test_nothing_is_written_where_nothing_is_new(store: lab.Store) -> None:
    store.begin("low-rank", {"bound": math.inf, "widths": (8, 16)})
    before = {path: path.stat().st_mtime_ns for path in store.path.iterdir()}
    again = lab.Store(store.path)
    again.begin("low-rank", {"bound": math.inf, "widths": (8, 16)}, computing=False)
    assert {path: path.stat().st_mtime_ns for path in store.path.iterdir()} == before


def test_one_run_at_a_time_and_leftovers_are_cleared(store: lab.Store) -> None:
    pytest.importorskip("fcntl")
    store.write_records(Walk(1), ROWS)
    leftover = store.path / "trials" / ".abc.parquet.0123abcd.tmp"
    leftover.write_bytes(b"half")
    foreign = [store.path / "trials" / ".notes.tmp", store.path / ".x.parquet.0123abcd.tmp.tmp"]
    in_use = store.path / ".report.html.0123abcd.tmp"  # of a report that is being made
    for path in (*foreign, in_use):
        path.write_bytes(b"somebody's")
    (store.path / "trials" / ".folder.parquet.0123abcd.tmp").mkdir()
    assert store.records()["seed"].unique().to_list() == [1]
    with store.exclusive():
        assert not leftover.exists()
        assert all(path.exists() for path in (*foreign, in_use))
        with pytest.raises(lab.StoreError, match="another process"), store.exclusive():
            pass
    with store.exclusive():
        pass


def test_callers_files_stay_inside_and_apart(store: lab.Store) -> None:
    store.write_json("verdict.json", {"value": math.nan, "interval": (-math.inf, 1.5)})
    verdict = {"value": "NaN", "interval": ["-Infinity", 1.5]}
    assert store.read_json("verdict.json") == verdict
    written = json.loads((store.path / "verdict.json").read_text())
    assert written == {**verdict, "digest": written["digest"]}
    assert store.read_json("nothing.json") is None
    with pytest.raises(ValueError, match="'digest'"):
        store.write_json("verdict.json", {"digest": 1})
    assert store.write_text("figures/rank.svg", "<svg/>").read_text() == "<svg/>"
    for name in ("../x", "/x", "", "config.json", "trials/x.parquet"):
        with pytest.raises(ValueError, match="name"):
            store.write_text(name, "x")
