"""`undertow.gradient_noise` in gradient passes, beside per-sample gradients by `vmap(grad)`.

Alternating runs in one process; the figures are medians of processor time, in units of
`Objective.gradient`, after two runs to warm up. Memory is the peak above that of the model and its
data, each measured in a process of its own.

    python -m benchmarks.gradient_noise [--threads 1|2] [--repeats 5] [--without-memory]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from undertow.measure import gradient_noise, per_sample_gradient_norms
from undertow.models import conv_net, mlp
from undertow.objective import Objective

# Samples whose gradients vmap holds at a time.
_VMAP_CHUNK = 64
# Ways of convolutions are tried in the first run.
_WARM_UP = 2


class Transformer(nn.Module):
    """An encoder of PyTorch's own layers over tokens, with learnt positions."""

    def __init__(self, tokens: int, times: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.positions = nn.Parameter(torch.randn(times, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[samples, 10]`."""
        return self.head(self.encoder(self.embedding(tokens) + self.positions).mean(1))


@dataclass(frozen=True)
class Case:
    """A network and inputs for it."""

    name: str
    make: Callable[[], tuple[nn.Module, Tensor]]

    def objective(self) -> Objective:
        """Cross-entropy against random labels."""
        torch.manual_seed(0)
        model, inputs = self.make()
        return Objective(model, nn.CrossEntropyLoss(), (inputs, torch.randint(10, (len(inputs),))))


CASES = (
    Case("MLP 784-512-512-10, 2048 samples", lambda: (mlp((784, 512, 512, 10)), randn(2048, 784))),
    Case("MLP 784-128-128-10, 2048 samples", lambda: (mlp((784, 128, 128, 10)), randn(2048, 784))),
    Case("MLP 196-64-10, 256 samples", lambda: (mlp((196, 64, 10)), randn(256, 196))),
    Case(
        "CNN 16-32-64 on 32 x 32, 512 samples",
        lambda: (conv_net((3, 32, 32), (16, 32, 64), 10), randn(512, 3, 32, 32)),
    ),
    Case(
        "CNN 32-64 stride 1 on 16 x 16, 512 samples",
        lambda: (conv_net((3, 16, 16), (32, 64), 10, stride=1), randn(512, 3, 16, 16)),
    ),
    Case(
        "transformer 2 x 128, 32 tokens, 256 samples",
        lambda: (Transformer(1000, 32, 128, 2), torch.randint(1000, (256, 32))),
    ),
)


def randn(*shape: int) -> Tensor:
    """Standard normal inputs."""
    return torch.randn(shape)


def vmap_grad(objective: Objective) -> Tensor:
    """Squared norms of per-sample gradients that `vmap(grad)` writes down."""
    model = objective.model.eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(own: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(model, own, (one[None],)), label[None])

    found = []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for inputs, labels in objective.batches():
            for x, y in zip(inputs.split(_VMAP_CHUNK), labels.split(_VMAP_CHUNK), strict=True):
                each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
                found.append(sum(part.flatten(1).square().sum(1) for part in each.values()))
    return torch.cat(found)


CONTENDERS: dict[str, Callable[[Objective], object]] = {
    "gradient": Objective.gradient,
    "per-sample norms": per_sample_gradient_norms,
    "gradient noise": gradient_noise,
    "vmap(grad)": vmap_grad,
}


def measure(case: Case, repeats: int, *, memory: bool) -> None:
    """Prints the median time of `repeats` alternating runs, after two to warm up."""
    objective = case.objective()
    runs: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for repeat in range(repeats + _WARM_UP):
        for name, run in CONTENDERS.items():
            start = time.process_time()
            run(objective)
            if repeat >= _WARM_UP:
                runs[name].append(time.process_time() - start)
    seconds = {name: statistics.median(taken) for name, taken in runs.items()}
    norms, written = per_sample_gradient_norms(objective).norms, vmap_grad(objective).sqrt()
    difference = float(((norms - written).abs() / written).max())
    print(f"\n{case.name}; norms differ by {difference:.0e}")
    for name, taken in seconds.items():
        held = f"{peak(case, name):>8.1f} MB" if memory else ""
        print(f"  {name:<18}{taken * 1e3:>9.1f} ms{taken / seconds['gradient']:>8.2f} passes{held}")


def peak(case: Case, contender: str) -> float:
    """Peak memory of one run above that before it, in MB, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gradient_noise", "--peak", case.name, contender]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(case_name: str, contender: str) -> None:
    """Runs one contender once, after a tiny objective has loaded the code."""
    torch.set_num_threads(1)
    (case,) = (case for case in CASES if case.name == case_name)
    objective = case.objective()
    inputs, labels = next(objective.batches())
    CONTENDERS[contender](Objective(objective.model, objective.loss, (inputs[:4], labels[:4])))
    # The kernel's peak, set back to what is held now; `getrusage` hands on the parent's.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    CONTENDERS[contender](objective)
    print((_status("VmHWM") - before) / 1024)


def _status(field: str) -> int:
    """A figure of this process in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Reads the options and measures every case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-memory", action="store_true")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(*options.peak)
        return
    torch.set_num_threads(options.threads)
    print(f"{options.threads} thread(s), medians of {options.repeats} runs")
    for case in CASES:
        measure(case, options.repeats, memory=not options.without_memory)


if __name__ == "__main__":
    main()
