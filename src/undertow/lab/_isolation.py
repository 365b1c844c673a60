"""The state of a process around a group of trials: at its start the same wherever it runs, and
afterwards as it was found.

What a trial may read without being told (threads, default types, random states, environment) is set
to what a new worker process has; so a result depends on neither the engine nor the trials before.
"""

from __future__ import annotations

import contextlib
import decimal
import gc
import hashlib
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from undertow._quietly import quietly

# Read by numeric libraries when they are loaded, so set before a worker process starts.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1"
)

_Setting = tuple[Callable[[], Any], Callable[[Any], Any], Any]  # read, write, a new process's value


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """One computing thread in the linear algebra that this process has loaded, as workers have."""
    with quietly():
        import threadpoolctl
        import torch  # noqa: F401  # which brings more of it

    found = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        with threadpoolctl.threadpool_limits(1):
            yield
    finally:
        for name, value in found.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def isolated(name: str) -> Iterator[None]:
    """Run a block as in a new process, whose global random states are seeded by `name`."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_python_state())
        stack.enter_context(_seeded(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)))
        stack.enter_context(_numeric_settings())
        yield


@contextlib.contextmanager
def _python_state() -> Iterator[None]:
    environment, folder, mask = os.environ.copy(), _folder(), os.umask(0o022)
    os.umask(mask)
    streams = sys.stdin, sys.stdout, sys.stderr
    path, depth, collects = list(sys.path), sys.getrecursionlimit(), gc.isenabled()
    context = decimal.getcontext().copy()
    handlers, alarm = _handlers(), _alarm()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        if os.environ.copy() != environment:
            os.environ.clear()
            os.environ.update(environment)
        if folder is not None and _folder() != folder:
            with contextlib.suppress(OSError):
                os.chdir(folder)
        os.umask(mask)
        sys.stdin, sys.stdout, sys.stderr = streams
        sys.path[:] = path
        sys.setrecursionlimit(depth)
        if alarm == (0.0, 0.0):  # one that a trial has set would end another
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        (gc.enable if collects else gc.disable)()
        decimal.setcontext(context)
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # removed under our feet
        return None


def _alarm() -> tuple[float, float] | None:
    """When an alarm will ring, and every how many seconds from then on."""
    return signal.getitimer(signal.ITIMER_REAL) if hasattr(signal, "getitimer") else None


def _handlers() -> dict[int, Any]:
    """What handles the signals that code may want to handle; only the main thread may set it."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [getattr(signal, name) for name in _HANDLED if hasattr(signal, name)]
    found = {number: signal.getsignal(number) for number in numbers}
    return {number: handler for number, handler in found.items() if handler is not None}


_HANDLED = (
    *("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGPIPE"),
    *("SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGABRT", "SIGFPE"),
)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Global random states, for trials that draw from them although they should not."""
    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if devices is not None:
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)


@contextlib.contextmanager
def _numeric_settings() -> Iterator[None]:
    import torch

    settings = [setting for setting in _settings() if _can_be_read(setting)]
    before = [read() for read, _, _ in settings]
    _write(settings, [fresh for _, _, fresh in settings])
    try:
        with (
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        _write(settings, before)


def _can_be_read(setting: _Setting) -> bool:
    """Versions of torch differ in what there is, and in what excludes what."""
    try:
        setting[0]()
    except (AttributeError, RuntimeError):
        return False
    return True


def _write(settings: list[_Setting], values: list[Any]) -> None:
    for (read, write, _), value in zip(settings, values, strict=True):
        if read() != value:
            write(value)


def _settings() -> list[_Setting]:
    import numpy as np
    import torch

    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    calm = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
    return [
        (torch.get_num_threads, torch.set_num_threads, 1),
        (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        (torch.get_default_device, torch.set_default_device, torch.device("cpu")),
        (_flushes, torch.set_flush_denormal, False),
        (
            _determinism,
            lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
            (False, False),
        ),
        (
            _unwarned(torch.get_float32_matmul_precision),
            _unwarned(torch.set_float32_matmul_precision),
            "highest",
        ),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, False),
        (np.geterr, lambda value: np.seterr(**value), calm),
        (cuda.flash_sdp_enabled, cuda.enable_flash_sdp, True),
        (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp, True),
        (cuda.math_sdp_enabled, cuda.enable_math_sdp, True),
        _attribute(mkldnn, "enabled", True),
        _attribute(cudnn, "enabled", True),
        _attribute(cudnn, "benchmark", False),
        _attribute(cudnn, "deterministic", False),
    ]


def _unwarned(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without the warning of torch 2.9 that there is a newer name, which no user chose."""

    def run(*values: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return function(*values)

    return run


def _attribute(owner: Any, name: str, fresh: Any) -> _Setting:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value), fresh


def _determinism() -> tuple[bool, bool]:
    import torch

    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _flushes() -> bool:
    """Whether this thread takes numbers too small to be normal for zero; torch cannot be asked."""
    return sys.float_info.min * float("0.5") == 0.0
