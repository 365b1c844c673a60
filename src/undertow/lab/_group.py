"""A group of trials that run as one, and what becomes of them: plain data that crosses processes.

Whatever a trial raises or returns, its outcome is its records or the reason why there are none.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from undertow.lab._isolation import isolated
from undertow.lab._records import encode_records

GroupFunction = Callable[[Sequence[Any]], Sequence[Any]]

_LONGEST_MESSAGE, _LONGEST_TRACEBACK = 2_000, 50_000


@dataclass(frozen=True)
class Group:
    """Trials that run as one, each with its identity, and the function that runs them."""

    function: GroupFunction
    identities: tuple[str, ...]
    trials: tuple[Any, ...]

    def alone(self) -> list[Group]:
        """Each trial as a group of its own."""
        pairs = zip(self.identities, self.trials, strict=True)
        return [Group(self.function, (identity,), (trial,)) for identity, trial in pairs]


@dataclass(frozen=True)
class Failed:
    """Why a trial gave no records, as text: not every exception can cross between processes."""

    error: str
    message: str
    traceback: str = ""


Outcome = bytes | Failed  # the trial's Parquet file, or why there is none


@dataclass(frozen=True)
class Ran:
    """What became of a group's trials, in order.

    Where they did not run `together`, as they should, but each alone, because one of them took the
    others with it, their last digits may differ from those of a group that ran whole.
    """

    outcomes: tuple[Outcome, ...]
    together: bool = True


def run_group(group: Group, stopped: Callable[[], bool] = lambda: False) -> Ran:
    """Run a group; one that raises, whatever it raises, is run again trial by trial.

    Args:
        group: what to run.
        stopped: whether this process was told to end; then what the group raises passes.
    """
    try:
        with isolated(group.identities[0]):
            results = group.function(group.trials)
            if len(results) != len(group.trials):
                raise ValueError(
                    f"the study's function gave {len(results)} results for {len(group.trials)}"
                    " trials"
                )
            named = zip(group.identities, group.trials, results, strict=True)
            return Ran(tuple(_encoded(*each) for each in named))
    except BaseException as error:  # a function that calls sys.exit must not end the study
        if stopped():
            raise
        if len(group.trials) == 1:
            return Ran((failed(error),))
    alone = (run_group(own, stopped).outcomes[0] for own in group.alone())
    return Ran(tuple(alone), together=False)


def failed(error: BaseException) -> Failed:
    """An exception in words, also one that does not let itself be put into words."""
    try:
        message = str(error)
    except BaseException:
        message = "its own message cannot be had: __str__ raises"
    try:
        trace = "".join(traceback.format_exception(error))
    except BaseException:
        trace = ""
    return Failed(
        _plain(type(error).__name__, _LONGEST_MESSAGE),
        _plain(message, _LONGEST_MESSAGE),
        _plain(trace, _LONGEST_TRACEBACK),
    )


def _plain(text: str, longest: int) -> str:
    """Text that every file and terminal takes, its middle left out where it is too long."""
    if len(text) > longest:
        text = f"{text[: longest // 2]} [...] {text[-longest // 2 :]}"
    return text.encode(errors="backslashreplace").decode()


def _encoded(identity: str, trial: Any, result: Any) -> Outcome:
    if isinstance(result, BaseException):
        return failed(result)
    try:
        return encode_records(identity, trial, result)
    except Exception as error:
        return failed(error)
