"""Where groups of trials run: this process or worker processes, each trial's outcome plain data.

An engine yields groups as they finish, in any order. It never writes the store. Every worker has a
lane of its own, so that one that dies or is ended takes nobody else's work with it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle

from undertow.lab._group import Failed, Group, Ran, failed, run_group
from undertow.lab._isolation import ONE_THREAD, single_threaded
from undertow.lab._stop import Stop

Finished = Generator[tuple[Group, Ran], None, None]

_TICK = 0.1  # seconds between two looks at signals and at the clock
_STARTS = 3  # times that a worker process is started before it is given up
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]);"
    " from undertow.lab._worker import work; work(int(sys.argv[1]))"
)


def check_engine(engine: str, workers: int | None, timeout: float | None) -> None:
    """Refuse what cannot run.

    Raises:
        ValueError: an unknown engine, fewer than one worker, or a time limit that is none.
    """
    if engine == "ray":
        raise ValueError("engine: 'ray' is planned and not available yet; use 'local'")
    if engine not in {"local", "inline"}:
        raise ValueError(f"engine: {engine!r} is not one of 'local', 'inline'")
    if workers is not None and workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    if timeout is not None:
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout must be a number of seconds above 0, got {timeout:g}")
        if engine == "inline":
            raise ValueError("timeout needs worker processes, which can be ended: engine='local'")


def run_groups(
    groups: Sequence[Group],
    stop: Stop,
    *,
    engine: str,
    workers: int | None,
    timeout: float | None = None,
) -> Finished:
    """Run each group, yielding it with its outcomes as it finishes, until `stop` is asked for.

    Args:
        groups: what to run. Of one that is cut, some trials come back alone.
        stop: looked at ten times a second; what has finished by then is still yielded.
        engine: "local" or "inline".
        workers: how many processes, at most; one a core where it is None.
        timeout: seconds that a trial may take; a group may take as many times that as it has
            trials. They run alone where it takes more.

    Raises:
        TypeError: a function cannot be sent to a worker process.
        RuntimeError: worker processes cannot be started.
    """
    return _inline(groups, stop) if engine == "inline" else _local(groups, stop, workers, timeout)


def _inline(groups: Sequence[Group], stop: Stop) -> Finished:
    if not groups:
        return
    with single_threaded():
        for group in groups:
            with stop.at_any_moment():
                ran = run_group(group, stop.asked)
            yield group, ran
            if stop.asked():  # and the trial has overheard it
                return


def _local(
    groups: Sequence[Group], stop: Stop, workers: int | None, timeout: float | None
) -> Finished:
    for function in {id(group.function): group.function for group in groups}.values():
        _check_travels(function)
    from loky import cpu_count  # of what this process may use

    many = workers or cpu_count()
    apart, died = yield from _round(groups, stop, many, timeout)
    _, own = yield from _round(_alone(apart), stop, many, timeout, together=False)
    # A worker that was killed for want of memory has all of it when nothing runs beside it.
    apart, _ = yield from _round(died, stop, 1, timeout, last=True)
    yield from _round([*_alone(apart), *own], stop, 1, timeout, together=False, last=True)


def _check_travels(function: Any) -> None:
    try:
        cloudpickle.dumps(function)
    except Exception as error:
        raise TypeError(
            "function: cannot be sent to a worker process; define it at the top level of a module,"
            " without locks, open files or the like around it"
        ) from error


def _alone(groups: Sequence[Group]) -> list[Group]:
    return [own for group in groups for own in group.alone()]


def _round(
    groups: Sequence[Group],
    stop: Stop,
    workers: int,
    timeout: float | None,
    *,
    together: bool = True,
    last: bool = False,
) -> Generator[tuple[Group, Ran], None, tuple[list[Group], list[Group]]]:
    """Run groups, and return those to be cut into trials and those whose worker died.

    With `last` no trial is given another chance.
    """
    apart: list[Group] = []
    died: list[Group] = []
    for group, answer in _answers(groups, stop, workers, timeout):
        if isinstance(answer, Ran):
            yield group, replace(answer, together=answer.together and together)
        elif answer.died and not last:
            died.append(group)
        elif len(group.trials) == 1:
            yield group, Ran((answer.why,), together)
        else:
            apart.append(group)
    return apart, died


def _answers(
    groups: Sequence[Group], stop: Stop, workers: int, timeout: float | None
) -> Iterator[tuple[Group, Ran | _NoAnswer]]:
    if not groups or stop.asked():
        return
    waiting, answers = deque(groups), queue.SimpleQueue[Any]()
    lanes = [_Lane(waiting, answers, timeout) for _ in range(min(workers, len(groups)))]
    for lane in lanes:
        lane.start()
    try:
        busy = len(lanes)
        while busy and not stop.asked():
            with contextlib.suppress(queue.Empty):
                found = answers.get(timeout=_TICK)
                if found is None:
                    busy -= 1
                elif isinstance(found, BaseException):
                    raise found
                else:
                    yield found
            for lane in lanes:
                lane.keep_time()
    finally:
        for lane in lanes:
            lane.end()
        for lane in lanes:
            lane.join(timeout=5)
    while not answers.empty():  # finished in the meantime
        found = answers.get()
        if isinstance(found, tuple):
            yield found


# --- a worker process and its lane ------------------------------------------------------------


@dataclass(frozen=True)
class _NoAnswer:
    """A group that came to no end: its worker `died` by itself, or `why` it never got there."""

    why: Failed
    died: bool = False


class _Lane(threading.Thread):
    """Has one group after the other run by a worker process, and starts another where one dies."""

    def __init__(
        self, waiting: deque[Group], answers: queue.SimpleQueue[Any], timeout: float | None
    ) -> None:
        super().__init__(daemon=True)
        self._waiting, self._answers, self._timeout = waiting, answers, timeout
        self._worker: _Worker | None = None
        self._lock = threading.Lock()  # whoever ends a worker holds it
        self._ended = self._late = False
        self._deadline = math.inf

    def run(self) -> None:
        """Work until nothing is waiting; None says that this is so."""
        try:
            while not self._ended and self._waiting:
                with contextlib.suppress(IndexError):  # another lane was faster
                    group = self._waiting.popleft()
                    self._answers.put((group, self._ask(group)))
        except BaseException as error:
            self._answers.put(error)
        finally:
            self._leave_worker()
            self._answers.put(None)

    def keep_time(self) -> None:
        """End the worker if its group has had its time."""
        with self._lock:
            if self._worker is not None and time.monotonic() > self._deadline:
                self._late = True
                self._worker.kill()

    def end(self) -> None:
        """End the worker, whatever it does."""
        with self._lock:
            self._ended = True
            if self._worker is not None:
                self._worker.kill()

    def _ask(self, group: Group) -> Ran | _NoAnswer:
        try:
            content = cloudpickle.dumps(group)
        except Exception as error:
            return _NoAnswer(failed(error))
        worker = self._worker or self._start()
        self._late = False
        if self._timeout is not None:
            self._deadline = time.monotonic() + self._timeout * len(group.trials)
        answer: object = None
        fit = False
        with contextlib.suppress(Exception):  # of a worker that dies there may be half an answer
            answer, fit = worker.ask(content)
        with self._lock:
            self._deadline = math.inf
            fit = fit and not self._late
        reason = "" if fit else self._leave_worker(died=answer is None)
        if isinstance(answer, Ran):
            return answer
        if isinstance(answer, Failed):
            return _NoAnswer(answer)
        if self._late:
            limit = f"took more than {self._timeout:g} s, its time limit, and was ended"
            return _NoAnswer(Failed("TimedOut", limit))
        return _NoAnswer(Failed("WorkerDied", f"worker process died ({reason})"), died=True)

    def _start(self) -> _Worker:
        """A worker that is ready, so that the clock of a group counts none of its start."""
        reason = ""
        for _ in range(_STARTS):
            with self._lock:
                if self._ended:
                    break
                worker = self._worker = _Worker()
            with contextlib.suppress(Exception):
                worker.greet()
                return worker
            reason = self._leave_worker(died=True)
        raise RuntimeError(
            f"worker processes end before they have run anything ({reason}); the lines above may"
            " say why, and engine 'inline' does without them"
        )

    def _leave_worker(self, *, died: bool = False) -> str:
        """Part with the worker if there is one; returns how it ended."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is None:
            return ""
        by_itself = not died or worker.ends()
        if died:  # what it has started may live
            worker.kill()
        how = worker.leave()
        return how if by_itself else "cut off from this process, it was ended"


class _Worker:
    """A process that runs `work`, and the two pipes to it."""

    def __init__(self) -> None:
        optimized = [f"-{'O' * sys.flags.optimize}"] if sys.flags.optimize else []
        path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
        command = [sys.executable, "-u", *optimized, "-c", _START, str(os.getpid()), path]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            # Sets of strings are walked through in one order everywhere.
            env={"PYTHONHASHSEED": "0", **os.environ, **ONE_THREAD},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def greet(self) -> None:
        """Wait until it is ready."""
        pickle.load(self._answers)

    def ask(self, content: bytes) -> tuple[object, bool]:
        """What it answers to a group, and whether it is fit for another."""
        pickle.dump(content, self._requests)
        self._requests.flush()
        answer, fit = pickle.load(self._answers)
        return answer, fit

    def kill(self) -> None:
        """End it at once, and what it has started."""
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()

    def ends(self) -> bool:
        """Whether it ends by itself within half a second; nobody else gets its number yet."""
        if not hasattr(os, "waitid"):
            return True
        look = os.WEXITED | os.WNOWAIT | os.WNOHANG
        until = time.monotonic() + 0.5
        while os.waitid(os.P_PID, self._process.pid, look) is None:
            if time.monotonic() > until:
                return False
            time.sleep(_TICK / 10)
        return True

    def leave(self) -> str:
        """Let it end, or end it; returns how it ended."""
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            code = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.wait()
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"by {signal.Signals(-code).name}"
        except ValueError:
            return f"by signal {-code}"
