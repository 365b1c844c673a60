"""Real ranks for tests: a function run in the processes of one gloo group.

They are forked from a server that has loaded the library once, and none outlives its deadline. The
store is this process's, as it is the agent's under torchrun.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist

_CONTEXT = mp.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "undertow.train"])


def launch(
    function: Callable[..., Any],
    num_ranks: int,
    *arguments: Any,
    errors: bool = False,
    first_holds: bool = False,
    seconds: float = 120,
) -> list[Any]:
    """What `function(rank, *arguments)` returned on each rank; None where it died.

    An error of a rank is raised, or with `errors` in the list. With `first_holds` the store is the
    first rank's, as it is under `env://`, and ends with it.
    """
    pipes, processes = [], []
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = _free_port() if first_holds else store.port
    try:
        for rank in range(num_ranks):
            ours, theirs = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(
                target=_run,
                args=(
                    theirs,
                    rank,
                    num_ranks,
                    port,
                    first_holds and rank == 0,
                    function,
                    arguments,
                ),
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        answers = _collect(pipes, seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()
    for answer in answers:
        if isinstance(answer, Exception) and not errors:
            raise answer
    return answers


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


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
                results[pipe] = pickle.loads(pipe.recv_bytes())
            except EOFError:
                results[pipe] = None
    return [results[pipe] for pipe in pipes]


def _run(
    pipe: Connection,
    rank: int,
    num_ranks: int,
    port: int,
    holds: bool,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = dist.TCPStore("127.0.0.1", port, is_master=holds, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
    try:
        answer: Any = function(rank, *arguments)
    except Exception as error:
        error.add_note(traceback.format_exc())
        answer = error
    # Plain pickles: those of multiprocessing share the memory of tensors, and this process ends.
    pipe.send_bytes(pickle.dumps(answer))
    # Threads of calls that were given up would be waited for.
    os._exit(0)
