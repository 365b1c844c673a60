"""One run at a time in a folder: a lock that the system drops when its process ends, however."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from undertow.lab._damage import set_aside
from undertow.lab._files import READ_ONLY, StoreError

try:
    import fcntl
except ImportError:  # Windows, where two runs in one folder are not kept apart
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_CAREFULLY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@contextlib.contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the lock of a folder. One that cannot be written is not locked: nobody writes there.

    Nothing is written into the lock file, whatever other names it may have, and a link is not
    followed.

    Raises:
        StoreError: another process holds it.
    """
    descriptor = _locked(store)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _locked(store: Path) -> int | None:
    while (descriptor := _opened(store)) is not None:
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise StoreError(
                f"another process is running a study in {store}; wait for it or stop it"
            ) from error
        except OSError:  # a file system without locks
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(store / LOCK)):
                return descriptor
        os.close(descriptor)  # somebody deleted it meanwhile
    return None


def _opened(store: Path) -> int | None:
    path = store / LOCK
    if _is_stranger(path):
        set_aside(store, [path], "is not a file of ours", "a run holds a file of this name")
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        try:
            return os.open(path, flags | _CAREFULLY, 0o666)
        except FileNotFoundError:
            return None  # read-only, and without a lock file
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise StoreError(f"{path} cannot be opened ({error.strerror})") from error
    return None


def _is_stranger(path: Path) -> bool:
    try:
        return not stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False
