"""Files that are whole or not there: written under a temporary name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".tmp"


class StoreError(OSError):
    """A folder that cannot be used as a store, or a file that could not be written to it."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, so that whoever looks sees the old file or all of the new one.

    Raises:
        StoreError: the disk is full or the folder cannot be written; nothing half-written remains.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _explained(path, error) from error
        raise


def _explained(path: Path, error: OSError) -> StoreError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        reason = "the disk is full (or over its quota); free some space"
    else:
        reason = f"{error.strerror or error}; check that {path.parent} is a folder you may write to"
    explained = StoreError(
        f"could not write {path.name}: {reason}, then run the same command again: "
        "what was finished before is stored and will not be computed twice"
    )
    explained.errno = error.errno
    return explained


def json_bytes(value: Any) -> bytes:
    """`value` as standard JSON, indented.

    JSON has no NaN or infinity: they are written as the strings "NaN", "Infinity" and "-Infinity",
    which Python's `float` reads back.

    Raises:
        TypeError: a value that JSON cannot hold.
    """
    return (json.dumps(_standard(value), indent=2, allow_nan=False) + "\n").encode()


def _standard(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _standard(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(item) for item in value]
    return value
