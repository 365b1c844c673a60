"""The Janus effects of SGD against gradient descent (Xu, Galanti, Rangamani, Rosasco, Poggio 2023).

With weight decay SGD, unlike gradient descent, never comes to rest, and its rank is lower after as
many epochs. Tested on linear regression, where the noise can be computed before the run, and on a
deep network, where gradients at the point at which descent rests say what it will be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import DISTINCT, Bound, Count, Knobs, Seeds, above, at_least, some

DEEP_BATCH = 8  # of SGD on the deep network

_SOME = Bound("values of which one is positive", any, whole=True)
Decays = Annotated[tuple[float, ...], at_least(0), DISTINCT, _SOME]


@dataclass(frozen=True)
class Janus(Knobs):
    """Knobs."""

    images: Images = Images(train_size=200)  # of the deep network; the regression takes fewer
    samples: Count = 40  # training samples of the regressions
    dimension: int = 200  # of the Gaussian inputs; above samples, so that there is a null space
    # SGD's; gradient descent, a batch of all samples, is always included.
    batch_sizes: Annotated[tuple[int, ...], at_least(1), some(), DISTINCT] = (1, 4, 10)
    lr: Annotated[float, above(0)] = 2.0  # of the regressions, whose inputs have norm 1
    weight_decay: Decays = (2e-5, 2e-4, 2e-3)  # of the regressions; 0 is always included
    epochs: Count = 60  # at which ranks and the null-space component are read
    late_steps: Count = 10_000  # after which the updates' fluctuation is read
    width: Count = 32  # of the deep network's two hidden layers
    deep_steps: Count = 6_000  # of the deep network's training
    deep_weight_decay: Decays = (0.0, 1e-2, 2e-2)  # 0 is the control
    seeds: Seeds = 20  # independent repetitions

    def rules(self) -> Mapping[str, bool]:
        """Batches are smaller than the data, and these leave a null space."""
        size = self.images.train_size
        return {
            f"dimension must exceed samples, or the data leave no null space, got "
            f"{self.dimension} and {self.samples}": self.dimension > self.samples,
            f"batch_sizes must lie below samples = {self.samples} (gradient descent is always "
            f"included), got {self.batch_sizes}": max(self.batch_sizes) < self.samples,
            f"train_size must be above {DEEP_BATCH}, the batch size of the deep network's SGD, "
            f"got {size}": size is not None and size > DEEP_BATCH,
            f"deep_steps must be at least twice an epoch of the deep network's SGD and 200 more, "
            f"got {self.deep_steps}": size is not None
            and self.deep_steps >= 2 * (size // DEEP_BATCH + 101),
        }

    @property
    def strongest(self) -> float:
        """The regressions' largest weight decay."""
        return max(self.weight_decay)

    @property
    def smallest(self) -> int:
        """The batch size at which SGD takes the most steps an epoch."""
        return min(self.batch_sizes)

    def steps_of(self, batch_size: int) -> int:
        """How many steps `epochs` epochs take."""
        return self.epochs * -(-self.samples // batch_size)

    def late_of(self, batch_size: int) -> int:
        """After how many whole epochs of steps the fluctuation is read."""
        epoch = -(-self.samples // batch_size)
        return epoch * -(-self.late_steps // epoch)


CLAIM = Claim(
    name="janus",
    title="SGD with weight decay never rests, and per epoch forgets more",
    paper="Xu, Galanti, Rangamani, Rosasco and Poggio, The Janus effects of SGD vs GD: high noise "
    "and low rank (CBMM Memo 144, 2023)",
    statement="With weight decay SGD never comes to rest, in shuffled or in fixed order, while "
    "gradient descent does. In linear regression a fixed order ends on one periodic orbit, and "
    "the noise of either order is, to first order in the decay, that of the batches' gradients at "
    "the ridge solution; in a deep network it is that of the gradients where gradient descent "
    "rests. After as many epochs SGD's rank is the lower one, as it takes N / B times as many "
    "steps, each of which forgets as much.",
    corrections=(
        "An abstract of this work has SGD's null-space component decay exponentially and that of "
        "gradient descent linearly. Both are geometric: the gradient of any minibatch lies in the "
        "span of its inputs, so W_perp <- (1 - lr weight_decay) W_perp at every step of either. "
        "The gap is N / B per epoch and none per step.",
        "Low rank is not SGD's alone: at equal steps the linear model has the same stable rank "
        "under both, and full-batch descent with decay lowers the rank of a deep network as far.",
        "Gradient descent on a ReLU network does not come to rest altogether: it chatters at "
        "kinks, at a small part of SGD's noise. On a smooth network it does.",
    ),
    presets={
        "smoke": Janus(
            images=Images(train_size=100),
            batch_sizes=(4, 10),
            weight_decay=(2e-4, 2e-3),
            epochs=20,
            late_steps=2_000,
            deep_steps=300,
            seeds=2,
        ),
        "small": Janus(),
        "paper": Janus(
            seeds=50,
            batch_sizes=(1, 2, 4, 8, 10, 20),
            width=64,
            deep_steps=40_000,
            images=Images(train_size=1_000),
        ),
    },
    costs={"smoke": "10 s", "small": "90 s on two cores", "paper": "3 h on two cores"},
    home=__name__,
)
