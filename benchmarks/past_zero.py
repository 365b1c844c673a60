"""Training to a log loss of -9,000 on all digits, on one core: `undertow.train.past_zero_loss`.

A perceptron 64-64-64-10 without biases in float64, from PyTorch's initial weights, on the 1,437
training images of a split. The bound of two minutes is of process time, on one thread.

    python -m benchmarks.past_zero [--log-loss -9000] [--seed 1000]
"""

from __future__ import annotations

import argparse
import time

import torch

from undertow import models, train
from undertow.data import Images


def main() -> None:
    """Train, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log-loss", type=float, default=-9000.0)
    parser.add_argument("--seed", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    drawn = Images().draw([arguments.seed])
    generator = torch.Generator().manual_seed(arguments.seed)
    net = models.mlp((64, 64, 64, 10), bias=False, generator=generator)
    inputs, labels = drawn.inputs.flatten(1)[drawn.train], drawn.targets[drawn.train]
    networks = train.LogDomain([net], inputs, labels)
    start = time.process_time()
    steps = train.past_zero_loss(networks, arguments.log_loss)
    seconds = time.process_time() - start
    margin = networks.normalized_margins(3)["normalized"]
    print(
        f"log loss {float(networks.log_loss()[0]):,.0f} after {float(steps[0]):,.0f} steps in "
        f"{seconds:.1f} s of one core; margin over rho^3 {float(margin[0]):.4g}"
    )


if __name__ == "__main__":
    main()
