"""Studies in processes of their own, killed after so many seconds: one line asks for each.

A process starts in milliseconds here, as a fork of one that has imported what it needs.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import threadpoolctl  # noqa: F401  # imported by a run, which must not take its time in each fork
import torch  # noqa: F401
from toy_study import Walk, walks

from undertow import lab

STUDY = walks(*(Walk(seed, pause=0.004) for seed in range(24)), size=2)


def serve() -> None:
    """For each line `SECONDS FOLDER`: start the study there, kill it, and print a line."""
    for line in sys.stdin:
        seconds, folder = line.rstrip("\n").split(" ", 1)
        child = os.fork()
        if not child:
            lab.run(STUDY, lab.Store(Path(folder)), engine="inline", progress=False)
            os._exit(0)
        time.sleep(float(seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print("killed", flush=True)


if __name__ == "__main__":
    lab.run  # noqa: B018  # names resolve on first use
    serve()
