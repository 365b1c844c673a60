"""The labels of each input that something is asked for."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from undertow.measure.saliency._classifier import Classifier


def labels_of(classifier: Classifier, labels: Any) -> Int64[Tensor, "n labels"]:
    """All labels if None; else one for each input `[n]`, or some `[n, labels]` or `[1, labels]`.

    Raises:
        TypeError: no whole numbers.
        ValueError: another shape, labels that the model does not have, or one twice.
    """
    count, classes = len(classifier), classifier.num_classes
    device = classifier.inputs.device
    if labels is None:
        return torch.arange(classes, device=device).expand(count, -1)
    found = torch.as_tensor(labels)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"labels must be whole numbers, got {found.dtype}")
    found = found.to(device, torch.int64)
    shape = tuple(found.shape)
    if found.ndim == 1 and len(found) == count:
        found = found[:, None]
    if found.ndim != 2 or len(found) not in (1, count) or not found.shape[1]:
        raise ValueError(
            f"labels must be one for each of {count} inputs, or [{count}, labels], got {shape}"
        )
    if int(found.min()) < 0 or int(found.max()) >= classes:
        wrong = int(found[(found < 0) | (found >= classes)][0])
        raise ValueError(f"labels must lie in 0 to {classes - 1}, the model's classes, got {wrong}")
    if bool((found.sort(1).values.diff(dim=1) == 0).any()):
        raise ValueError("labels must differ for each input, got one twice")
    return found.expand(count, -1)
