"""Batch norm of the fused ensemble trainer: forward, backward, and the running statistics.

Of a rule that needs several batches a step, each is normalised by its own statistics, and the
running ones see one after the other, as if the batches had come one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undertow.train.ensemble._layers import Norm
from undertow.train.ensemble._memory import Vectors


class BatchNorms:
    """The batch-norm layers of E networks, for steps of as many `batches` side by side."""

    def __init__(
        self, vectors: Vectors, buffers: dict[str, Tensor], members: int, batches: int
    ) -> None:
        self._vectors = vectors
        self._buffers = buffers
        self._members = members
        self._batches = batches

    def forward(
        self, layer: Norm, x: Tensor, normal: Tensor, out: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Outputs, and the inverse standard deviations; `normal` receives the normalised x."""
        x, shown = self._by_batch(x), self._by_batch(normal)
        batch = x.shape[1]
        mean = x.mean(1, keepdim=True)
        torch.sub(x, mean, out=shown)
        variance = shown.square().mean(1, keepdim=True)
        inverse = torch.rsqrt(variance + layer.eps)
        shown.mul_(inverse)
        if layer.running is not None:
            means, unbiased = mean.squeeze(1), variance.squeeze(1) * (batch / (batch - 1))
            for own in zip(self._per_batch(means), self._per_batch(unbiased), strict=True):
                self._track(layer, *own)
        gain = self._vectors.row(layer.weight) if layer.weight is not None else 1
        outputs = torch.mul(normal, gain, out=out)
        if layer.bias is not None:
            outputs.add_(self._vectors.row(layer.bias))
        return outputs, inverse

    def _track(self, layer: Norm, mean: Tensor, variance: Tensor) -> None:
        seen = self._buffers[f"{layer.running}num_batches_tracked"].add_(1)
        rate = layer.momentum if layer.momentum is not None else 1 / float(seen[0])
        self._buffers[f"{layer.running}running_mean"].lerp_(mean, rate)
        self._buffers[f"{layer.running}running_var"].lerp_(variance, rate)

    def backward(self, layer: Norm, grad: Tensor, normal: Tensor, inverse: Tensor) -> Tensor:
        """The gradient of the inputs, overwriting that of the outputs."""
        whole, grad, normal = grad, self._by_batch(grad), self._by_batch(normal)
        along = (grad * normal).sum(1)
        total = grad.sum(1)
        for name, values in ((layer.bias, total), (layer.weight, along)):
            if name is not None:
                first, *others = self._per_batch(values)
                self._vectors.gradients[name].copy_(first)
                for other in others:
                    self._vectors.gradients[name].add_(other)
        batch = grad.shape[1]
        grad.sub_(total[:, None] / batch).addcmul_(normal, along[:, None], value=-1 / batch)
        if layer.weight is not None:
            gain = self._vectors.row(layer.weight)
            if self._batches > 1:
                gain = gain.repeat_interleave(self._batches, 0)
            inverse = torch.mul(inverse, gain)
        grad.mul_(inverse)
        return whole

    def _by_batch(self, rows: Tensor) -> Tensor:
        """Rows `[E, batches x size, features]` as `[E x batches, size, features]`."""
        if self._batches == 1:
            return rows
        return rows.view(self._members * self._batches, -1, rows.shape[2])

    def _per_batch(self, values: Tensor) -> Sequence[Tensor]:
        """Values `[E x batches, features]` as one `[E, features]` a batch."""
        if self._batches == 1:
            return (values,)
        return values.view(self._members, self._batches, -1).unbind(1)
