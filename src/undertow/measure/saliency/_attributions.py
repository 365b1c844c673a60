"""Attributions in whatever form they come, as one map for each input and label.

Tensors, certificates, functions (model, inputs, labels), and Captum's methods as they are: what has
an `attribute` is called by it. Methods run on copies of the model, and of themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from undertow.measure.saliency._certificates import Certificates
from undertow.measure.saliency._certify import LearnedMasks
from undertow.measure.saliency._classifier import Classifier
from undertow.measure.saliency._memory import Need, blocks, peak_bytes

Channels = Literal["sum", "absolute"]
Method = Callable[[nn.Module, Tensor, Tensor], Tensor] | Tensor | Certificates | LearnedMasks | Any
"""A tensor `[n, ...]`, `Certificates`, `LearnedMasks`, a Captum method or its class, or a function
of `(model, inputs [pairs, ...], labels [pairs])` that returns maps `[pairs, ...]`."""


@dataclass(frozen=True)
class Asked:
    """What attributions are asked for.

    Attributes:
        labels: of each input.
        channels: what is made of the channels of a pixel: their `sum`, or the sum of their
            `absolute` values.
        memory: bytes that a block of pairs may take.
        seed: of what methods draw.
    """

    labels: Int64[Tensor, "n labels"]
    channels: Channels
    memory: int
    seed: int


def check_channels(channels: str) -> None:
    """Refuse a way to join channels that is not known.

    Raises:
        ValueError: with those that are.
    """
    if channels not in get_args(Channels):
        raise ValueError(f"channels must be {' or '.join(get_args(Channels))}, got {channels!r}")


def is_fixed(method: Method) -> bool:
    """Whether its maps are there already."""
    return isinstance(method, Tensor | Certificates)


def is_bound(method: Method) -> bool:
    """Whether it can only be of one network."""
    if is_fixed(method):
        return True
    return hasattr(method, "attribute") and not isinstance(method, type)


def maps_of(
    network: Classifier, method: Method, asked: Asked, name: str = "attributions"
) -> Float[Tensor, "n maps *spatial"]:
    """One map for each input and label, or one for each input whatever the label.

    Args:
        network: made with the method beside, so that it is run on copies.
        method: its attributions.
        asked: labels and so on.
        name: of the method, for errors.

    Raises:
        TypeError: no attributions.
        ValueError: attributions of another shape or of other labels, NaN, or all equal.
    """
    if isinstance(method, Certificates):
        found = _of_certificates(network, method, asked.labels, name)
    elif isinstance(method, LearnedMasks):
        generator = torch.Generator().manual_seed(asked.seed)
        found = method.find(network, asked.labels, generator, memory=asked.memory).attributions
    elif isinstance(method, Tensor):
        found = _of_tensor(network, method.detach(), asked, name)
    elif callable(method) or hasattr(method, "attribute"):
        found = _computed(network, asked, name)
    else:
        raise TypeError(
            f"{name} must be a tensor, certificates, a function of (model, inputs, labels) or a "
            f"Captum method, got {type(method).__name__}"
        )
    if found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"{name} must be real numbers, got {found.dtype}")
    found = found.to(network.inputs.device)
    if not torch.isfinite(found).all():
        lost = int((~torch.isfinite(found.flatten(2)).all(2)).sum())
        raise ValueError(
            f"{name} must be finite, but {lost} of {found.shape[0] * found.shape[1]} maps hold NaN "
            "or infinity"
        )
    return found


def constant(maps: Float[Tensor, "n maps *spatial"]) -> Tensor:
    """Which maps are all equal, so that no pixel comes before another."""
    flat = maps.flatten(2)
    return flat.amax(2) == flat.amin(2)


def _of_certificates(network: Classifier, given: Certificates, labels: Tensor, name: str) -> Tensor:
    maps = given.attributions
    if maps.shape[0] != len(network) or tuple(maps.shape[2:]) != network.spatial:
        raise ValueError(
            f"{name} must be of these inputs, {len(network)} of {network.spatial}, got "
            f"certificates of {maps.shape[0]} of {tuple(maps.shape[2:])}"
        )
    same = given.labels[:, None, :] == labels.to(given.labels.device)[:, :, None]
    if not bool(same.any(2).all()):
        raise ValueError(
            f"{name} must be of the labels that are scored; give labels=certificates.labels"
        )
    at = same.int().argmax(2)
    return maps[torch.arange(len(maps), device=at.device)[:, None], at]


def _of_tensor(network: Classifier, given: Tensor, asked: Asked, name: str) -> Tensor:
    """By its shape: `[n, *spatial]` or that of the inputs, each with or without labels."""
    count, each = asked.labels.shape
    spatial, whole = network.spatial, tuple(network.inputs.shape[1:])
    shapes = {
        (count, *spatial): "map",
        (count, *whole): "inputs",
        (count, each, *spatial): "maps",
        (count, each, *whole): "labels",
    }
    wanted = f"{[count, *spatial]}, {[count, *whole]}, {[count, each, *spatial]} or " + str(
        [count, each, *whole]
    )
    shape = tuple(given.shape)
    if shape not in shapes:
        raise ValueError(f"{name} must be of shape {wanted}, got {list(shape)}")
    if shape == (count, *whole) == (count, each, *spatial) and each > 1:
        raise ValueError(
            f"{name} of shape {list(shape)} may be maps for {each} labels or one map in {each} "
            f"channels: give {[count, *spatial]}, or {[count, each, *whole]}"
        )
    kind = shapes[shape]
    if kind in ("inputs", "labels"):
        given = joined(given, network, asked.channels)
    return given if kind in ("maps", "labels") else given[:, None]


def joined(
    attributions: Float[Tensor, "*rows"], network: Classifier, channels: Channels
) -> Float[Tensor, "*rows"]:
    """The channels of each pixel, or the widths of each token, as one number."""
    axis = -3 if network.is_image else -1
    return (attributions.abs() if channels == "absolute" else attributions).sum(axis)


def _computed(network: Classifier, asked: Asked, name: str) -> Tensor:
    """What a function or a Captum method gives, for blocks of pairs."""
    count, each = asked.labels.shape
    rows = torch.arange(count, device=asked.labels.device).repeat_interleave(each)
    labels = asked.labels.flatten()

    def run(some: slice) -> Tensor:
        return _called(network, rows[some], labels[some], asked, name)

    with network.running():
        # Once, and on one pair: some methods are dear.
        one = peak_bytes(lambda: run(slice(0, 1)))
        size = Need(0.0, one).rows(asked.memory, "attribution")
        found = torch.cat([run(some) for some in blocks(len(rows), size)])
    return found.unflatten(0, (count, each))


def _called(network: Classifier, rows: Tensor, labels: Tensor, asked: Asked, name: str) -> Tensor:
    inputs = network.inputs[rows]

    def call(module: nn.Module, method: Any) -> Any:
        torch.manual_seed(asked.seed)  # of a state that is thrown away
        if hasattr(method, "attribute") and not isinstance(method, type):
            taken = network.taken(rows).clone()  # by what it was made for, such as token ids
            return method.attribute(taken.requires_grad_(taken.is_floating_point()), target=labels)
        own = network.of_masked(module, rows)
        if isinstance(method, type):
            return method(own).attribute(inputs.clone().requires_grad_(), target=labels)
        return method(own, inputs.clone(), labels)

    found = network.stand_in.apply(network.tensors, call)
    if not isinstance(found, Tensor):
        raise TypeError(f"{name} must give a tensor of attributions, got {type(found).__name__}")
    shape, spatial = tuple(found.shape), (len(inputs), *network.spatial)
    if shape == tuple(inputs.shape):
        return joined(found.detach(), network, asked.channels)
    if shape != spatial:
        raise ValueError(
            f"{name} must give attributions of shape {list(inputs.shape)} or {list(spatial)}, got "
            f"{list(shape)}; upsample those of a layer"
        )
    return found.detach()
