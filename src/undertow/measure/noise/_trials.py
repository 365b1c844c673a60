"""Which of several ways to compute the same takes the least time, found by trying each once.

What takes the least time differs between processors, and with the shapes; numbers do not, but for
rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping

import torch

# Runs of each, of which the fastest counts.
_RUNS = 3

_fastest: dict[Hashable, str] = {}


def fastest(key: Hashable, ways: Mapping[str, Callable[[], object]], device: torch.device) -> str:
    """The way that took the least time when this key was first met, of those that work.

    Args:
        key: of what is computed: shapes, types, options.
        ways: by name; the first is taken where none works.
        device: that it is computed on.
    """
    setting = device, torch.get_num_threads(), torch.backends.mkldnn.enabled, tuple(ways)
    if (key, setting) not in _fastest:
        _fastest[key, setting] = min(ways, key=lambda way: _seconds(ways[way], device))
    return _fastest[key, setting]


def _seconds(way: Callable[[], object], device: torch.device) -> float:
    """The least of some runs; infinite where a device has no kernel for it."""
    least = math.inf
    # Of this thread, on a processor: others, which share the work evenly, may wait for a core.
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    for _ in range(_RUNS):
        start = clock()
        try:
            way()
        except (RuntimeError, NotImplementedError):
            return math.inf
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        least = min(least, clock() - start)
    return least
