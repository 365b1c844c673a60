"""Saliency maps that are complete and sound (Gupta, Saunshi, Yu, Lyu, Arora, 2022; 2211.02912).

Masks of wrong labels can be found as those of the right one can. Completeness asks whether a map
keeps its label, soundness whether it makes one up; both are read off the network alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import ASCENDING, Count, Knobs, Seeds, above, at_least, some


@dataclass(frozen=True)
class Saliency(Knobs):
    """Knobs."""

    images: Images = Images("fashion-mnist", train_size=4_000)
    other: str | None = "mnist-5k"  # the second data set, as many images of it; None for none
    channels: Annotated[tuple[int, ...], at_least(1), some()] = (8, 16)  # of each convolution
    train_steps: Count = 600  # of Adam, in batches of 64
    test_size: Count | None = 1_000  # held-out images from which the explained ones are drawn
    explained: Annotated[int, at_least(2)] = 16  # held-out images a network
    wrong: Count = 2  # labels beside the predicted one, drawn for each image; at most all others
    mask_steps: Count = 180  # at most, of a mask's descent
    upsample: Annotated[int, at_least(2)] = 4  # side of a cell of coarse masks, in pixels
    total_variation: Annotated[float, above(0)] = 0.01  # the published price, in nats
    dearer: Annotated[float, above(0)] = 1.0  # a higher price of it, in nats
    # Of the blocks of masks in a linear softmax, in pixels.
    sides: Annotated[tuple[int, ...], at_least(1), some(2), ASCENDING] = (1, 2, 4, 7)
    seeds: Seeds = 14  # networks on each data set

    @property
    def data(self) -> tuple[str, ...]:
        """The data sets."""
        return (self.images.data, *((self.other,) if self.other else ()))

    def rules(self) -> Mapping[str, bool]:
        """Two data sets are two; a dearer price is one; sides begin with single pixels."""
        price, first = self.total_variation, self.sides[0]
        return {
            f"other must not be {self.other}, the first data set": self.other != self.images.data,
            f"dearer must be above total_variation = {price:g}, got {self.dearer:g}": (
                self.dearer > price
            ),
            f"sides must begin with 1, single pixels, got {first}": first == 1,
        }


CLAIM = Claim(
    name="saliency",
    title="Masks can be found for wrong labels, too; coarse ones find fewer",
    paper="Gupta, Saunshi, Yu, Lyu and Arora, New Definitions and Evaluations for Saliency "
    "Methods: Staying Intrinsic, Complete and Sound (arXiv 2211.02912, NeurIPS 2022)",
    statement="That a map keeps its label is no evidence for it. In small convolutional networks "
    "on two data sets masks that nothing regularises keep their label (completeness above 0.95), "
    "and are found for wrong labels, too (soundness below 0.5); gradient x input is less sound "
    "still. Masks upsampled by 4, with total variation, gain more than 0.1 of soundness, and lose "
    "less of completeness. But that does not single them out. A linear softmax gains more than "
    "0.1, too, where the autocovariance of attributions foretells how fast evidence for wrong "
    "labels falls with the side of blocks; and noise mixed into the order of a fine mask's pixels "
    "makes it as sound at a smaller loss. SmoothGrad is far sounder than masks.",
    corrections=(
        "Soundness does not justify upsampling and total variation, as the paper has it: noise "
        "that makes fine masks as sound leaves them more complete.",
        "Total variation at its published price gains no soundness, in fine masks or in coarse "
        "ones. At a hundred times that price it does, at a larger loss than noise.",
        "The published code puts probabilities through a second softmax. That by itself gains more "
        "than 0.1 of soundness, at a smaller loss than noise: what regularisers gain in that code "
        "is on top of it.",
        "Masks do not match other methods in both numbers: of four gradient methods two are more "
        "complete and two far sounder.",
        "Neither number asks whether a map is of its label: the masks of the predicted label, "
        "given for every label, are as complete as before and sound above 0.9.",
        "Were attributions white, evidence in blocks would fall as 1 / side. They are correlated, "
        "and it falls more slowly.",
    ),
    presets={
        "smoke": Saliency(
            images=Images(train_size=200),
            other=None,
            channels=(4,),
            train_steps=30,
            test_size=200,
            explained=4,
            mask_steps=20,
            upsample=2,
            sides=(1, 2),
            seeds=2,
        ),
        "small": Saliency(),
        "paper": Saliency(
            images=Images("cifar10"),
            other="fashion-mnist",
            channels=(32, 64, 128),
            train_steps=20_000,
            explained=200,
            wrong=9,
            mask_steps=900,
            seeds=24,
        ),
    },
    costs={"smoke": "10 s", "small": "4 min on two cores", "paper": "days on two cores"},
    home=__name__,
)
