"""Real ranks for tests: a function run in processes of one gloo group, over a file as their store.

Processes are forked from a server that has loaded the library once. None outlives its deadline.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

_CONTEXT = mp.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "undertow.train"])


def launch(
    function: Callable[..., Any], num_ranks: int, *arguments: Any, seconds: float = 60
) -> list[Any]:
    """What `function(rank, *arguments)` returned or raised on each rank; None where it died."""
    pipes, processes = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(num_ranks):
                ours, theirs = _CONTEXT.Pipe(duplex=False)
                store = str(Path(folder) / "store")
                process = _CONTEXT.Process(
                    target=_run, args=(theirs, rank, num_ranks, store, function, arguments)
                )
                process.start()
                theirs.close()
                pipes.append(ours)
                processes.append(process)
            return _collect(pipes, seconds)
        finally:
            for process in processes:
                process.kill()
                process.join()
                process.close()


def _collect(pipes: list[Connection], seconds: float) -> list[Any]:
    results: dict[Connection, Any] = {}
    deadline = monotonic() + seconds
    while len(results) < len(pipes):
        left = [pipe for pipe in pipes if pipe not in results]
        ready = wait(left, max(deadline - monotonic(), 0))
        ranks = [pipes.index(pipe) for pipe in left]
        assert ready, f"ranks {ranks} had not answered after {seconds} seconds"
        for pipe in ready:
            assert isinstance(pipe, Connection)
            try:
                results[pipe] = pipe.recv()
            except EOFError:
                results[pipe] = None
    return [results[pipe] for pipe in pipes]


def _run(
    pipe: Connection,
    rank: int,
    num_ranks: int,
    store: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks
    )
    try:
        pipe.send(function(rank, *arguments))
    except Exception as error:
        pipe.send(error)
    # Threads of calls that were given up would be waited for.
    os._exit(0)
