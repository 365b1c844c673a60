"""What arguments may be: counts, and what a command line spells: shapes, an objective in a file."""

from __future__ import annotations

import contextlib
import re
import runpy
from collections.abc import Iterable, Iterator
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from undertow.objective import Objective


def whole_number(name: str, value: object, *, least: int) -> int:
    """The value, if it is a whole number that is not below `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def parse_shapes(words: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Matrices by name, from `512x256` or `head=10x512`.

    Raises:
        ValueError: a word that is neither, or a name that is given twice.
    """
    shapes: dict[str, tuple[int, int]] = {}
    for number, word in enumerate(words, 1):
        found = re.fullmatch(r"(?:(?P<name>[^=]+)=)?(?P<rows>\d+)x(?P<cols>\d+)", word)
        if found is None:
            raise ValueError(f"shape {word!r} does not parse; write 512x256 or head=10x512")
        name = found["name"] or f"matrix {number}"
        if name in shapes:
            raise ValueError(f"shape {word!r}: {name} has one already; give another name")
        shapes[name] = (int(found["rows"]), int(found["cols"]))
    return shapes


def load_objective(place: str) -> Objective:
    """The objective that a function in a file returns, `FILE.py:NAME`. The file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the place does not parse, or the file has no such function.
        TypeError: the function returns something else.
        RuntimeError: the file or the function raises anything, `sys.exit` included.
    """
    from undertow.objective import Objective

    file, _, name = place.rpartition(":")
    if not file or not name.isidentifier():
        raise ValueError(f"{place!r} does not parse; write FILE.py:NAME, NAME() an Objective")
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no file {file!r}")
    with survived(file):
        made = runpy.run_path(file).get(name)
    if not callable(made):
        raise ValueError(f"{file} has no function {name}")
    with survived(f"{name}() of {file}"):
        objective = made()
    if not isinstance(objective, Objective):
        raise TypeError(f"{name}() must return an Objective, got {type(objective).__name__}")
    return objective


@contextlib.contextmanager
def survived(whose: str, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Run code that is not ours: what it raises is one error here, an end of the process too.

    Args:
        whose: code, as the error names it.
        passing: errors that are as well ours, and pass as they are.

    Raises:
        RuntimeError: it raised anything else but an interrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        try:
            said = str(error)
        except BaseException:  # an exception that cannot even be shown
            said = ""
        else:
            if isinstance(error, passing):
                raise
        name = type(error).__name__
        # From nothing: a StopIteration behind it would be taken for the end of this generator.
        raise RuntimeError(f"{whose} raised {name}{f': {said}' if said else ''}") from None
