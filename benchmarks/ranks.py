"""`undertow.measure.ranks` against the singular values that WeightWatcher computes.

WeightWatcher 0.7.5 takes `scipy.linalg.svd(..., compute_uv=False)` of every layer in float64 on a
CPU; that call is timed, and its whole `analyze` (power-law fits included) where it is installed.
Alternating runs in one process; the figures are medians, with the largest relative difference of
singular values above s_1 / 10^4 from the float64 SVD.

    python -m benchmarks.ranks [--threads 1|2] [--repeats 5] [--without-weightwatcher]
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from undertow.measure import ranks

Contender = Callable[[nn.Sequential], list[np.ndarray]]


@dataclass(frozen=True)
class Case:
    """So many linear layers of one shape, with float32 weights as PyTorch initialises them."""

    count: int
    rows: int
    cols: int

    def __str__(self) -> str:
        return f"{self.count} x ({self.rows} x {self.cols})"

    def model(self) -> nn.Sequential:
        """The layers, in no working order: only their weights matter."""
        return nn.Sequential(
            *(nn.Linear(self.cols, self.rows, bias=False) for _ in range(self.count))
        )


CASES = (Case(1, 4096, 1024), Case(4, 3072, 768), Case(4, 768, 768), Case(64, 256, 128))


def undertow_ranks(model: nn.Sequential) -> list[np.ndarray]:
    """Ranks, norms and spectra of all layers."""
    return [values.numpy() for values in ranks(model).spectra.values()]


def undertow_exact(model: nn.Sequential) -> list[np.ndarray]:
    """The same by an SVD of every layer."""
    return [values.numpy() for values in ranks(model, exact=True).spectra.values()]


def scipy_values(model: nn.Sequential) -> list[np.ndarray]:
    """WeightWatcher's call, layer by layer."""
    return [
        scipy.linalg.svd(layer.weight.detach().numpy().astype(float), compute_uv=False)
        for layer in model
    ]


def scipy_vectors(model: nn.Sequential) -> list[np.ndarray]:
    """The thin SVD with its vectors."""
    return [
        scipy.linalg.svd(layer.weight.detach().numpy().astype(float), full_matrices=False)[1]
        for layer in model
    ]


def torch_values(model: nn.Sequential) -> list[np.ndarray]:
    """PyTorch's own float64 singular values, layer by layer."""
    return [torch.linalg.svdvals(layer.weight.detach().double()).numpy() for layer in model]


def weightwatcher_analyze(model: nn.Sequential) -> list[np.ndarray]:
    """WeightWatcher as its user runs it; it hands back a table and no spectra."""
    import weightwatcher  # optional, and slow to import

    logging.getLogger("weightwatcher").setLevel(logging.CRITICAL)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        weightwatcher.WeightWatcher(model=model).analyze(plot=False)
    return []


def contenders(*, weightwatcher: bool) -> dict[str, Contender]:
    """What is timed, by name."""
    found: dict[str, Contender] = {
        "undertow": undertow_ranks,
        "undertow exact": undertow_exact,
        "scipy values": scipy_values,
        "scipy thin SVD": scipy_vectors,
        "torch values": torch_values,
    }
    if weightwatcher:
        found["weightwatcher"] = weightwatcher_analyze
    return found


def difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Largest relative difference of singular values above s_1 / 10^4."""
    return max(
        float(np.max(np.abs(one - other)[other > 1e-4 * other[0]] / other[other > 1e-4 * other[0]]))
        for one, other in zip(found, expected, strict=True)
    )


def measure(case: Case, entrants: dict[str, Contender], repeats: int) -> None:
    """Prints the medians of `repeats` alternating runs after one to warm up."""
    model = case.model()
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    values = {name: run(model) for name, run in entrants.items()}
    for _ in range(repeats):
        for name, run in entrants.items():
            start = time.perf_counter()
            run(model)
            seconds[name].append(time.perf_counter() - start)
    ours = statistics.median(seconds["undertow"])
    print(f"\n{case}")
    for name, times in seconds.items():
        median = statistics.median(times)
        error = f"{difference(values[name], values['scipy values']):.0e}" if values[name] else "-"
        print(f"  {name:<16}{median * 1e3:>9.1f} ms{median / ours:>8.2f} x   difference {error}")


def main() -> None:
    """Reads the options and measures every case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-weightwatcher", action="store_true")
    options = parser.parse_args()
    installed = importlib.util.find_spec("weightwatcher") is not None
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    print(f"{options.threads} thread(s), medians of {options.repeats}; x = time over undertow's")
    if not installed:
        print("weightwatcher is not installed: timed without it")
    entrants = contenders(weightwatcher=installed and not options.without_weightwatcher)
    with threadpool_limits(options.threads):
        for case in CASES:
            measure(case, entrants, options.repeats)


if __name__ == "__main__":
    main()
