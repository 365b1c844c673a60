"""Plain MLP ensembles as a few batched matrix products a step, with no autograd.

Under SGD no gradient is materialised: the matrix product that would form it adds it straight to
the weights. The member's learning rate sits in the output gradient, and its weight decay in a
scale s per member, W = s V, that is folded back into W at the end of each block of steps:

    V <- V - (lr / s') grad,    s' = (1 - lr weight_decay) s.

Where every nonlinearity is positively homogeneous the scale leaves the layers altogether: with
h_l = s^l k_l the chain runs on k_l, and only the biases and the outputs see powers of s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undertow.train._engines import Job
from undertow.train._layers import Activation, Affine, Layer, Norm
from undertow.train.rules import add_scaled, along_members
from undertow.train.rules import momentum as momentum_rule
from undertow.train.rules import sgd as sgd_rule

_MAX_LOG_SCALE = 20.0  # powers of the scale stay within e^-20 between two foldings


class FusedEngine:
    """E plain MLPs stepped together. Weights are exact between calls of `advance`."""

    def __init__(
        self,
        layers: Sequence[Layer],
        params: dict[str, Tensor],
        buffers: dict[str, Tensor],
        job: Job,
    ) -> None:
        self._layers = layers
        self._names = list(params)
        self._job = job
        rule, hyper = job.rule, job.hyper
        self._affine = [layer for layer in layers if isinstance(layer, Affine)]
        self._members = next(iter(params.values())).shape[0]
        self._inputs = job.inputs.flatten(1).contiguous()
        self._dtype = self._inputs.dtype
        outputs = self._affine[-1].outputs
        targets = job.targets
        if job.loss.kind == "cross_entropy" and not targets.is_floating_point():
            self._targets = torch.nn.functional.one_hot(targets, outputs).to(self._dtype)
        else:
            self._targets = targets.contiguous()
        # The first layer needs no input gradient, so its weight is kept transposed: [E, in, out].
        self._weights = {
            layer.weight: _stored(params[layer.weight], transpose=index == 0)
            for index, layer in enumerate(self._affine)
        }
        self._buffers = {name: value.clone() for name, value in buffers.items()}
        self._decays = bool(torch.as_tensor(hyper.weight_decay).any())
        # Whether powers of the scale pass through the layers, so that only the ends see them.
        self._passes_scale = (
            self._decays
            and rule.name == sgd_rule.name
            and all(
                isinstance(layer, Affine) or (isinstance(layer, Activation) and layer.homogeneous)
                for layer in layers
            )
        )
        self._vectors = _Vectors(layers, params, self._members, rescaled=self._passes_scale)
        tensors = [*self._weights.values(), self._vectors.values]
        self._gradients: list[Tensor] = []
        self._state = rule.init(tensors)
        if rule.name == momentum_rule.name:
            self._gradients = self._state["velocity"]
        elif rule.name != sgd_rule.name:
            self._gradients = [torch.zeros_like(tensor) for tensor in tensors]
        self._tensors = tensors
        self._scratch: dict[int, _Scratch] = {}

    # ---- the interface of an engine

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the parameters, each `[E, ...]`, in the module's order."""
        first = self._affine[0].weight
        found = {
            name: (value.mT if name == first else value).clone(
                memory_format=torch.contiguous_format
            )
            for name, value in self._weights.items()
        }
        found |= {name: view.clone() for name, view in self._vectors.views.items()}
        return {name: found[name] for name in self._names}

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the buffers, each `[E, ...]`."""
        return {name: value.clone() for name, value in self._buffers.items()}

    def silence(self, member: int) -> None:
        """Set a diverged member's tensors to zero, so that it stays finite from here on."""
        for tensor in [*self._tensors, *self._gradients, *self._buffers.values()]:
            tensor[member] = 0
        for values in self._state.values():
            for tensor in values:
                if tensor.ndim:
                    tensor[member] = 0

    def advance(
        self, batches: Sequence[Int[Tensor, "E batch"]], rates: Float[Tensor, "steps E"]
    ) -> None:
        """One update for each batch of indices, at the learning rates given."""
        with torch.inference_mode():
            if self._job.rule.name == sgd_rule.name:
                self._advance_sgd(batches, rates)
            else:
                self._advance_rule(batches, rates)

    # ---- stepping

    def _advance_sgd(self, batches: Sequence[Tensor], rates: Tensor) -> None:
        first, depth = 0, len(self._affine)
        log_decay = torch.log1p(-rates * torch.as_tensor(self._job.hyper.weight_decay)).double()
        drift = -(log_decay.min(dim=1).values * depth).cumsum(0)
        while first < len(batches):
            gone = drift[first - 1] if first else 0.0
            fits = int(torch.searchsorted(drift, gone + _MAX_LOG_SCALE, right=True))
            last = min(max(fits, first + 1), len(batches))
            block = slice(first, last)
            self._sgd_block(batches[block], rates[block].double(), log_decay[block])
            first = last

    def _sgd_block(self, batches: Sequence[Tensor], rates: Tensor, log_decay: Tensor) -> None:
        after = log_decay.cumsum(0)  # log s after each step, [steps, E]
        before = after - log_decay
        lazy, depth = self._passes_scale, len(self._affine)
        sizes = torch.tensor([index.shape[1] for index in batches], device=rates.device)[:, None]
        coefficient = -rates / sizes * torch.exp(-after + (depth - 1) * before * lazy)
        coefficients = self._columns(coefficient, 2)
        nothing = [None] * len(batches)
        output_scales = self._columns(torch.exp(depth * before), 2) if lazy else nothing
        layer_scales = self._columns(torch.exp(before), 2) if self._decays and not lazy else nothing
        vectors = self._vectors
        shrinks = self._columns(torch.exp(log_decay), 1)
        gains = self._columns(torch.exp(after), 1)
        if lazy:
            # Powers of the scale for each layer, spread over the layer's entries.
            powers = torch.arange(1, depth + 1, device=rates.device)
            exponents = before[:, :, None] * powers
            bias_scales = vectors.spread(torch.exp(-exponents).to(self._dtype)).unbind(0)
            exponents = (after + before)[:, :, None] - exponents
            gains = vectors.spread(torch.exp(exponents).to(self._dtype)).unbind(0)
        for step, index in enumerate(batches):
            if lazy:
                torch.mul(vectors.values, bias_scales[step], out=vectors.shown)
            self._step(
                index, coefficients[step], layer_scales[step], output_scales[step], sinks=None
            )
            if vectors.count:
                if self._decays:
                    vectors.values.mul_(shrinks[step])
                vectors.values.addcmul_(vectors.gradient, gains[step])
        if self._decays:
            scale = torch.exp(after[-1]).to(self._dtype)[:, None, None]
            for weight in self._weights.values():
                weight.mul_(scale)

    def _columns(self, values: Tensor, trailing: int) -> Sequence[Tensor]:
        """Values `[steps, E]` as one tensor a step, shaped to multiply `[E, ...]` tensors."""
        return values.to(self._dtype).reshape(*values.shape, *[1] * trailing).unbind(0)

    def _advance_rule(self, batches: Sequence[Tensor], rates: Tensor) -> None:
        step = self._momentum_step if self._job.rule.name == momentum_rule.name else self._rule_step
        for index, rate in zip(batches, rates.to(self._dtype), strict=True):
            step(index, rate, rate.new_full((1, 1, 1), 1 / index.shape[1]))

    def _rule_step(self, index: Tensor, rate: Tensor, coefficient: Tensor) -> None:
        """Any rule: gradients first, then the rule's own update."""
        self._step(index, coefficient, None, None, sinks=(self._gradients, 0.0))
        self._gradients[-1].copy_(self._vectors.gradient)
        _, self._state = self._job.rule.update(
            self._tensors,
            self._gradients,
            self._state,
            replace(self._job.hyper, lr=rate),
            inplace=True,
        )

    def _momentum_step(self, index: Tensor, rate: Tensor, coefficient: Tensor) -> None:
        """Heavy ball: the matrix product that forms the gradient adds it to the velocity."""
        keep = self._job.hyper.momentum
        if isinstance(keep, Tensor):
            shared = bool((keep == keep[0]).all())
            if not shared:
                for velocity in self._gradients:
                    velocity.mul_(along_members(keep, velocity))
            keep = float(keep[0]) if shared else 1.0
        self._step(index, coefficient, None, None, sinks=(self._gradients, keep))
        self._gradients[-1].mul_(keep).add_(self._vectors.gradient)
        for tensor, velocity in zip(self._tensors, self._gradients, strict=True):
            if self._decays:
                add_scaled(velocity, tensor, self._job.hyper.weight_decay, out=velocity)
            add_scaled(tensor, velocity, -rate, out=tensor)

    def _step(
        self,
        index: Tensor,
        coefficient: Tensor,
        layer_scale: Tensor | None,
        output_scale: Tensor | None,
        sinks: tuple[list[Tensor], float] | None,
    ) -> None:
        """One forward and backward pass.

        With `sinks=None` the weights themselves receive `coefficient` times the gradient of the
        batch's summed loss; otherwise the tensors in `sinks` do, their old value kept by a factor.
        """
        scratch = self._scratch_for(index.shape[1])
        flat = index.reshape(-1)
        torch.index_select(self._inputs, 0, flat, out=scratch.inputs)
        current = scratch.inputs.view(self._members, index.shape[1], -1)
        trace: list[tuple[Tensor, Tensor]] = []
        first = self._affine[0]
        for layer, buffer in zip(self._layers, scratch.outputs, strict=True):
            before = current
            if isinstance(layer, Affine):
                weight = self._weights[layer.weight]
                torch.bmm(before, weight if layer is first else weight.mT, out=buffer)
                if layer_scale is not None:
                    buffer.mul_(layer_scale)
                if layer.bias is not None:
                    buffer.add_(self._vectors.row(layer.bias))
                current = buffer
            elif isinstance(layer, Activation):
                current = buffer if layer.keeps_input else before
                layer.forward(before, current)
            else:
                current = self._normalise(layer, before, buffer, scratch)
            trace.append((before, current))
        if output_scale is not None:
            current.mul_(output_scale)
        grad = self._output_gradient(current, flat, scratch).mul_(coefficient)
        for position in range(len(self._layers) - 1, -1, -1):
            layer, (before, after) = self._layers[position], trace[position]
            if isinstance(layer, Activation):
                layer.backward(grad, before, after, grad)
            elif isinstance(layer, Norm):
                grad = self._normalise_backward(layer, grad, scratch)
            else:
                grad = self._affine_backward(
                    layer, grad, before, layer_scale, sinks, scratch.grads[position]
                )

    def _affine_backward(
        self,
        layer: Affine,
        grad: Tensor,
        before: Tensor,
        layer_scale: Tensor | None,
        sinks: tuple[list[Tensor], float] | None,
        buffer: Tensor | None,
    ) -> Tensor:
        if layer.bias is not None:
            torch.sum(grad, 1, out=self._vectors.gradients[layer.bias])
        weight = self._weights[layer.weight]
        below = grad
        if buffer is not None:
            below = _times(grad, weight, buffer)
            if layer_scale is not None:
                below.mul_(layer_scale)
        left, right = (before, grad) if buffer is None else (grad, before)
        if sinks is None:
            weight.baddbmm_(left.mT, right)
        else:
            targets, keep = sinks
            place = next(i for i, name in enumerate(self._weights) if name == layer.weight)
            targets[place].baddbmm_(left.mT, right, beta=keep)
        return below

    # ---- loss and batch norm

    def _output_gradient(self, outputs: Tensor, flat: Tensor, scratch: _Scratch) -> Tensor:
        """Gradient of the batch's summed loss with respect to the outputs, overwriting them."""
        if self._job.loss.kind == "other":
            return self._autograd_gradient(outputs, flat)
        targets = torch.index_select(self._targets, 0, flat, out=scratch.targets).view_as(outputs)
        if self._job.loss.kind == "mean_squared_error":
            return outputs.sub_(targets).mul_(2 / outputs.shape[2])
        # A row-wise softmax from elementwise parts: the fused kernel is slow on short rows.
        torch.amax(outputs, 2, keepdim=True, out=scratch.row)
        outputs.sub_(scratch.row).exp_()
        torch.sum(outputs, 2, keepdim=True, out=scratch.row)
        return outputs.div_(scratch.row).sub_(targets)

    def _autograd_gradient(self, outputs: Tensor, flat: Tensor) -> Tensor:
        batch = outputs.shape[1]
        targets = self._targets[flat].view(self._members, batch, *self._targets.shape[1:])
        with torch.inference_mode(False):
            leaf = outputs.clone().requires_grad_()
            shown = targets.clone()
            mean = [self._job.loss.mean(leaf[e], shown[e]) for e in range(self._members)]
            (grad,) = torch.autograd.grad(torch.stack(mean).sum(), leaf)
        return outputs.copy_(grad).mul_(batch)

    def _normalise(self, layer: Norm, x: Tensor, out: Tensor, scratch: _Scratch) -> Tensor:
        batch = x.shape[1]
        if batch < 2:
            raise ValueError(
                "batch norm cannot train on a batch of one sample; use a batch size of at least 2 "
                "that leaves no rest of one"
            )
        mean = x.mean(1, keepdim=True)
        centred = x.sub_(mean)
        variance = centred.square().mean(1, keepdim=True)
        inverse = torch.rsqrt(variance + layer.eps)
        normal = centred.mul_(inverse)
        scratch.norms[id(layer)] = (normal, inverse)
        if layer.running is not None:
            self._track(layer, mean.squeeze(1), variance.squeeze(1) * (batch / (batch - 1)))
        if layer.weight is None or layer.bias is None:
            return out.copy_(normal)
        weight, bias = self._vectors.row(layer.weight), self._vectors.row(layer.bias)
        return torch.addcmul(bias, normal, weight, out=out)

    def _track(self, layer: Norm, mean: Tensor, variance: Tensor) -> None:
        seen = self._buffers[f"{layer.running}num_batches_tracked"].add_(1)
        rate = layer.momentum if layer.momentum is not None else 1 / float(seen[0])
        self._buffers[f"{layer.running}running_mean"].lerp_(mean, rate)
        self._buffers[f"{layer.running}running_var"].lerp_(variance, rate)

    def _normalise_backward(self, layer: Norm, grad: Tensor, scratch: _Scratch) -> Tensor:
        normal, inverse = scratch.norms[id(layer)]
        along = (grad * normal).sum(1)
        total = grad.sum(1)
        if layer.weight is not None and layer.bias is not None:
            self._vectors.gradients[layer.weight].copy_(along)
            self._vectors.gradients[layer.bias].copy_(total)
            inverse = torch.mul(inverse, self._vectors.row(layer.weight))
        batch = grad.shape[1]
        grad.sub_(total[:, None] / batch).addcmul_(normal, along[:, None], value=-1 / batch)
        return grad.mul_(inverse)

    def _scratch_for(self, batch: int) -> _Scratch:
        if batch not in self._scratch:
            self._scratch[batch] = _Scratch(
                self._layers, self._members, batch, self._inputs, self._targets
            )
        return self._scratch[batch]


def _times(grad: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """Output gradients `[E, batch, outputs]` times weight `[E, outputs, inputs]`.

    One or two outputs are too few for a matrix product to pay: their outer products are summed.
    """
    if grad.shape[2] > 2:
        return torch.bmm(grad, weight, out=out)
    torch.mul(grad[:, :, :1], weight[:, :1], out=out)
    return out.addcmul_(grad[:, :, 1:], weight[:, 1:]) if grad.shape[2] == 2 else out


def _stored(weight: Tensor, *, transpose: bool) -> Tensor:
    return (weight.mT if transpose else weight).clone(memory_format=torch.contiguous_format)


class _Vectors:
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


class _Scratch:
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
        self.outputs: list[Tensor] = []
        self.grads: list[Tensor | None] = []
        self.norms: dict[int, tuple[Tensor, Tensor]] = {}
        for position, layer in enumerate(layers):
            needs_grad = isinstance(layer, Affine) and position > 0
            self.grads.append(empty(members, batch, width) if needs_grad else None)
            if isinstance(layer, Affine):
                width = layer.outputs
            in_place = isinstance(layer, Activation) and not layer.keeps_input
            self.outputs.append(empty(0) if in_place else empty(members, batch, width))
