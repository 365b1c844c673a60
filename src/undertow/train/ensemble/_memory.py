"""The memory of the fused trainer: all vectors side by side, and what a batch size reuses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undertow.train.ensemble._layers import Activation, Affine, Layer, Norm


class Vectors:
    """Biases and batch-norm parameters of all layers, side by side in one tensor `[E, count]`.

    `shown` is what the layers read: the values themselves, or where they are `rescaled` a copy that
    the trainer divides by powers of the scale.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        params: dict[str, Tensor],
        members: int,
        *,
        rescaled: bool,
    ) -> None:
        owned: list[tuple[str, int]] = []
        depth = 0
        for layer in layers:
            if isinstance(layer, Affine):
                depth += 1
            if isinstance(layer, Affine | Norm):
                names = [layer.bias] if isinstance(layer, Affine) else [layer.weight, layer.bias]
                owned += [(name, depth) for name in names if name is not None]
        sizes = [params[name].shape[1] for name, _ in owned]
        self.count = sum(sizes)
        like = next(iter(params.values()))
        self.values = torch.empty(members, self.count, dtype=like.dtype, device=like.device)
        self.gradient = torch.zeros_like(self.values)
        self._per_layer = [0] * depth
        self.shown = torch.empty_like(self.values) if rescaled else self.values
        self.views: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}
        start = 0
        for (name, depth), size in zip(owned, sizes, strict=True):
            part = slice(start, start + size)
            self.views[name] = self.values[:, part]
            self.views[name].copy_(params[name])
            self.gradients[name] = self.gradient[:, part]
            self._per_layer[depth - 1] += size
            self._rows[name] = self.shown[:, None, part]
            start += size

    def spread(self, values: Tensor) -> Tensor:
        """One value a layer, `[..., layers]`, repeated over the layer's entries, `[..., count]`."""
        parts = values.split(1, dim=-1)
        return torch.cat(
            [
                part.expand(*part.shape[:-1], n)
                for part, n in zip(parts, self._per_layer, strict=True)
            ],
            dim=-1,
        )

    def row(self, name: str) -> Tensor:
        """The vector as `[E, 1, features]`."""
        return self._rows[name]


class Scratch:
    """Reused memory for one batch size."""

    def __init__(
        self,
        layers: Sequence[Layer],
        members: int,
        batch: int,
        inputs: Tensor,
        targets: Tensor,
    ) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=inputs.dtype, device=inputs.device)

        width = inputs.shape[1]
        self.inputs = empty(members * batch, width)
        self.targets = targets.new_empty(members * batch, *targets.shape[1:])
        self.row = empty(members, batch, 1)
        self.outputs: list[Tensor | None] = []  # None: the layer overwrites its input
        self.grads: list[Tensor | None] = []
        self.normals: dict[int, Tensor] = {}
        for position, layer in enumerate(layers):
            needs_grad = isinstance(layer, Affine) and position > 0
            self.grads.append(empty(members, batch, width) if needs_grad else None)
            if isinstance(layer, Affine):
                width = layer.outputs
            if isinstance(layer, Norm):
                self.normals[position] = empty(members, batch, width)
            below = layers[position - 1] if position else None
            in_place = (
                isinstance(layer, Activation)
                and not layer.keeps_input
                # That activation's own derivative is read from its output.
                and not (isinstance(below, Activation) and not below.keeps_input)
            )
            self.outputs.append(None if in_place else empty(members, batch, width))
