"""What 2211.02912 compares with: gradients in the input, and maps that know nothing.

Functions of `(model, inputs [pairs, ...], labels [pairs])`, as any method is; `functools.partial`
sets what they are asked for. All other methods are Captum's.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from undertow.measure.saliency._classifier import NO_GRADIENT
from undertow.objective import logits_of, whole_number

_SEED = 0


def gradients(
    model: nn.Module, inputs: Float[Tensor, "pairs ..."], labels: Int64[Tensor, " pairs"]
) -> Float[Tensor, "pairs ..."]:
    """Of each label's logit in the input."""
    with torch.enable_grad():
        leaf = inputs.detach().requires_grad_()
        logits = logits_of(model(leaf))
        if not logits.requires_grad:
            raise ValueError(NO_GRADIENT)
        return torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), leaf)[0]


def absolute_gradient(
    model: nn.Module, inputs: Float[Tensor, "pairs ..."], labels: Int64[Tensor, " pairs"]
) -> Float[Tensor, "pairs ..."]:
    """|dF_a / dx|, of the logit F_a; channels add up."""
    return gradients(model, inputs, labels).abs()


def gradient_x_input(
    model: nn.Module, inputs: Float[Tensor, "pairs ..."], labels: Int64[Tensor, " pairs"]
) -> Float[Tensor, "pairs ..."]:
    """X dF_a / dx, of the logit F_a."""
    return inputs * gradients(model, inputs, labels)


def smooth_grad(
    model: nn.Module,
    inputs: Float[Tensor, "pairs ..."],
    labels: Int64[Tensor, " pairs"],
    *,
    samples: int = 25,
    noise: float = 0.15,
) -> Float[Tensor, "pairs ..."]:
    """The mean of the absolute gradient over noisy copies of the input (SmoothGrad, 1706.03825).

    Args:
        model: from inputs to logits.
        inputs: images or embeddings.
        labels: of each.
        samples: noisy copies, the same noise for all inputs.
        noise: its standard deviation, in parts of the range of each input.
    """
    whole_number("samples", samples)
    low, high = inputs.flatten(1).amin(1), inputs.flatten(1).amax(1)
    scale = (noise * (high - low)).view(-1, *[1] * (inputs.ndim - 1))
    generator = torch.Generator().manual_seed(_SEED)
    total = torch.zeros_like(inputs)
    for _ in range(samples):
        drawn = torch.randn(inputs.shape[1:], generator=generator, dtype=torch.float64)
        moved = inputs + scale * drawn.to(inputs)
        total += gradients(model, moved, labels).abs()
    return total / samples


def integrated_gradients(
    model: nn.Module,
    inputs: Float[Tensor, "pairs ..."],
    labels: Int64[Tensor, " pairs"],
    *,
    baseline: float = 0.0,
    steps: int = 32,
) -> Float[Tensor, "pairs ..."]:
    """(x - b) times the mean of dF_a / dx on the line from b to x (1703.01365).

    Their sum is F_a(x) - F_a(b), but for the rule of Gauss and Legendre with so many steps.

    Args:
        model: from inputs to logits.
        inputs: images or embeddings.
        labels: of each.
        baseline: b, for all values; 0 is the mean of standardised images.
        steps: points on the line.
    """
    import numpy as np

    points, weights = np.polynomial.legendre.leggauss(whole_number("steps", steps))
    total = torch.zeros_like(inputs)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        total += float(weight) * gradients(
            model, baseline + float(point) * (inputs - baseline), labels
        )
    return (inputs - baseline) * total


def random_map(
    model: nn.Module, inputs: Float[Tensor, "pairs ..."], labels: Int64[Tensor, " pairs"]
) -> Float[Tensor, pairs * spatial]:
    """A value drawn for each pixel or token, which knows nothing of model, input and label."""
    shape = inputs.shape[2:] if inputs.ndim == 4 else inputs.shape[1:2]
    return torch.rand(len(inputs), *shape)
