"""`flows.sgd_sde` beside torchsde, and how fast the SDEs of optimizers approach their rules.

Speed: least processor time of alternating runs of the same Euler-Maruyama scheme in one process, on
a quadratic with diagonal noise (torchsde's fastest kind), with the second moments of both beside
the exact ones. Order: the error of second moments against the learning rate, the discrete rule
driven by the same normal numbers as the SDE; and SVAG's error against l.

    python -m benchmarks.sde [--repeats 5] [--steps 200] [--replicas 4000]
        [--only speed|order]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from undertow.train import flows

LR, SUBSTEPS = 0.1, 8


class Quadratic:
    """L = sum h_i x_i^2 / 2 with independent noise; also as torchsde wants an SDE."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, replicas: int, size: int) -> None:
        self.curvature = torch.linspace(0.2, 2, size, dtype=torch.float64)
        self.variance = torch.linspace(2, 0.5, size, dtype=torch.float64)
        self.start = torch.ones(replicas, size, dtype=torch.float64)
        self._diffusion = (LR * self.variance).sqrt().expand(replicas, size).contiguous()

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """The drift."""
        return -self.curvature * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """The diagonal of the diffusion."""
        return self._diffusion

    def ours(self, steps: int, seed: int) -> Tensor:
        """The end of `sgd_sde`."""
        problem = flows.NoisyGradient(lambda x: self.curvature * x, covariance=self.variance)
        return flows.sgd_sde(
            problem,
            steps * LR / SUBSTEPS,
            lr=LR,
            start=self.start,
            substeps=SUBSTEPS,
            generator=torch.Generator().manual_seed(seed),
        ).states[-1]

    def theirs(self, steps: int, seed: int) -> Tensor:
        """The end of torchsde's `sdeint`."""
        import torchsde

        end = steps * LR / SUBSTEPS
        motion = torchsde.BrownianInterval(
            0.0, end, size=self.start.shape, dtype=torch.float64, entropy=seed
        )
        span = torch.tensor([0.0, end], dtype=torch.float64)
        return torchsde.sdeint(self, self.start, span, bm=motion, dt=LR / SUBSTEPS, method="euler")[
            -1
        ]

    def exact(self, steps: int) -> Tensor:
        """Second moments of the SDE itself."""
        shrunk = torch.exp(-2 * self.curvature * steps * LR / SUBSTEPS)
        return shrunk + LR * self.variance * (1 - shrunk) / (2 * self.curvature)


def speed(replicas: int, size: int, steps: int, repeats: int) -> None:
    """Prints the cost of a step for both, and how far their moments are from the exact ones."""
    problem = Quadratic(replicas, size)
    contenders: dict[str, Callable[[int, int], Tensor]] = {"ours": problem.ours}
    try:
        import torchsde  # noqa: F401

        contenders["torchsde"] = problem.theirs
    except ImportError:
        print("torchsde is not installed")
    least = dict.fromkeys(contenders, math.inf)
    ends: dict[str, list[Tensor]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, run in contenders.items():
            begin = time.process_time()
            ends[name].append(run(steps, 2 * repeat + (name == "ours")))
            if repeat:
                least[name] = min(least[name], time.process_time() - begin)
    exact = problem.exact(steps)
    print(f"\n{replicas:,} replicas of {size:,} parameters, {steps} steps")
    for name, seconds in least.items():
        squares = torch.cat(ends[name]).square()
        scores = (squares.mean(0) - exact) / (squares.std(0) / math.sqrt(len(squares)))
        ratio = seconds / least["ours"]
        print(
            f"  {name:<9}{seconds / steps * 1e6:>9.0f} us a step{ratio:>7.1f}x"
            f"   moments off by {float(scores.square().mean().sqrt()):.2f} standard errors (rms)"
        )


def order(replicas: int) -> None:
    """Prints the error of second moments against the learning rate, and against SVAG's l."""
    # The coupling of a rule with its SDE, which the tests use in small.
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "train" / "flows"))
    import weak_order as coupled

    def show(title: str, units: list[float], gaps: list[Tensor]) -> None:
        slope, stderr = coupled.order(units, gaps)
        sizes = "  ".join(
            f"{unit:.4g}: {float(gap.mean(0).norm()):.2e}"
            for unit, gap in zip(units, gaps, strict=True)
        )
        print(f"  {title:<34} slope {slope:+.3f} +- {stderr:.3f}   {sizes}")

    cases = {"quadratic": (coupled.quadratic(), 1.0), "network": (coupled.network(), 0.5)}
    print(f"\nsize of the error of E theta^2, {replicas:,} replicas")
    for kind in ("sgd", "rmsprop", "adam"):
        ratio = 2.0 if kind == "sgd" else math.sqrt(2)
        for name, (case, end) in cases.items():
            common = {"time": end, "replicas": replicas}
            rates = [0.125 / ratio**k for k in range(5)]
            if kind != "sgd":
                rates = [2**-1.5 / ratio**k for k in range(6)]
            show(
                f"{kind}, {name}, lr",
                rates,
                [coupled.gap(kind, case, lr, **common) for lr in rates],
            )
            if kind == "adam":
                gaps = [coupled.gap(kind, case, lr, age=0.0, **common) for lr in rates]
                show(f"{kind} from time 0, {name}, lr", rates, gaps)
            levels = [1.0, 2.0, 4.0, 8.0]
            gaps = [coupled.gap(kind, case, rates[0], finer=level, **common) for level in levels]
            show(f"{kind}, {name}, SVAG's l", levels, gaps)


def main() -> None:
    """Reads the options and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--replicas", type=int, default=4000)
    parser.add_argument("--only", choices=("speed", "order"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only != "order":
        for replicas, size in ((1000, 10), (100, 1000)):
            speed(replicas, size, options.steps, options.repeats)
    if options.only != "speed":
        order(options.replicas)


if __name__ == "__main__":
    main()
