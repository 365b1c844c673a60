"""The infinite-depth limit of ReLU networks (Xu and Zhang, arXiv 2107.12530).

With W_n = I + P_n and summable ||P_n|| and ||b_n|| the outputs N_n(x) converge as layers are added.
How fast is read off d(n) = ||N_2n - N_n||; what it is good for is tested by training 400 layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from undertow.claims import Claim
from undertow.data import Images
from undertow.lab import DISTINCT, Bound, Count, Knobs, Seeds, above, at_least, some

BURN_IN = 128  # layers before the first d(n)
DIVERGING = (0.0, 0.4)  # powers below 1/2: even random perturbations do not converge


@dataclass(frozen=True)
class DeepReluLimit(Knobs):
    """Knobs."""

    width: Count = 20  # of the networks whose limit is taken
    depth: Annotated[int, at_least(4 * BURN_IN)] = 4096  # d(n) is read from 128 layers to half
    scale: Annotated[float, above(0), Bound("finite", math.isfinite)] = (
        0.5  # the c of ||P_n|| = c n^-power
    )
    # Of P_n = c n^-power 11'/m; power 1, which diverges, is added.
    aligned_powers: Annotated[tuple[float, ...], above(1), some(), DISTINCT] = (1.5, 2.0)
    # Of P_n random with mean zero.
    random_powers: Annotated[tuple[float, ...], above(0.5), some(), DISTINCT] = (
        *(0.75, 1.0),
        *(1.5, 2.0),
    )
    # Of b_n random with mean zero, at W_n = I.
    bias_powers: Annotated[tuple[float, ...], above(0.5), some(), DISTINCT] = (1.0, 1.5)
    images: Images = Images(train_size=1000)  # what the deep networks are trained on
    net_width: Count = 32  # hidden width of the trained networks
    net_depth: Count = 400  # their layers of equal width
    net_scale: Annotated[float, above(0), Bound("finite", math.isfinite)] = (
        0.5  # the c of their W_n = I + c n^-p G at the start
    )
    shallow_depth: Count = 3  # of the network that shows that He's initialisation is in order
    # Learning rates that every initialisation near the identity is given, and He's.
    lrs: Annotated[tuple[float, ...], above(0), some(), DISTINCT] = (0.001, 0.003)
    he_lrs: Annotated[tuple[float, ...], above(0), some(), DISTINCT] = (0.003, 0.03)
    steps: Count = 300  # of SGD at batch size 32
    seeds: Seeds = 120  # independent layers and inputs of each kind
    net_seeds: Seeds = 12  # independent trainings

    def rules(self) -> Mapping[str, bool]:
        """The shallow network is not the deep one."""
        return {
            f"shallow_depth must be below net_depth = {self.net_depth}, got "
            f"{self.shallow_depth}": self.shallow_depth < self.net_depth
        }


CLAIM = Claim(
    name="deep-relu-limit",
    title="Deep ReLU networks converge in depth when their layers approach the identity",
    paper="Xu and Zhang, Convergence of Deep ReLU Networks (arXiv 2107.12530)",
    statement="A ReLU network of fixed width whose layers are W_n = I + P_n with summable "
    "perturbations ||P_n|| and biases ||b_n|| converges at every input as layers are added, since "
    "the products of its weights converge under every sequence of activation matrices. Aligned "
    "perturbations of norm c n^-p give ||N_2n - N_n|| ~ n^-(p - 1). As an initialisation, a "
    "neighbourhood of the identity, I + c n^-1 G, makes a plain network of 400 layers trainable.",
    corrections=(
        "Summability is sufficient and not necessary: independent perturbations with mean zero and "
        "norm c n^-p converge for p > 1/2, at the rate n^-(p - 1/2). Their sum from n to 2n is a "
        "martingale, so that its mean square is of the order of the sum of c^2 i^-2p, not of the "
        "square of the sum of c i^-p; the same holds for biases. Norms alone do not decide: at "
        "p = 1 aligned perturbations diverge as n^c and random ones converge.",
        "W_n -> I and b_n -> 0 are necessary for products to converge to an invertible limit, as "
        "W_n is the quotient of two of them, and not for outputs to converge: W_n = I/2 without "
        "biases converges to zero, and W_n = (I + 11'/m)/2 to the mean of x, each at 2^-n.",
        "Decay of the perturbations is not what makes a deep network train. The exact identity "
        "trains, too, and so does a constant perturbation whose squares add up to as much; one "
        "of the scale of the first layer does not. Decay lets one scale serve every depth.",
    ),
    presets={
        "smoke": DeepReluLimit(
            depth=1024,
            aligned_powers=(2.0,),
            random_powers=(1.0, 2.0),
            bias_powers=(1.0,),
            seeds=3,
            images=Images(train_size=200),
            net_depth=20,
            lrs=(0.01,),
            he_lrs=(0.03,),
            steps=40,
            net_seeds=2,
        ),
        "small": DeepReluLimit(),
        "paper": DeepReluLimit(
            width=100,
            depth=16_384,
            seeds=100,
            net_width=100,
            net_depth=1_000,
            lrs=(0.0003, 0.001, 0.003),
            he_lrs=(0.001, 0.003, 0.01, 0.03),
            steps=3_000,
        ),
    },
    costs={"smoke": "7 s", "small": "1 to 2 min on two cores", "paper": "half a day on a GPU"},
    home=__name__,
)
