"""SGD with weight decay makes weights low-rank (Galanti, Siegel, Gupte and Poggio, 2206.05794).

What is tested: rank against batch size, learning rate and weight decay; the exact rank identity
behind the paper's bound; and whether batch size matters beyond the decay exponent
E = sum lr x weight_decay, by which the initial weights have been forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import Count, Knobs, Seeds, Share, above, at_least, some, up_to


@dataclass(frozen=True)
class LowRank(Knobs):
    """Knobs. The middle learning rate and the middle positive weight decay are the baseline."""

    images: Images = Images()
    # Hidden widths; ranks are those of the matrices between hidden layers.
    widths: Annotated[tuple[int, ...], at_least(1), some(2)] = (128, 128, 128)
    # Compared at fixed epochs and at fixed steps.
    batch_sizes: Annotated[tuple[int, ...], at_least(1), some()] = (4, 16, 64)
    # Compared at the smallest batch size.
    lr: Annotated[tuple[float, ...], above(0), some()] = (0.02, 0.04, 0.06)
    # Compared at the smallest batch size; 0 is the control.
    weight_decay: Annotated[tuple[float, ...], at_least(0)] = (0.0, 1e-3, 2.5e-3, 4e-3)
    epochs: Count = 70  # of the fixed-epochs comparison
    threshold: Share = 1e-2  # singular values above threshold x ||W||_F count
    # Training accuracy that a run must reach to be counted.
    fit: Annotated[float, at_least(0), up_to(1)] = 0.99
    identity_steps: Count = 5  # over which the exact rank identity is checked
    device: str = "cpu"  # where to train
    seeds: Seeds = 12  # independent repetitions

    def rules(self) -> Mapping[str, bool]:
        """Something decays."""
        return {
            f"weight_decay needs at least one positive value, got {self.weight_decay}": any(
                self.weight_decay
            )
        }

    @property
    def baseline_lr(self) -> float:
        """The middle learning rate."""
        return sorted(self.lr)[len(self.lr) // 2]

    @property
    def baseline_decay(self) -> float:
        """The middle positive weight decay."""
        positive = sorted(value for value in self.weight_decay if value > 0)
        return positive[len(positive) // 2]


CLAIM = Claim(
    name="low-rank",
    title="SGD with weight decay makes weight matrices low-rank",
    paper="Galanti, Siegel, Gupte and Poggio, SGD and Weight Decay Provably Induce a Low-Rank Bias "
    "in Deep Neural Networks (arXiv 2206.05794)",
    statement="At a fixed number of epochs, smaller batches, higher learning rates and stronger "
    "weight decay leave hidden weight matrices of lower rank, and without weight decay nothing "
    "of the sort happens. The rank is what survives of the initial weights after the decay "
    "exponent E = sum of lr x weight decay, plus what was learned; at equal E the batch size has "
    "no effect of its own.",
    corrections=(
        "The bound m_l B log(2/eps) / (lr weight_decay) grows with the batch size B, and small "
        "batches do have lower rank at fixed epochs. But they also take more steps. At equal "
        "steps, hence equal E, the effect of B vanishes or reverses: W_T = f W_0 + G_T with "
        "f = prod (1 - lr_t weight_decay), and the threshold rank counts the singular values of "
        "f W_0 that are still above threshold x ||W_T||_F until the rank of G_T is the larger.",
        "The bound exceeds the width of every layer in every setting here (see the table), so "
        "it cannot be what makes the rank low.",
        "The identity rank(W_T - (1 - lr weight_decay)^n W_(T-n)) <= n m_l B is exact, for plain "
        "SGD with coupled decay only: momentum and AdamW break it, and AdamW learns a part of "
        "higher rank.",
    ),
    presets={
        "smoke": LowRank(
            images=Images(train_size=300),
            widths=(32, 32),
            batch_sizes=(4, 16),
            lr=(0.1,),
            weight_decay=(0.0, 4e-3),
            epochs=12,
            seeds=2,
            fit=0.9,
        ),
        "small": LowRank(),
        "paper": LowRank(
            images=Images("cifar10"),
            widths=(500, 500, 500, 500, 500),
            batch_sizes=(4, 8, 16, 32, 64, 128),
            lr=(0.01, 0.1, 0.5),
            weight_decay=(0.0, 1e-4, 2e-4, 4e-4, 8e-4),
            epochs=500,
            threshold=1e-3,
            device="cuda",
        ),
    },
    costs={
        "smoke": "10 s",
        "small": "3 min on two cores",
        "paper": "days on a GPU; needs --data-root with CIFAR-10",
    },
    home=__name__,
)
