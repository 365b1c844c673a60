"""SGD noise and implicit low-rank bias (Galanti and Poggio, CBMM Memo 134, 2022).

A batch gradient has rank at most m_l B, so with weight decay what weight_decay x W has beyond that
rank is a floor under every minibatch's regularised gradient, and so under the noise. Tested where
full-batch descent has come to rest, and where SGD with decay throughout has come to no rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import (
    DISTINCT,
    Bound,
    Count,
    Knobs,
    Seeds,
    Share,
    above,
    at_least,
    some,
    up_to,
)

LR = 0.1  # of full-batch descent
# Networks that are trained by SGD, the learning rate and weight decay with which all still learn.
KINDS = {
    "perceptron": (0.2, 2e-3),
    "batch norm": (0.2, 2e-3),
    "convolutions": (0.1, 1e-2),
    "residual": (0.1, 1e-2),
}

_BELOW = Bound(f"below {1 / LR:g}, or a step would overshoot zero", lambda decay: decay < 1 / LR)


@dataclass(frozen=True)
class SgdNoise(Knobs):
    """Knobs."""

    images: Images = Images(train_size=100)  # of the networks that come to rest
    width: Annotated[int, at_least(4)] = 32  # of two hidden layers; the most channels
    # Of the networks at rest; 0 is the control.
    weight_decay: Annotated[tuple[float, ...], at_least(0), _BELOW, some(2), DISTINCT] = (
        *(0.0, 1e-3, 5e-3, 1e-2, 2e-2),
    )
    steps: Count = 8_000  # full-batch steps that bring them to rest
    # Training accuracy that a network at rest must have to be counted.
    fit: Annotated[float, at_least(0), up_to(1)] = 0.99
    # Whose gradients are held against the floor; 1 is compared most closely.
    batch_sizes: Annotated[tuple[int, ...], at_least(1), some(), DISTINCT] = (1, 4)
    batches: Count = 100  # minibatches drawn for each batch size above 1
    samples: Count = 200  # training images of the networks that SGD trains
    small_batch: Annotated[int, at_least(2)] = 4  # of those
    large_batch: Annotated[int, at_least(3)] = 32
    decay_exponent: Annotated[float, above(0)] = 3.0  # lr x weight_decay x steps of their training
    threshold: Share = 0.02  # singular values that count, in parts of the Frobenius norm
    seeds: Seeds = 16  # independent repetitions

    def rules(self) -> Mapping[str, bool]:
        """The control and the closest batch size are there; batches are smaller than the data."""
        size, batches = self.images.train_size, self.batch_sizes
        small, large = self.small_batch, self.large_batch
        return {
            f"weight_decay must hold 0, the control, got {self.weight_decay}": (
                0 in self.weight_decay
            ),
            f"batch_sizes must hold 1, where the floor is close, got {batches}": 1 in batches,
            f"batch_sizes must lie below train_size = {size}, got {batches}": (
                size is None or max(batches) < size
            ),
            f"large_batch must be above small_batch = {small}, got {large}": large > small,
            f"width must be a multiple of 4, for the residual network's groups, got {self.width}": (
                self.width % 4 == 0
            ),
            f"samples must be at least large_batch = {large}, got {self.samples}": (
                self.samples >= large
            ),
        }


_PAPER: dict[str, Any] = {"samples": 1_000, "decay_exponent": 6.0, "seeds": 20}
CLAIM = Claim(
    name="sgd-noise",
    title="Weight decay forces a floor under SGD's noise",
    paper="Galanti and Poggio, SGD Noise and Implicit Low-Rank Bias in Deep Neural Networks (CBMM "
    "Memo 134, 2022)",
    statement="With weight decay, weights of rank above m_l B bring no minibatch's regularised "
    "gradient to zero: its norm is at least weight_decay x sqrt(sum over k > m_l B of s_k(W)^2), "
    "for every batch of B, also where full-batch descent is at rest. The noise grows with the "
    "decay. In perceptrons, convolutional and residual networks little of it is left without, and "
    "a smaller batch leaves weights of smaller rank, with decay throughout and for as many epochs.",
    corrections=(
        "The floor is two lines: W + grad L_S / weight_decay = G_S / weight_decay, and grad L_S "
        "has rank at most m_l B, so G_S / weight_decay is at least as far from zero as W is from "
        "that rank (Eckart and Young).",
        "The low-rank constraint is not the source of the noise, as the memo has it, but a bound: "
        "weights that have rank one themselves, such as the hidden layer of two classes, have no "
        "floor, and noise at rest all the same.",
        "A smaller batch leaves a smaller rank for as many epochs because it takes more steps and "
        "forgets more of its initial weights: after as many steps its rank is no smaller.",
        "A flat plateau of ||W_(e+1) - W_e|| / ||W_e|| in proportion to the weight decay shows no "
        "noise: it is shrinkage, lr x weight_decay x steps, where decay sets in once a network has "
        "fitted and gradients have gone.",
        "A convolution's m_l is the number of its output positions. Where m_l B reaches the "
        "smaller side of the kernel matrix the floor is 0 and says nothing: 1,024 positions "
        "against 64 channels in the first stage of a ResNet-18 on 32 x 32 images, so at every B.",
        "Batch norm in training mode leaves the floor as it is, since the gradient of a batch of B "
        "still has rank at most m_l B. But batch statistics are noise of their own, which no decay "
        "has made, a smaller batch leaves no smaller rank, and the further step that only zero "
        "functions are at rest for every batch breaks: it swaps one sample and takes the other "
        "samples' gradients as given.",
    ),
    presets={
        "smoke": SgdNoise(
            images=Images(train_size=40),
            width=16,
            weight_decay=(0.0, 5e-3, 2e-2),
            steps=500,
            samples=64,
            decay_exponent=0.1,
            seeds=2,
        ),
        "small": SgdNoise(),
        "paper": SgdNoise(Images(train_size=1_000), 256, steps=100_000, **_PAPER),
    },
    costs={"smoke": "10 s", "small": "3 min on two cores", "paper": "days on two cores"},
    home=__name__,
)
