"""SGD noise and implicit low-rank bias (Galanti and Poggio, CBMM Memo 134, 2022).

A batch gradient has rank at most m_l B, so with weight decay what weight_decay x W has beyond that
rank is a floor under every minibatch's regularised gradient, and so under the noise. Tested where
full-batch descent has come to rest, and against what is only shrinkage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import DISTINCT, Bound, Count, Knobs, Seeds, at_least, between, some, up_to

LR = 0.1
SHRINK_BATCH = 16  # of the displacement experiment

_BELOW = Bound(f"below {1 / LR:g}, or a step would overshoot zero", lambda decay: decay < 1 / LR)


@dataclass(frozen=True)
class SgdNoise(Knobs):
    """Knobs."""

    images: Images = Images(train_size=100)  # of the networks that come to rest
    width: Annotated[int, at_least(2)] = 32  # of their two hidden layers
    # Of those networks; 0 is the control.
    weight_decay: Annotated[tuple[float, ...], at_least(0), _BELOW, some(2), DISTINCT] = (
        *(0.0, 1e-3, 5e-3, 1e-2, 2e-2),
    )
    steps: Count = 8_000  # full-batch steps that bring them to rest
    # Training accuracy that a network at rest must have to be counted.
    fit: Annotated[float, at_least(0), up_to(1)] = 0.99
    # Whose gradients are held against the floor; 1 is compared most closely.
    batch_sizes: Annotated[tuple[int, ...], at_least(1), some(), DISTINCT] = (1, 4)
    batches: Count = 100  # minibatches drawn for each batch size above 1
    # Training images of the displacement experiment.
    shrink_samples: Annotated[int, at_least(SHRINK_BATCH)] = 400
    shrink_decay: Annotated[float, between(0, 1 / LR)] = 1e-3  # its weight decay
    fit_steps: Count = 20_000  # steps without decay before it
    late_epochs: Count = 600  # of SGD with decay after which the displacement is read again
    seeds: Seeds = 10  # independent repetitions

    def rules(self) -> Mapping[str, bool]:
        """The control and the closest batch size are there; batches are smaller than the data."""
        size, batches = self.images.train_size, self.batch_sizes
        return {
            f"weight_decay must hold 0, the control, got {self.weight_decay}": (
                0 in self.weight_decay
            ),
            f"batch_sizes must hold 1, where the floor is close, got {batches}": 1 in batches,
            f"batch_sizes must lie below train_size = {size}, got {batches}": (
                size is None or max(batches) < size
            ),
        }


CLAIM = Claim(
    name="sgd-noise",
    title="Weight decay forces a floor under SGD's noise",
    paper="Galanti and Poggio, SGD Noise and Implicit Low-Rank Bias in Deep Neural Networks (CBMM "
    "Memo 134, 2022)",
    statement="With weight decay, weights of rank above m_l B bring no minibatch's regularised "
    "gradient to zero: its norm is at least weight_decay x sqrt(sum over k > m_l B of s_k(W)^2), "
    "for every batch of B, also where full-batch descent is at rest. The noise grows with the "
    "decay and is gone without.",
    corrections=(
        "The floor is two lines: W + grad L_S / weight_decay = G_S / weight_decay, and grad L_S "
        "has rank at most m_l B, so G_S / weight_decay is at least as far from zero as W is from "
        "that rank (Eckart and Young). Noise and rank excess are one number.",
        "A flat plateau of ||W_(e+1) - W_e|| / ||W_e|| in proportion to the weight decay has been "
        "shown as evidence of noise. Just after fitting it is shrinkage: its size is lr x "
        "weight_decay x steps, its direction is -W, and full-batch descent has the same. Noise is "
        "the part that depends on the order of the data. It is tangential, but not all that is "
        "tangential is noise: from the same weights full-batch descent moves sideways too.",
        "A convolution's m_l is the number of its output positions. Where m_l B reaches the "
        "smaller side of the kernel matrix the floor is 0 and says nothing: 1,024 positions "
        "against 64 channels in the first stage of a ResNet-18 on 32 x 32 images, so at every B.",
        "Batch norm in training mode leaves the floor as it is, since the gradient of a batch of B "
        "still has rank at most m_l B. It breaks the further step that only zero functions are at "
        "rest for every batch: that swaps one sample and takes the other samples' gradients as "
        "given, and batch statistics couple them.",
    ),
    presets={
        "smoke": SgdNoise(
            images=Images(train_size=40),
            width=16,
            weight_decay=(0.0, 5e-3, 2e-2),
            steps=500,
            fit_steps=300,
            late_epochs=5,
            seeds=2,
        ),
        "small": SgdNoise(),
        "paper": SgdNoise(images=Images(train_size=1_000), width=256, steps=100_000, seeds=20),
    },
    costs={"smoke": "10 s", "small": "2 to 3 min on two cores", "paper": "a day on two cores"},
    home=__name__,
)
