"""The intrinsic learning rate (Li, Lyu, Arora, NeurIPS 2020; arXiv 2010.02916).

Weights under normalisation have no size that matters: noise makes them grow, decay makes them
shrink, and lr x weight_decay alone says where the two balance, and after how many steps the
network's function has forgotten its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import Bound, Count, Knobs, Seeds, Share, above, at_least, some

# Of the networks under each norm. A unit of a ReLU that layer norm lets die is a memory of its own.
KINDS = {"batch norm": ("batch", "relu"), "layer norm": ("layer", "leaky_relu")}
CONTROLS = {"no norm": ("none", "relu"), "trained head": ("batch", "relu")}


@dataclass(frozen=True)
class IntrinsicLr(Knobs):
    """Knobs."""

    images: Images = Images(train_size=400)
    width: Count = 32  # of two hidden layers
    batch_size: Annotated[int, at_least(2)] = 16
    lr: Annotated[float, above(0)] = 0.2
    product: Share = 8e-3  # lr x weight_decay, the largest
    halvings: Annotated[int, at_least(2)] = 2  # of it
    members: Annotated[int, at_least(2)] = 32  # of an ensemble
    shown: Count = 200  # test images on which laws of the output are compared
    horizon: Annotated[int, at_least(3)] = 6  # steps, in parts of 1 / (lr x weight_decay)
    momentum: Share = 0.9
    seeds: Seeds = 12

    @property
    def products(self) -> tuple[float, ...]:
        """All intrinsic learning rates, each half of the one before."""
        return tuple(self.product / 2**halving for halving in range(self.halvings + 1))
