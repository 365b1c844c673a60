"""What the commands cost: imports beyond PyTorch's, quick answers, claims with their peak memory.

Imports alternate with a bare `import torch`, medians of fresh processes. A claim runs once in a new
folder; its memory is the peak of the process tree's resident set, sampled.

    python -m benchmarks.commands [--presets smoke small]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

_SNIPPETS = {
    "import torch": "import torch",
    "import undertow, torch": "import undertow, torch",
    "undertow.Ensemble and ranks": "import undertow as ut; ut.train.Ensemble; ut.ranks",
}

_FORECAST = "forecast --lr 0.1 --weight-decay 5e-4 --steps 78000 --batch-size 128"
_QUICK = (
    "--help",
    "rescale --lr 3e-4 --optimizer adamw --batch-size 256 --to 1024",
    f"{_FORECAST} --shapes 4096x1024 1000x4096 --schedule cosine",
    "inspect --help",
)


def answer_seconds(repeats: int = 7) -> dict[str, float]:
    """Median wall seconds of commands that need no torch, each in a fresh process."""
    times: dict[str, list[float]] = {words: [] for words in _QUICK}
    for _ in range(repeats):
        for words, own in times.items():
            start = time.perf_counter()
            command = [sys.executable, "-m", "undertow", *words.split()]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            own.append(time.perf_counter() - start)
    return {words: statistics.median(own) for words, own in times.items()}


def import_seconds(repeats: int = 7) -> dict[str, float]:
    """Median seconds of each import in a fresh process, less an empty process."""
    times: dict[str, list[float]] = {name: [] for name in ("", *_SNIPPETS)}
    for _ in range(repeats):
        for name, own in times.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", _SNIPPETS.get(name, "")], check=True)
            own.append(time.perf_counter() - start)
    empty = statistics.median(times.pop(""))
    return {name: statistics.median(own) - empty for name, own in times.items()}


def _tree_kilobytes(root: int) -> int:
    """Resident memory of a process and its descendants, from /proc."""
    parents, resident = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue  # the process has ended
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        parents[int(fields["Pid"])] = int(fields["PPid"])
        resident[int(fields["Pid"])] = int(fields.get("VmRSS", "0 kB").split()[0])
    total, family = 0, {root}
    for _ in range(4):
        family |= {child for child, parent in parents.items() if parent in family}
    for process in family:
        total += resident.get(process, 0)
    return total


def claim_cost(claim: str, preset: str) -> tuple[float, float]:
    """Wall seconds and peak GB of `undertow reproduce CLAIM --preset PRESET` in a new folder."""
    command = [sys.executable, "-m", "undertow", "reproduce", claim, "--preset", preset]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--json", "--out", f"{folder}/run"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        peak, done = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.2):
                peak = max(peak, _tree_kilobytes(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        process.wait()
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    return seconds, peak / 2**20


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="*", default=["smoke"])
    chosen = parser.parse_args()
    found = import_seconds()
    print("seconds to import, beyond an empty process")
    for name, seconds in found.items():
        print(f"  {name:30} {seconds:6.3f}  ({seconds - found['import torch']:+.3f} beyond torch)")
    print("seconds to answer")
    for words, seconds in answer_seconds().items():
        print(f"  {words:80} {seconds:6.3f}")
    from undertow import claims

    for preset in chosen.presets:
        for claim in claims.ALL:
            seconds, gigabytes = claim_cost(claim, preset)
            print(f"  {claim:18} {preset:6} {seconds:7.1f} s  peak {gigabytes:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
