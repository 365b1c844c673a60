"""Copies of a store with something wrong in them, and what is said about it."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polars.testing import assert_frame_equal

from undertow import lab


@dataclass
class Copy:
    """A copy of a store, and what standard error was told while it was used."""

    folder: Path
    errors: io.StringIO

    def said(self) -> str:
        """What was said so far."""
        return self.errors.getvalue()


def flip(content: bytes, bit: int) -> bytes:
    """The content with one bit flipped."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@contextlib.contextmanager
def flipped(sound: Path, path: Path, bit: int) -> Iterator[Copy]:
    """A copy of a store with one bit of one of its files flipped."""
    with (
        tempfile.TemporaryDirectory() as place,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        folder = Path(shutil.copytree(sound, Path(place) / "run"))
        damaged = folder / path.relative_to(sound)
        damaged.write_bytes(flip(damaged.read_bytes(), bit))
        yield Copy(folder, errors)


def same_records(found: lab.Results, expected: lab.Results) -> None:
    """Assert that two runs gave the same records, to the last bit."""
    assert found.missing == 0
    assert found.records.keys() == expected.records.keys()
    for name, frame in expected.records.items():
        assert_frame_equal(found.records[name], frame, check_exact=True)
