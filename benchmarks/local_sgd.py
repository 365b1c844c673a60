"""`train.LocalSGD` beside DistributedDataParallel, PyTorch's averager and accelerate's LocalSGD.

`links`: four gloo processes on links of 100 Mbit/s (network namespaces, made and removed here; as
root) train a perceptron of 5 million parameters, one thread each, contender after contender in the
same processes. Steps per second are medians over the repeats; bytes are those that the interfaces
counted, less the headers of their packets. `overhead`: what a round of 20 million parameters costs
beyond a bare all-reduce of as many numbers, in parts of a step; two processes, not throttled.

    python -m benchmarks.local_sgd [--part links|overhead] [--repeats 5] [--mbit 100]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks._links import Host, NotPermitted, throttled
from undertow import train
from undertow.models import mlp

WORKERS, PERIOD, BATCH, LR, MOMENTUM = 4, 8, 32, 0.02, 0.9
LINKS, OVERHEAD = (784, 1600, 1600, 740, 10), (784, 3200, 3200, 2240, 10)
OVERHEAD_BATCHES, EVERY_STEP = (128, 512), 3
PORT, PATIENCE = 29511, 120
# Ethernet, IP and TCP with timestamps.
HEADERS = 14 + 20 + 32

Step = Callable[[Tensor, Tensor], float]


def network(sizes: Sequence[int]) -> nn.Module:
    """The same on every worker and for every contender."""
    return mlp(sizes, generator=torch.Generator().manual_seed(0))


def plain_sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The local optimizer of all."""
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)


def batches(rank: int, sizes: Sequence[int], batch: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """A worker's own stream of samples, labelled by a fixed linear teacher."""
    teacher = torch.randn(sizes[0], sizes[-1], generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2 + rank)

    def draw() -> tuple[Tensor, Tensor]:
        inputs = torch.randn(batch, sizes[0], generator=generator)
        return inputs, (inputs @ teacher).argmax(1)

    return draw


def steps_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, after: Callable[[], object] | None = None
) -> Step:
    """One step of a loop as anybody writes it."""

    def step(inputs: Tensor, targets: Tensor) -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        if after is not None:
            after()
        return loss.item()

    return step


def data_parallel() -> Step:
    """DistributedDataParallel as it is."""
    model = nn.parallel.DistributedDataParallel(network(LINKS))
    return steps_of(model, plain_sgd(model))


def ours(period: int) -> Step:
    """`train.LocalSGD`."""
    model = network(LINKS)
    optimizer = plain_sgd(model)
    train.LocalSGD(model, optimizer, period=period)
    return steps_of(model, optimizer)


def torch_averager() -> Step:
    """PyTorch's averager, around an optimizer that calls it."""
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    model = network(LINKS)
    averager = PeriodicModelAverager(period=PERIOD, warmup_steps=0)
    return steps_of(model, PostLocalSGDOptimizer(plain_sgd(model), averager))


def accelerates(stack: contextlib.ExitStack) -> Step | None:
    """The LocalSGD of accelerate, which wants a DistributedDataParallel to switch off."""
    try:
        from accelerate import Accelerator
        from accelerate.local_sgd import LocalSGD as Theirs
    except ImportError:
        return None
    accelerator = Accelerator(cpu=True)
    model = network(LINKS)
    model, optimizer = accelerator.prepare(model, plain_sgd(model))
    periods = Theirs(accelerator=accelerator, model=model, local_sgd_steps=PERIOD)
    stack.enter_context(periods)
    return steps_of(model, optimizer, periods.step)


def sent(interface: str) -> int:
    """Payload that went out so far, in bytes."""
    counts = Path(f"/sys/class/net/{interface}/statistics")
    packets = int((counts / "tx_packets").read_text())
    return int((counts / "tx_bytes").read_text()) - HEADERS * packets


def links_worker(rank: int, repeats: int, interface: str) -> dict[str, object]:
    """All contenders in turn, `repeats` times; seconds, bytes and losses of each."""
    with contextlib.ExitStack() as stack:
        contenders: dict[str, Step | None] = {
            "DistributedDataParallel": data_parallel(),
            "LocalSGD, H = 1": ours(1),
            f"LocalSGD, H = {PERIOD}": ours(PERIOD),
            f"PyTorch's averager, H = {PERIOD}": torch_averager(),
            f"accelerate, H = {PERIOD}": accelerates(stack),
        }
        draws = {name: batches(rank, LINKS, BATCH) for name in contenders}
        found: dict[str, dict[str, list[float]]] = {
            name: {"seconds": [], "bytes": [], "losses": []}
            for name, step in contenders.items()
            if step is not None
        }
        for repeat in range(repeats + 1):  # the first builds buckets and connections
            for name, rows in found.items():
                step = contenders[name]
                assert step is not None
                taken = PERIOD if f"H = {PERIOD}" in name else EVERY_STEP
                dist.barrier()
                before, begin = sent(interface), time.perf_counter()
                rows["losses"] += [step(*draws[name]()) for _ in range(taken)]
                dist.barrier()
                if repeat:
                    rows["seconds"].append((time.perf_counter() - begin) / taken)
                    rows["bytes"].append((sent(interface) - before) / taken)
    return {"contenders": found, "parameters": sum(p.numel() for p in network(LINKS).parameters())}


def overhead_worker(repeats: int) -> dict[str, object]:
    """Seconds of a step, of a round, of the hooks of a local step, and of a bare all-reduce."""
    runs: dict[str, Callable[[], object]] = {}
    model = network(OVERHEAD)
    step = steps_of(model, plain_sgd(model))
    for size in OVERHEAD_BATCHES:
        batch = batches(dist.get_rank(), OVERHEAD, size)()
        runs[str(size)] = functools.partial(step, *batch)
    for name, period in (("round", 1), ("hooks", 10**9)):
        # Without gradients SGD does nothing, and what is left of its step is the hooks.
        model = network(OVERHEAD)
        optimizer = plain_sgd(model)
        train.LocalSGD(model, optimizer, period=period)
        runs[name] = optimizer.step
    flat = torch.zeros(sum(p.numel() for p in model.parameters()))
    runs["all-reduce"] = lambda: dist.all_reduce(flat)
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            dist.barrier()
            begin = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - begin)
    return {"seconds": {name: values[1:] for name, values in found.items()}}


def work(options: argparse.Namespace) -> None:
    """One of the processes; its last line is what it found."""
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=PATIENCE)
    dist.init_process_group("gloo", timeout=patience)
    if options.part == "links":
        found = links_worker(dist.get_rank(), options.repeats, os.environ["GLOO_SOCKET_IFNAME"])
    else:
        found = overhead_worker(options.repeats)
    dist.destroy_process_group()
    print(json.dumps(found), flush=True)


def together(hosts: Sequence[Host], part: str, repeats: int) -> list[dict]:
    """What the processes found, one on each host; all are ended where one fails."""
    command = (sys.executable, "-m", "benchmarks.local_sgd", "--worker", "--part", part)
    running = []
    try:
        for rank, host in enumerate(hosts):
            place = {"RANK": str(rank), "WORLD_SIZE": str(len(hosts)), "MASTER_PORT": str(PORT)}
            place |= {"MASTER_ADDR": hosts[0].address, "GLOO_SOCKET_IFNAME": host.interface}
            # accelerate reads the threads from here; addresses here have no names to look up.
            place |= {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
            running.append(
                subprocess.Popen(
                    (*host.prefix, *command, "--repeats", str(repeats)),
                    env=os.environ | place,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        said = [process.communicate()[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    if any(process.returncode for process in running):
        raise SystemExit("a process failed; what it said is above")
    return [json.loads(text.splitlines()[-1]) for text in said]


def report_links(found: list[dict]) -> None:
    """A line for each contender: its speed, and what it sent beside what it should send."""
    parameters, contenders = found[0]["parameters"], found[0]["contenders"]
    median = {name: statistics.median(rows["seconds"]) for name, rows in contenders.items()}
    print(f"{parameters:,} parameters, batch {BATCH} a worker, {len(found)} workers")
    print(f"{'':30}{'steps/s':>9}{'over DDP':>10}{'MB a step':>11}{'predicted':>11}{'off':>8}")
    for name, rows in contenders.items():
        # A ring: each sends all but a K-th of the numbers twice.
        expected = (
            2 * (1 - 1 / len(found)) * 4 * parameters / (PERIOD if f"H = {PERIOD}" in name else 1)
        )
        bytes_sent = statistics.median(
            value for each in found for value in each["contenders"][name]["bytes"]
        )
        ratios = [
            base / own
            for base, own in zip(
                contenders["DistributedDataParallel"]["seconds"], rows["seconds"], strict=True
            )
        ]
        print(
            f"{name:30}{1 / median[name]:>9.2f}{statistics.median(ratios):>9.2f}x"
            f"{bytes_sent / 1e6:>11.3f}{expected / 1e6:>11.3f}{bytes_sent / expected - 1:>+8.2%}"
        )
    if "LocalSGD, H = 1" in contenders:
        gap = max(
            abs(a - b) / abs(a)
            for each in found
            for a, b in zip(
                each["contenders"]["DistributedDataParallel"]["losses"],
                each["contenders"]["LocalSGD, H = 1"]["losses"],
                strict=True,
            )
        )
        print(f"H = 1 and DistributedDataParallel: losses differ by at most {gap:.1e}")
    if not any("accelerate" in name for name in contenders):
        print("accelerate is not installed: left out")


def report_overhead(found: list[dict]) -> None:
    """What a round costs beyond its all-reduce, in parts of a step."""
    rows = {name: [1e3 * value for value in values] for name, values in found[0]["seconds"].items()}
    median = {name: statistics.median(values) for name, values in rows.items()}
    extra = [own - bare for own, bare in zip(rows["round"], rows["all-reduce"], strict=True)]
    beyond = statistics.median(extra)
    print(
        f"20M parameters: a bare all-reduce {median['all-reduce']:.0f} ms, a round beyond it "
        f"{beyond:.1f} ms; hooks of a local step {1e3 * median['hooks']:.0f} us"
    )
    for size in OVERHEAD_BATCHES:
        own = median[str(size)]
        print(f"batch {size}: a step {own:.0f} ms, a round beyond {beyond / own:.1%} (aim 2%)")


def main() -> None:
    """Reads the options and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--part", choices=("links", "overhead"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mbit", type=float, default=100)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    if options.part != "overhead":
        try:
            with throttled(WORKERS, options.mbit) as hosts:
                report_links(together(hosts, "links", options.repeats))
        except NotPermitted as error:
            print(f"links are not throttled here, left out: {error}")
    if options.part != "links":
        report_overhead(together([Host((), "127.0.0.1", "lo")] * 2, "overhead", options.repeats))


if __name__ == "__main__":
    main()
