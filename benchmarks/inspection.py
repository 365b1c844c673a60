"""`undertow.inspect` against WeightWatcher's `analyze` on the weights of a language model.

The weights are a checkpoint of yours (SmolLM2-135M is what the README reports), or random ones of
its shapes. Both read the same weights in one process, in turns; memory is what the process holds
beyond mapped files, sampled while `inspect` runs, over the largest matrix in float32.

    python -m benchmarks.inspection [--checkpoint PATH] [--repeats 3] [--without-weightwatcher]
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import logging
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from undertow import apply


def smollm2_shapes() -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and shapes of the 211 matrices of SmolLM2-135M."""
    yield "model.embed_tokens.weight", (49152, 576)
    for layer in range(30):
        for name, shape in (
            ("mlp.down_proj", (576, 1536)),
            ("mlp.gate_proj", (1536, 576)),
            ("mlp.up_proj", (1536, 576)),
            ("self_attn.k_proj", (192, 576)),
            ("self_attn.o_proj", (576, 576)),
            ("self_attn.q_proj", (576, 576)),
            ("self_attn.v_proj", (192, 576)),
        ):
            yield f"model.layers.{layer}.{name}.weight", shape


def as_module(tensors: dict[str, torch.Tensor]) -> nn.Sequential:
    """The matrices as linear layers, which is what WeightWatcher takes."""
    layers = []
    for tensor in tensors.values():
        if tensor.ndim == 2:
            layer = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False, device="meta")
            layer.weight = nn.Parameter(tensor.float(), requires_grad=False)
            layers.append(layer)
    return nn.Sequential(*layers)


def weightwatcher_analyze(model: nn.Module) -> None:
    """WeightWatcher as its user runs it."""
    import weightwatcher  # optional, and slow to import

    logging.getLogger("weightwatcher").setLevel(logging.CRITICAL)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        weightwatcher.WeightWatcher(model=model).analyze(plot=False)


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def own_memory() -> int:
    """Bytes of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no RssAnon")


@contextmanager
def peak_memory(peak: list[int]) -> Iterator[None]:
    """Appends by how much the process grew at most, looked at every two milliseconds."""
    before = highest = own_memory()
    finished = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not finished.wait(0.002):
            highest = max(highest, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        peak.append(highest - before)


def main() -> None:
    """Reads the options and prints medians and the memory."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without-weightwatcher", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = options.checkpoint
        if path is None:
            path = Path(folder) / "model.safetensors"
            generator = torch.Generator().manual_seed(0)
            made = {n: torch.randn(s, generator=generator) / 24 for n, s in smollm2_shapes()}
            save_file(made, path)
            del made
        tensors = apply.read_checkpoint(path)
        largest = max(4 * tensor.numel() for tensor in tensors.values())
        apply.inspect({"warm up": torch.randn(64, 64)})
        memory: list[int] = []
        with peak_memory(memory):
            found = apply.inspect(path)
        print(f"{found!r}\nmemory: {memory[0] / largest:.2f} x the largest matrix")

        theirs: list[float] = []
        ours: list[float] = []
        peer = importlib.util.find_spec("weightwatcher") is not None
        peer = peer and not options.without_weightwatcher
        model = as_module(tensors) if peer else None
        for _ in range(options.repeats):
            ours.append(seconds(lambda: apply.inspect(path)))
            if model is not None:
                theirs.append(seconds(lambda: weightwatcher_analyze(model)))
        print(f"undertow inspect       {statistics.median(ours):>8.2f} s")
        if theirs:
            ratio = statistics.median(theirs) / statistics.median(ours)
            print(f"weightwatcher analyze  {statistics.median(theirs):>8.2f} s {ratio:>8.2f} x")


if __name__ == "__main__":
    main()
