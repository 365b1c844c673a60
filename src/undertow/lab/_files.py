"""Files that are whole or not there: written under a temporary name, flushed, then renamed.

What is read may be anything: a folder or a pipe under a file's name is told from a file, without
waiting for whoever might write into it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_LONGEST_NAME = 60  # of a target in its temporary name, which a file system may cut at 255 bytes
_LEFTOVER = re.compile(r"\.(.+\.(?:parquet|json|html|svg|png))\.[0-9a-f]{4,8}\.tmp")
_IN_USE_SECONDS = 3600.0
_FLUSHES_AT_ONCE = 16
# The system's trouble rather than the file's.
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


class StoreError(OSError):
    """A folder that cannot be used as a store, or a file that could not be written."""

    @property
    def read_only(self) -> bool:
        """Whether the folder may not be written, rather than being full or broken."""
        return self.errno in READ_ONLY


class Unreadable(Exception):
    """What is under a file's name cannot be taken for its content; the message says why."""


def read_file(path: str | Path, *, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes.

    Raises:
        FileNotFoundError: there is nothing.
        Unreadable: it is a folder, a pipe, a device, too large, or may not be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
        with open(descriptor, "rb", buffering=0) as file:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and found.st_size <= limit:
                return file.readall()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(*error.args) from error
    except IsADirectoryError as error:
        raise Unreadable("is a folder") from error
    except OSError as error:
        if error.errno in _SHORTAGES:
            raise
        raise Unreadable(f"cannot be read ({error.strerror or error})") from error
    raise Unreadable("is too large" if stat.S_ISREG(found.st_mode) else "is not a file")


def write_atomically(path: Path, content: bytes, *, flush: bool = True) -> None:
    """Write `content` to `path`, so that whoever looks sees the old file or all of the new one.

    A device or a pipe, such as /dev/stdout, is written into. Without `flush` this holds when the
    process dies, not when the power fails before `flush_files`.

    Raises:
        StoreError: the disk is full or the folder cannot be written; nothing half-written remains.
    """
    mark = f"{path.name[:_LONGEST_NAME]}.{secrets.token_hex(4)}"
    temporary = path.with_name(f".{mark}.tmp")
    try:
        if _is_stream(path):
            path.write_bytes(content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _explained(path, error) from error
        raise


def flush_files(paths: Sequence[Path]) -> None:
    """See that files are on the disk. Many at once wait for it about as long as one.

    Raises:
        StoreError: the disk is full or broken.
    """
    with ThreadPoolExecutor(_FLUSHES_AT_ONCE) as pool:
        for _ in pool.map(_flush, paths):
            pass


def _flush(path: Path) -> None:
    mode = "r+b" if os.name == "nt" else "rb"  # Windows flushes only what may be written
    try:
        with open(path, mode) as file:
            os.fsync(file.fileno())
    except FileNotFoundError:  # moved away meanwhile
        return
    except OSError as error:
        raise _explained(path, error) from error


def _is_stream(path: Path) -> bool:
    if any(path.absolute().is_relative_to(root) for root in ("/dev", "/proc")):
        return not path.absolute().is_relative_to("/dev/shm")
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _explained(path: Path, error: OSError) -> StoreError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        reason = "the disk is full (or over its quota); free some space"
    elif path.is_dir():
        reason = f"{path} is a folder; move it away"
    else:
        reason = f"{error.strerror or error}; see that {path.parent} is a folder you may write to"
    explained = StoreError(
        f"could not write {path.name}: {reason}, then run the same command again"
    )
    explained.errno = error.errno
    return explained


def clear_leftovers(folder: Path, ours: Container[str] | None = None) -> None:
    """Remove what killed processes left half-written in a folder, not in the folders in it.

    Args:
        folder: where to look.
        ours: the files that nobody else may be writing now, all by default; what was to become
            another file goes when it is an hour old.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _LEFTOVER.fullmatch(entry.name)
            if found is None or not entry.is_file(follow_symlinks=False):
                continue
            age = time.time() - entry.stat(follow_symlinks=False).st_mtime
            if ours is None or found[1] in ours or age > _IN_USE_SECONDS:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is what a killed process left half-written."""
    return _LEFTOVER.fullmatch(name) is not None


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
