"""On the SDEs and scaling rules for adaptive gradient algorithms (Malladi et al., 2205.10287).

RMSprop and Adam where noise dominates: the SDE that SVAG (2102.12470) tends to, at which order, and
the square-root rule that keeps it at another batch size, against the linear rule and none. On an
oscillator whose second moment is known, on handwritten digits, and on text with a transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.data import Images, Text
from undertow.lab import Bound, Count, Knobs, Seeds, Share, at_least, some

IMAGE_BATCH, TEXT_BATCH = 4, 2  # of the base runs
FACTOR = 4  # at which every series is judged
SHORT_FACTORS = (4, 8, 16, 32, 64)  # of the series with a short memory

RISING = Bound(
    "values that rise from 1", lambda v: v[:1] == (1,) and list(v) == sorted(set(v)), whole=True
)
JUDGED = Bound(f"values with {FACTOR} among them", lambda v: FACTOR in v, whole=True)
Levels = Annotated[tuple[int, ...], RISING, some(3)]
Factors = Annotated[tuple[int, ...], at_least(2), JUDGED]


@dataclass(frozen=True)
class AdaptiveSde(Knobs):
    """Knobs."""

    images: Images = Images(train_size=1280)
    text: Text = Text(windows=2048, context=8)
    levels: Levels = (1, 2, 4, 8)  # SVAG's l on the oscillator
    paths: Count = 2**16  # of the oscillator in each of its blocks, times l
    blocks: Count = 10  # repetitions of the oscillator
    limit_levels: Levels = (1, 2, 3, 6)  # on the network; the last stands for the SDE
    limit_steps: Count = 64  # Adam's own steps there
    replicas: Count = 48  # runs from the same initial weights, whose mean curve is taken
    inits: Count = 12  # initial weights
    label_noise: Share = 0.6  # share of labels drawn at random, where noise is to dominate
    epochs: Count = 20  # of the runs at several batch sizes, on images
    factors: Factors = (4, 8, 16)  # by which the batch grows
    text_epochs: Count = 4  # of those on text
    text_factors: Factors = (4, 16)  # by which the batch grows, on text
    seeds: Seeds = 10  # independent repetitions on images
    text_seeds: Seeds = 14  # independent repetitions on text

    def rules(self) -> Mapping[str, bool]:
        """Every batch divides the data, so that equal epochs are equal times."""
        images = (self.images.train_size, IMAGE_BATCH, (*self.factors, *SHORT_FACTORS))
        text = (self.text.windows, TEXT_BATCH, self.text_factors)
        return {
            f"{name} must be a multiple of every batch, {batch} times {sorted(set(factors))}, got "
            f"{size}": size is not None and not any(size % (batch * k) for k in factors)
            for name, (size, batch, factors) in {"train_size": images, "windows": text}.items()
        }


CLAIM = Claim(
    name="adaptive-sde",
    title="Adam and RMSprop follow an SDE, and the square-root rule keeps it",
    paper="Malladi, Lyu, Panigrahi and Arora, On the SDEs and Scaling Rules for Adaptive Gradient "
    "Algorithms (2022), arXiv:2205.10287; SVAG: Li, Malladi and Arora, On the Validity of Modeling "
    "SGD with Stochastic Differential Equations (2021), arXiv:2102.12470",
    statement="Where gradient noise dominates, Adam and RMSprop follow stochastic differential "
    "equations in the time steps x lr^2, to which SVAG converges weakly. They stay the same when "
    "the batch grows k times if lr grows by sqrt(k), 1 - beta by k and eps by 1 / sqrt(k): the "
    "square-root rule, where SGD has the linear one.",
    corrections=(
        "Order 1/l^2 is that of Adam whose averages are warm. From step 0 the factor sqrt(g2) / g1 "
        "of the bias correction diverges as 1 / sqrt(t), and already the second moments of the "
        "linear recursion have an error of order log(l) / l^2.",
        "RMSprop from v = 0 without bias correction has no SDE to tend to: noise over sqrt(v), "
        "which grows as sqrt(t), has a variance of the integral of dt / t. Each doubling of l adds "
        "to it. The network's limit is therefore tested with the bias corrected.",
        "The power -2 is that of the error's leading term. Between l = 1 and 8 the next one still "
        "bends the curve: the raw slopes of the oscillator run from -3.3 to -2.1.",
        "k = 1 / (1 - beta1) ends what the rule can be written down for, but is no cliff: with "
        "beta1 cut off at 0 beyond it, the deviation goes on growing as it did before.",
    ),
    presets={
        "smoke": AdaptiveSde(
            images=Images(train_size=256),
            text=Text(windows=64, context=8),
            levels=(1, 2, 4),
            paths=2**12,
            blocks=2,
            limit_levels=(1, 2, 3),
            limit_steps=16,
            replicas=2,
            inits=2,
            epochs=2,
            factors=(4,),
            text_epochs=1,
            text_factors=(4,),
            seeds=2,
            text_seeds=2,
        ),
        "small": AdaptiveSde(),
        "paper": AdaptiveSde(
            text=Text("austen", windows=16_384, context=64),
            levels=(1, 2, 4, 8, 16),
            paths=2**20,
            limit_levels=(1, 2, 4, 8, 16),
            replicas=256,
            inits=16,
            epochs=100,
            text_epochs=10,
            text_factors=(2, 4, 8, 16, 32),
            seeds=50,
            text_seeds=20,
        ),
    },
    costs={"smoke": "10 s", "small": "4 min on two cores", "paper": "days on two cores"},
    home=__name__,
    least_seeds=8,
)
