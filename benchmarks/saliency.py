"""Certificates beside the published descent, and insertion curves beside Quantus, on one thread.

The published way is one image and label at a time, 2,000 steps of Adam at 0.05 with 10 backgrounds.
Its objective is compared on backgrounds that neither has seen. Quantus is timed where installed.

    python -m benchmarks.saliency [--images 64] [--pairs 4]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from undertow import data, models
from undertow.measure import saliency

SEED = 1000


def network() -> tuple[torch.nn.Module, Any]:
    """A convolutional network on Fashion-MNIST after 600 steps of Adam."""
    drawn = data.load("fashion-mnist", train_size=6000, test_size=512, seed=SEED)
    generator = torch.Generator().manual_seed(SEED)
    net = models.conv_net((1, 28, 28), (8, 16), 10, generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(600):
        rows = torch.randint(len(drawn.train_inputs), (64,), generator=generator)
        optimizer.zero_grad()
        logits = net(drawn.train_inputs[rows])
        functional.cross_entropy(logits, drawn.train_targets[rows]).backward()
        optimizer.step()
    return net.eval().requires_grad_(False), drawn


def objective(net: Any, image: Tensor, label: int, mask: Tensor, filling: Tensor) -> Tensor:
    """Of one mask, at the published prices."""
    masked = filling + mask * (image - filling)
    fit = -net(masked).log_softmax(1)[:, label].mean()
    squares = mask.diff(dim=-1).square().sum() + mask.diff(dim=-2).square().sum()
    return fit + mask.mean() + 0.01 * squares


def published(net: Any, image: Tensor, label: int, pool: Tensor, generator: Any) -> Tensor:
    """The mask after the published descent."""
    weights = torch.zeros(1, 1, 7, 7, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.05)

    def mask() -> Tensor:
        shape = tuple(image.shape[-2:])
        up = functional.interpolate(weights.sigmoid(), shape, mode="bilinear", align_corners=False)
        return up[0]

    for _ in range(2000):
        filling = pool[torch.randint(len(pool), (10,), generator=generator)]
        optimizer.zero_grad()
        objective(net, image, label, mask(), filling).backward()
        optimizer.step()
    return mask().detach()


def certificates(net: Any, drawn: Any, images: int, pairs: int) -> None:
    """Seconds a mask, and the objectives of the same masks."""
    inputs, pool = drawn.test_inputs[:images], drawn.train_inputs
    start = time.process_time()
    found = saliency.certify(net, inputs, data=pool)
    ours = (time.process_time() - start) / found.labels.numel()
    generator = torch.Generator().manual_seed(SEED + 1)
    judged = pool[torch.randint(len(pool), (512,), generator=generator)]
    excess, seconds = [], []
    for pair in range(pairs):
        image, label = pair % images, (3 * pair) % 10
        start = time.process_time()
        mask = published(net, inputs[image], label, pool, generator)
        seconds.append(time.process_time() - start)
        values = [
            float(objective(net, inputs[image], label, one, judged))
            for one in (found.masks[image, label], mask)
        ]
        excess.append(values[0] - values[1])
    theirs = sum(seconds) / pairs
    print(
        f"certify, {images} images x 10 labels: {1e3 * ours:.1f} ms a mask, published way "
        f"{1e3 * theirs:.0f} ms, {theirs / ours:.0f}x; objective less theirs "
        f"{min(excess):+.3f} to {max(excess):+.3f} nats; block of {found.memory / 2**20:.0f} MiB"
    )


def curves(net: Any, drawn: Any, images: int) -> None:
    """Insertion curves beside Quantus' pixel flipping of the negated map, read backwards."""
    try:
        import quantus  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        print("Quantus is not installed")
        return
    import numpy as np

    inputs = drawn.test_inputs[:images]
    labels = net(inputs).argmax(1)
    maps = saliency.gradient_x_input(net, inputs, labels).sum(1)
    saliency.evaluate(net, inputs, {"m": maps}, labels=labels, background=0.0)
    start = time.process_time()
    found = saliency.evaluate(net, inputs, {"m": maps}, labels=labels, background=0.0)
    ours = time.process_time() - start
    call = {
        "model": net,
        "x_batch": inputs.numpy(),
        "y_batch": labels.numpy(),
        "a_batch": -maps[:, None].numpy(),
        "softmax": True,
        "device": "cpu",
    }
    for batch in (1, images):
        metric = quantus.PixelFlipping(
            features_in_step=28, perturb_baseline=0.0, abs=False, normalise=False,
            disable_warnings=True,
        )  # fmt: skip
        start = time.process_time()
        curve = np.array(metric(**call, batch_size=batch))
        theirs = time.process_time() - start
        # After j steps the 28 j least pixels are gone: budgets from the whole input down to 28.
        values = found.curves["m"].values[0, :, 0, :-1].flip(1).numpy()
        apart = np.abs(curve[:, : values.shape[1]] - values).max()
        print(
            f"curves, {images} images, Quantus with batch_size {batch}: {theirs / ours:.1f}x our "
            f"{ours:.3f} s; largest difference {apart:.1e}"
        )


def main() -> None:
    """Both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    net, drawn = network()
    curves(net, drawn, arguments.images)
    certificates(net, drawn, arguments.images, arguments.pairs)


if __name__ == "__main__":
    main()
