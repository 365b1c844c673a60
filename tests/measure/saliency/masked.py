"""Small classifiers of images and tokens in float64, and their scores by a slow loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

CLASSES, SIDE = 3, 6


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def images(count: int = 4, channels: int = 1, seed: int = 0) -> Tensor:
    return draw(seed, count, channels, SIDE, SIDE)


def net(channels: int = 1, seed: int = 1) -> nn.Sequential:
    """Convolutions whose logits are far apart."""
    made = nn.Sequential(
        skip_init(nn.Conv2d, channels, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        skip_init(nn.Linear, 4 * SIDE**2, CLASSES),
    ).double()
    with torch.no_grad():
        for index, parameter in enumerate(made.parameters()):
            parameter.copy_(draw(seed + index, *parameter.shape) * 0.5)
    return made.eval()


def linear(weight: Tensor) -> nn.Sequential:
    """Logits `x @ weight.T` of flattened inputs."""
    layer = skip_init(nn.Linear, weight.shape[1], len(weight), bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    return nn.Sequential(nn.Flatten(), layer)


@torch.no_grad()
def slow_scores(
    model: nn.Module,
    inputs: Tensor,
    maps: Tensor,
    steps: int,
    background: float,
    floor: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Completeness and soundness `[inputs, labels]` of images' maps, one masked input at a time."""
    count, labels = maps.shape[:2]
    complete, sound = torch.zeros(count, labels).double(), torch.zeros(count, labels).double()
    pixels = maps[0, 0].numel()
    for i in range(count):
        for a in range(labels):
            order = maps[i, a].flatten().argsort(descending=True)
            total = 0.0
            for step in range(1, steps + 1):
                masked = torch.full_like(inputs[i], background)
                for place in order[: round(step * pixels / steps)].tolist():
                    row, column = divmod(place, maps.shape[-1])
                    masked[:, row, column] = inputs[i, :, row, column]
                total += float(model(masked[None]).softmax(1)[0, a])
            g, f = total / steps, float(model(inputs[i : i + 1]).softmax(1)[0, a])
            complete[i, a] = min(max(floor, g) / f, 1)
            sound[i, a] = min(max(floor, f) / g, 1)
    return complete, sound
