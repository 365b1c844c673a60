"""SGD with weight decay makes weights low-rank (Galanti, Siegel, Gupte and Poggio, 2206.05794).

What is tested: rank against batch size, learning rate and weight decay in perceptrons,
convolutional and residual networks; whether the batch size matters beyond the decay exponent
E = sum lr x weight_decay; the law of what is left; the paper's bound where it says something.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import DISTINCT, Count, Knobs, Seeds, Share, above, at_least, some, up_to


@dataclass(frozen=True)
class LowRank(Knobs):
    """Knobs. The middle learning rate and the middle positive weight decay are the baseline."""

    images: Images = Images(train_size=1000)
    # Hidden widths; ranks are those of the matrices between hidden layers.
    widths: Annotated[tuple[int, ...], at_least(1), some(2)] = (128, 128, 128)
    # Compared at fixed epochs and at fixed steps.
    batch_sizes: Annotated[tuple[int, ...], at_least(1), some()] = (4, 8, 32)
    # Compared at the smallest batch size.
    lr: Annotated[tuple[float, ...], above(0), some()] = (0.03, 0.05, 0.08)
    # Compared at the smallest batch size; 0 is the control.
    weight_decay: Annotated[tuple[float, ...], at_least(0)] = (0.0, 2e-3, 6e-3, 1e-2)
    epochs: Count = 60  # of the fixed-epochs comparison
    threshold: Share = 1e-2  # singular values above threshold x ||W||_F count
    # Training accuracy that a network must have to be counted.
    fit: Annotated[float, at_least(0), up_to(1)] = 0.9
    # Of convolutional and residual networks.
    channels: Annotated[int, at_least(4)] = 32
    conv_images: Count = 400
    conv_batches: Annotated[tuple[int, ...], at_least(1), some(2), DISTINCT] = (4, 16)
    conv_epochs: Count = 30
    wide: Count = 512  # width of the networks in which the paper's bound is below the width
    wide_epochs: Count = 3
    device: str = "cpu"  # where to train the perceptrons
    seeds: Seeds = 24  # independent repetitions; half as many of kernels, which scatter less

    def rules(self) -> Mapping[str, bool]:
        """Something decays; channels fall into groups; two of ten classes fill a batch of 32."""
        size = self.images.train_size
        return {
            f"train_size must be at least 160, got {size}": size is None or size >= 160,
            f"weight_decay needs at least one positive value, got {self.weight_decay}": any(
                self.weight_decay
            ),
            f"channels must be a multiple of 4, got {self.channels}": self.channels % 4 == 0,
        }


CLAIM = Claim(
    name="low-rank",
    title="SGD with weight decay makes weight matrices low-rank",
    paper="Galanti, Siegel, Gupte and Poggio, SGD and Weight Decay Provably Induce a Low-Rank Bias "
    "in Deep Neural Networks (arXiv 2206.05794)",
    statement="At a fixed number of epochs, smaller batches, higher learning rates and stronger "
    "weight decay leave hidden matrices and kernels of lower rank, without weight decay nothing of "
    "the sort happens, and test accuracy hardly depends on the batch size. In perceptrons "
    "rank falls along one curve in the decay exponent E = sum of lr x weight decay, whatever "
    "the batch size, and follows from E, the initialiser and what was learned. Under norm "
    "layers E is part of what the batch size does to convolutional and residual networks, and "
    "their weights are larger at small batches.",
    corrections=(
        "The bound m_l B log(2/eps) / (lr weight_decay) grows with the batch size B, and small "
        "batches do have lower rank at fixed epochs. But they also take more steps. At equal E "
        "perceptrons differ by less than two ranks of 128 until their initial weights are "
        "forgotten, and small batches have no lower rank from then on.",
        "The bound exceeds the width of every perceptron and kernel here by orders of magnitude. "
        "Where lr x weight decay is so large that it does not (batches of one, two classes, width "
        "512) it holds a hundred times over, and larger batches, of which it says nothing, have "
        "the same rank.",
        "W_T = f W_0 + G_T with f = prod (1 - lr_t weight_decay): rank is that of a shrunk random "
        "start and of what was learned, in general position. Under a norm layer the learned part "
        "of a kernel is not in general position: it cancels some of the start. There a small batch "
        "has the lower rank at equal E, too, as long as initial weights survive.",
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
            channels=8,
            conv_images=100,
            conv_batches=(4, 20),
            conv_epochs=3,
            wide=64,
            wide_epochs=1,
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
            channels=128,
            conv_images=50_000,
            conv_batches=(4, 128),
            conv_epochs=100,
            wide=2048,
            device="cuda",
        ),
    },
    costs={
        "smoke": "10 s",
        "small": "4 min on two cores",
        "paper": "days on a GPU; needs --data-root with CIFAR-10",
    },
    home=__name__,
)
