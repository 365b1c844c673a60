"""Where groups of trials run: this process or worker processes, each trial's outcome plain data.

An engine yields groups as they finish, in any order. It never writes the store.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pickle import PicklingError
from typing import Any

from undertow.lab._records import encode_records

GroupFunction = Callable[[Sequence[Any]], Sequence[Any]]


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
Finished = Generator[
    tuple[int, list[Outcome]], None, None
]  # a group's index, and its trials' outcomes in order


def run_groups(groups: Sequence[Group], *, engine: str, workers: int | None) -> Finished:
    """Run each group, yielding its index and outcomes as it finishes.

    Raises:
        ValueError: an unknown engine, or fewer than one worker.
    """
    if engine == "ray":
        raise ValueError("engine: 'ray' is planned and not available yet; use 'local'")
    if engine not in {"local", "inline"}:
        raise ValueError(f"engine: {engine!r} is not one of 'local', 'inline'")
    if workers is not None and workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    if engine == "inline":
        return ((index, run_group(group)) for index, group in enumerate(groups))
    return _run_local(groups, workers)


def run_group(group: Group) -> list[Outcome]:
    """The outcomes of one group. One that raises is run again, trial by trial."""
    try:
        results = group.function(group.trials)
        if len(results) != len(group.trials):
            raise ValueError(
                f"the study's function gave {len(results)} results for {len(group.trials)} trials"
            )
    # A function that calls sys.exit must not end the study.
    except (Exception, SystemExit) as error:
        if len(group.trials) == 1:
            return [_failed(error)]
        return [run_group(own)[0] for own in group.alone()]
    named = zip(group.identities, group.trials, results, strict=True)
    return [_encoded(identity, trial, result) for identity, trial, result in named]


def _encoded(identity: str, trial: Any, result: Any) -> Outcome:
    if isinstance(result, BaseException):
        return _failed(result)
    try:
        return encode_records(identity, trial, result)
    except Exception as error:
        return _failed(error)


def _failed(error: BaseException) -> Failed:
    return Failed(type(error).__name__, str(error), "".join(traceback.format_exception(error)))


def _run_local(groups: Sequence[Group], workers: int | None) -> Finished:
    from loky import cpu_count

    waiting = deque(range(len(groups)))
    while waiting:
        count = min(workers or cpu_count(), len(waiting))
        suspects = yield from _run_until_death(groups, waiting, count)
        for index in suspects:
            yield index, _run_alone(groups[index])


def _run_until_death(
    groups: Sequence[Group], waiting: deque[int], workers: int
) -> Generator[tuple[int, list[Outcome]], None, list[int]]:
    """Work through `waiting` until it is empty or a worker dies; returns the groups then running.

    No more groups are handed out than there are workers, so only those few are suspected.
    """
    running: dict[Future[list[Outcome]], int] = {}
    suspects: list[int] = []
    with _pool(workers) as pool:
        while running or (waiting and not suspects):
            while waiting and len(running) < workers and not suspects:
                index = waiting.popleft()
                try:
                    running[pool.submit(run_group, groups[index])] = index
                except BrokenProcessPool:  # a worker died between two tasks
                    suspects.append(index)
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                index = running.pop(future)
                try:
                    outcomes = future.result()
                except BrokenProcessPool:
                    suspects.append(index)
                except PicklingError as error:
                    raise TypeError(
                        "function: cannot be sent to a worker process; define it at the top level "
                        "of a module, without locks, open files or the like around it"
                    ) from error
                else:
                    yield index, outcomes
    return sorted(suspects)


def _run_alone(group: Group) -> list[Outcome]:
    """Run a group in a process of its own; if that dies too, each of its trials in its own."""
    try:
        with _pool(1) as pool:
            return pool.submit(run_group, group).result()
    except BrokenProcessPool as error:
        if len(group.trials) == 1:
            return [_died(error)]
    return [_run_alone(own)[0] for own in group.alone()]


def _died(error: BrokenProcessPool) -> Failed:
    from loky.process_executor import TerminatedWorkerError

    if not isinstance(error, TerminatedWorkerError):  # the task could not be read by the worker
        return _failed(error)
    return Failed("WorkerDied", "worker process died", str(error))


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    """Worker processes with one computing thread each, gone when the block is left, however it is.

    The thread counts are set in the workers' environment, before any library reads them.
    """
    from loky import ProcessPoolExecutor

    one_thread = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1"
    )
    pool = ProcessPoolExecutor(
        workers, initializer=_start_worker, initargs=(os.getpid(),), env=one_thread
    )
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=True, kill_workers=True)
        raise
    pool.shutdown(wait=True)


def _start_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when the parent is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
