"""The intrinsic learning rate (Li, Lyu, Arora, NeurIPS 2020; arXiv 2010.02916).

Weights under normalisation have no size that matters: noise makes them grow, decay makes them
shrink, and lr x weight_decay alone says where the two balance, and after how many steps the
network's function has forgotten its start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import Count, Knobs, Seeds, Share, above, at_least, up_to

Norm = Literal["batch", "layer", "none"]
# Norm and activation of networks. A unit of a ReLU that layer norm lets die remembers its start.
KINDS: dict[str, tuple[Norm, str]] = {
    "batch norm": ("batch", "relu"),
    "layer norm": ("layer", "gelu"),
}
CONTROLS: dict[str, tuple[Norm, str]] = {
    "no norm": ("none", "relu"),
    "trained head": ("batch", "relu"),
}


@dataclass(frozen=True)
class IntrinsicLr(Knobs):
    """Knobs."""

    images: Images = Images(train_size=400)
    width: Count = 32  # of two hidden layers
    batch_size: Annotated[int, at_least(2)] = 16
    lr: Annotated[float, above(0)] = 0.2
    # lr x weight_decay, the largest; above 0.2 two readings would fall on one step.
    product: Annotated[float, above(0), up_to(0.2)] = 16e-3
    halvings: Annotated[int, at_least(2), up_to(3)] = 2  # of it
    members: Annotated[int, at_least(2)] = 32  # of an ensemble
    random_steps: Count = 600  # in which the far start learns random labels
    shown: Count = 350  # test images on which laws of the output are compared
    horizon: Annotated[int, at_least(4)] = 6  # steps, in parts of 1 / (lr x weight_decay)
    readings: Count = 48  # of norms at rest
    momentum: Share = 0.9
    annealed_lr: Annotated[float, above(0)] = 0.8  # of a usual schedule
    weight_decay: Annotated[float, above(0)] = 0.025  # of the schedules
    steps: Count = 1_000  # of a usual schedule
    seeds: Seeds = 16

    @property
    def products(self) -> tuple[float, ...]:
        """All intrinsic learning rates, each half of the one before."""
        return tuple(self.product / 2**halving for halving in range(self.halvings + 1))


CLAIM = Claim(
    name="intrinsic-lr",
    title="Under normalisation and decay, lr x weight_decay sets the clock and the place of rest",
    paper="Li, Lyu and Arora, Reconciling Modern Deep Learning with Traditional Optimization "
    "Analyses: The Intrinsic Learning Rate, 2020 (arXiv 2010.02916)",
    statement="Weights under batch or layer norm, trained by SGD with weight decay, come to a norm "
    "with ||w||^4 = lr q / (2 weight_decay) for gradients of mean square q at unit norm, so that "
    "lr x weight_decay alone decides the effective learning rate. From far above, ||w||^4 comes "
    "back at the rate 4 lr weight_decay, with momentum at lr / (1 - beta) in place of lr. "
    "Ensembles from different starts, with other lr but equal products, come to the same law of "
    "outputs, but for some percent of what set them apart, in some 1 / (lr x weight_decay) steps: "
    "a power, not an exponential. Their weights have not mixed by then: averages of weights still "
    "help, and weights keep moving away. An initial rate 100 times smaller gives the same test "
    "accuracy in 10 times the steps. "
    "Full-batch descent on x^2 / (x^2 + y^2) with decay never settles, and without does.",
    corrections=(
        "q is signal and noise, not the trace of the noise covariance alone, and the law at finite "
        "steps has 2 - lr weight_decay in place of 2. With momentum it is exact for gradients that "
        "are independent from step to step, and in networks off by up to 0.3 of ||w||^4.",
    ),
    presets={
        "smoke": IntrinsicLr(
            images=Images(train_size=40),
            width=8,
            product=0.2,
            members=2,
            random_steps=4,
            shown=20,
            horizon=4,
            readings=2,
            steps=4,
            seeds=2,
        ),
        "small": IntrinsicLr(),
        "paper": IntrinsicLr(
            images=Images("fashion-mnist", train_size=10_000),
            width=256,
            batch_size=64,
            product=2e-3,
            members=200,
            shown=1_000,
            steps=20_000,
            seeds=20,
        ),
    },
    costs={"smoke": "10 s", "small": "3 min on two cores", "paper": "days on two cores"},
    home=__name__,
)
