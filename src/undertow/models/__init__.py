"""Reference networks that claims train: perceptrons, convolutional, residual, a transformer.

`nn.Sequential`s of PyTorch's own layers (the transformer adds one block of its own), with PyTorch's
own initial distribution where no other is asked for, drawn from an explicit generator.
"""

from undertow.models._convolutions import conv_net as conv_net
from undertow.models._convolutions import residual_net as residual_net
from undertow.models._perceptrons import deep_plain_mlp as deep_plain_mlp
from undertow.models._perceptrons import identity_plus_noise_ as identity_plus_noise_
from undertow.models._perceptrons import mlp as mlp
from undertow.models._perceptrons import scale_invariant_mlp as scale_invariant_mlp
from undertow.models._transformer import transformer as transformer

__all__ = [
    "conv_net",
    "deep_plain_mlp",
    "identity_plus_noise_",
    "mlp",
    "residual_net",
    "scale_invariant_mlp",
    "transformer",
]
