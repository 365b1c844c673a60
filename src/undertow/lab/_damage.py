"""What cannot be used in a store is moved out of the way, never deleted; a line names it."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from undertow.lab._cells import printable
from undertow.lab._progress import note

DAMAGED = "damaged"


def set_aside(store: Path, paths: Sequence[Path], why: str, then: str) -> None:
    """Move files (or what stands in their place) to the store's `damaged`, and say so in one line.

    Args:
        store: the folder.
        paths: what is moved, one at least; the line names the first and counts the others.
        why: what is wrong with it, such as "is empty".
        then: what follows from it.
    """
    problems = [problem for path in paths if (problem := _move(path, store / DAMAGED))]
    others = f" ({len(paths)} like it)" if len(paths) > 1 else ""
    where = f"moved to {store / DAMAGED}" if not problems else f"left there ({problems[0]})"
    note(printable(f"{paths[0]} {why}{others}: {where}; {then}"), shown=True)


def make_way(store: Path, path: Path) -> None:
    """Set aside what is no file at `path`, and no folder where a folder of it should be."""
    for folder in reversed(path.relative_to(store).parents[:-1]):
        if _kind(store / folder) not in (None, stat.S_IFDIR):
            _set_aside_stranger(store, store / folder, "is not a folder")
    if _kind(path, follow=False) not in (None, stat.S_IFREG, stat.S_IFLNK):
        _set_aside_stranger(store, path, "is not a file")


def _set_aside_stranger(store: Path, path: Path, why: str) -> None:
    set_aside(store, [path], why, "it was in the way")


def _kind(path: Path, *, follow: bool = True) -> int | None:
    """What is at a path, a link that leads nowhere too; None for nothing."""
    for followed in (follow, False):
        try:
            return stat.S_IFMT(os.stat(path, follow_symlinks=followed).st_mode)
        except OSError:
            continue
    return None


def _move(path: Path, folder: Path) -> str:
    """Rename into the folder; beside itself if that fails. Returns what went wrong, or nothing."""
    for place, name in ((folder, path.name), (path.parent, f"{path.name}.{DAMAGED}")):
        names = (name if number < 2 else f"{name}.{number}" for number in count(1))
        try:
            place.mkdir(parents=True, exist_ok=True)
            path.rename(next(place / name for name in names if not os.path.lexists(place / name)))
        except FileNotFoundError:  # another process has moved it
            return ""
        except OSError as error:
            problem = error.strerror or str(error)
        else:
            return ""
    return problem
