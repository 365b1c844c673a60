"""Plain MLP ensembles as a few batched matrix products a step, with no autograd.

Under SGD no gradient is materialised: the matrix product that would form it adds it straight to
the weights. The member's learning rate sits in the output gradient, and its weight decay in a
scale s per member, W = s V, that is folded back into V now and then:

    V <- V - (lr / s') grad,    s' = (1 - lr weight_decay) s.

Where every nonlinearity is positively homogeneous the scale leaves the layers altogether: with
h_l = s^l k_l the chain runs on k_l, and only the biases and the outputs see powers of s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.train.ensemble._batch_norm import BatchNorms
from undertow.train.ensemble._engines import Averages, Job, zero_member
from undertow.train.ensemble._lanes import Averager, Run
from undertow.train.ensemble._layers import Activation, Affine, Layer, Norm
from undertow.train.ensemble._memory import Scratch, Vectors
from undertow.train.ensemble._output_gradients import OutputGradients
from undertow.train.ensemble._sampling import Batch
from undertow.train.rules import (
    add_scaled,
    along_members,
    momentum,
    scaled_update,
    sgd,
    with_values,
)

# The scale is folded back after so many steps, or before its powers leave e^-20. Both count from
# the last folding, so that they fall on the same steps however the steps are divided into calls.
_FOLD_STEPS = 128
_MAX_LOG_SCALE = 20.0


class FusedEngine:
    """E plain MLPs stepped together."""

    def __init__(
        self,
        layers: Sequence[Layer],
        params: dict[str, Tensor],
        fixed_tensors: dict[str, Tensor],
        job: Job,
    ) -> None:
        self._layers = layers
        self._names = list(params)
        self._job = job
        rule, hyper = job.rule, job.hyper
        self._kernel = _kernel(rule.update)
        self._affine = [layer for layer in layers if isinstance(layer, Affine)]
        self._members = next(iter(params.values())).shape[0]
        self._inputs = job.inputs.flatten(1).contiguous()
        self._dtype = self._inputs.dtype
        self._output_gradients = OutputGradients(job, self._affine[-1].outputs, self._dtype)
        # The first layer needs no input gradient, so its weight is kept transposed: [E, in, out].
        stored = [params[layer.weight] for layer in self._affine]
        stored[:1] = [weight.mT for weight in stored[:1]]
        self._weights = {
            layer.weight: weight.clone(memory_format=torch.contiguous_format)
            for layer, weight in zip(self._affine, stored, strict=True)
        }
        self._buffers = {name: value.clone() for name, value in fixed_tensors.items()}
        self._weight_decay = torch.as_tensor(hyper.weight_decay)
        self._decays = bool(self._weight_decay.any())
        # The batches of a step lie side by side; their weights sit in the output gradient.
        self._batches = len(rule.batch_weights)
        self._batch_weights = self._inputs.new_tensor(rule.batch_weights)[:, None, None]
        self._log_scale = torch.zeros(
            self._members, dtype=torch.float64, device=self._inputs.device
        )
        self._unfolded, self._drift = 0, 0.0  # steps and powers of the scale since the last folding
        # Whether powers of the scale pass through the layers, so that only the ends see them.
        self._passes_scale = (
            self._decays
            and self._kernel == "sgd"
            and all(
                isinstance(layer, Affine) or (isinstance(layer, Activation) and layer.homogeneous)
                for layer in layers
            )
        )
        self._vectors = Vectors(layers, params, self._members, rescaled=self._passes_scale)
        self._norms = BatchNorms(self._vectors, self._buffers, self._members, self._batches)
        tensors = [*self._weights.values(), self._vectors.values]
        self._gradients: list[Tensor] = []
        self._state = rule.init(tensors)
        if self._kernel == "momentum":
            self._gradients = self._state["velocity"]
            keep = torch.as_tensor(hyper.momentum).to(self._dtype)
            shared = bool((keep == keep.flatten()[0]).all())
            self._momentum = float(torch.as_tensor(hyper.momentum).flatten()[0]) if shared else keep
            self._weight_decay = self._weight_decay.to(self._dtype)
        elif self._kernel != "sgd":
            self._gradients = [torch.zeros_like(tensor) for tensor in tensors]
        self._tensors = tensors
        self._averager = Averager(job.lanes, tensors)
        self._scratch: dict[int, Scratch] = {}

    # ---- the interface of an engine

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the trained parameters, each `[E, ...]`, in the module's order."""
        first, scale = self._affine[0].weight, self._scale()
        found = {}
        for name, value in self._weights.items():
            shown = value.mT if name == first else value
            found[name] = torch.mul(shown, scale, out=shown.new_empty(shown.shape))
        found |= {name: view.clone() for name, view in self._vectors.views.items()}
        return {name: found[name] for name in self._names}

    def fixed(self) -> dict[str, Tensor]:
        """Copies of the buffers, each `[E, ...]`."""
        return {name: value.clone() for name, value in self._buffers.items()}

    def silence(self, member: int) -> None:
        """Set a diverged member's tensors to zero, so that it stays finite from here on."""
        zero_member([*self._tensors, *self._gradients, *self._buffers.values()], member)
        for values in self._state.values():
            zero_member(values, member)

    def advance(
        self, batches: Sequence[Batch], rates: Float[Tensor, "steps E"], averages: Averages
    ) -> None:
        """One update for each batch, at the learning rates given, and averages where due."""
        rule = self._job.rule
        with torch.inference_mode():
            if self._kernel is not None:
                rates = rates / rule.steps_per_step
            if self._kernel == "sgd":
                self._advance_sgd(batches, rates, averages)
            else:
                self._advance_rule(batches, rates, averages)

    # ---- stepping

    def _advance_sgd(self, batches: Sequence[Batch], rates: Tensor, averages: Averages) -> None:
        log_decay = torch.log1p(-rates * self._weight_decay)
        first = 0
        while first < len(batches):
            fits = self._fits(log_decay[first:])
            if not fits:
                self._fold()
                continue
            block = slice(first, first + fits)
            within = {step - first: runs for step, runs in averages.items() if step >= first}
            self._sgd_block(batches[block], rates[block], log_decay[block], within)
            first += fits

    def _fits(self, log_decay: Float[Tensor, "steps E"]) -> int:
        """How many of the steps to take before the scale must be folded back."""
        if not self._decays:
            return len(log_decay)
        powers = -log_decay.min(dim=1).values * len(self._affine)
        drift = torch.cat([powers.new_tensor([self._drift]), powers]).cumsum(0)[1:]
        fits = min(
            int(torch.searchsorted(drift, _MAX_LOG_SCALE, right=True)),
            _FOLD_STEPS - self._unfolded,
        )
        if not self._unfolded:
            fits = max(fits, 1)
        if fits:
            self._unfolded += fits
            self._drift = float(drift[fits - 1])
        return fits

    def _scale(self) -> Tensor:
        """The scale of each member, shaped to multiply its weights."""
        return torch.exp(self._log_scale).to(self._dtype)[:, None, None]

    def _fold(self) -> None:
        scale = self._scale()
        for weight in self._weights.values():
            weight.mul_(scale)
        self._log_scale.zero_()
        self._unfolded, self._drift = 0, 0.0

    def _sgd_block(
        self, batches: Sequence[Batch], rates: Tensor, log_decay: Tensor, averages: Averages
    ) -> None:
        logs = torch.cat([self._log_scale[None], log_decay]).cumsum(0)
        before, after = logs[:-1], logs[1:]  # log s before and after each step, [steps, E]
        lazy, depth = self._passes_scale, len(self._affine)
        sizes = torch.tensor([own.index.shape[2] for own in batches], device=rates.device)[:, None]
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
        for step, batch in enumerate(batches):
            if lazy:
                torch.mul(vectors.values, bias_scales[step], out=vectors.shown)
            self._step(
                batch, coefficients[step], layer_scales[step], output_scales[step], sinks=None
            )
            if vectors.count:
                if self._decays:
                    vectors.values.mul_(shrinks[step])
                vectors.values.addcmul_(vectors.gradient, gains[step])
            if step in averages:
                self._average(averages[step], after[step])
        self._log_scale.copy_(after[-1])

    def _columns(self, values: Tensor, trailing: int) -> Sequence[Tensor]:
        """Values `[steps, E]` as one tensor a step, shaped to multiply `[E, ...]` tensors."""
        return values.to(self._dtype).reshape(*values.shape, *[1] * trailing).unbind(0)

    def _average(self, runs: Sequence[Run], log_scale: Tensor | None = None) -> None:
        """Average lanes; those of one member share their scale, so that V may stand for W."""
        scales: list[Tensor | None] | None = None
        if log_scale is not None and self._decays:
            scale = torch.exp(log_scale).to(self._dtype)[:, None, None]
            scales = [*[scale] * len(self._weights), None]
        state = [value for own in self._state.values() for value in own]
        buffers = list(self._buffers.values())
        self._averager.average(runs, self._tensors, state, buffers, scales)

    def _advance_rule(self, batches: Sequence[Batch], rates: Tensor, averages: Averages) -> None:
        take = self._momentum_step if self._kernel == "momentum" else self._rule_step
        for step, (batch, rate) in enumerate(zip(batches, rates.to(self._dtype), strict=True)):
            take(batch, rate, rate.new_full((1, 1, 1), 1 / batch.index.shape[2]))
            if step in averages:
                self._average(averages[step])

    def _rule_step(self, batch: Batch, rate: Tensor, coefficient: Tensor) -> None:
        """Any rule: gradients first, then the rule's own update."""
        self._step(batch, coefficient, None, None, sinks=(self._gradients, 0.0))
        self._gradients[-1].copy_(self._vectors.gradient)
        _, self._state = self._job.rule.update(
            self._tensors,
            self._gradients,
            self._state,
            with_values(self._job.hyper, lr=rate),
            inplace=True,
        )

    def _momentum_step(self, batch: Batch, rate: Tensor, coefficient: Tensor) -> None:
        """Heavy ball: the matrix product that forms the gradient adds it to the velocity."""
        keep = self._momentum
        if isinstance(keep, Tensor):
            for velocity in self._gradients:
                velocity.mul_(along_members(keep, velocity))
            keep = 1.0
        self._step(batch, coefficient, None, None, sinks=(self._gradients, keep))
        self._gradients[-1].mul_(keep).add_(self._vectors.gradient)
        for tensor, velocity in zip(self._tensors, self._gradients, strict=True):
            if self._decays:
                add_scaled(velocity, tensor, self._weight_decay, out=velocity)
            add_scaled(tensor, velocity, -rate, out=tensor)

    def _step(
        self,
        batch: Batch,
        coefficient: Tensor,
        layer_scale: Tensor | None,
        output_scale: Tensor | None,
        sinks: tuple[list[Tensor], float] | None,
    ) -> None:
        """One forward and backward pass.

        With `sinks=None` the weights themselves receive `coefficient` times the gradient of the
        batch's summed loss; otherwise the tensors in `sinks` do, their old value kept by a factor.
        """
        rows, flat = batch.index.shape[1] * batch.index.shape[2], batch.index.reshape(-1)
        scratch = self._scratch_for(rows)
        torch.index_select(self._inputs, 0, flat, out=scratch.inputs)
        current = scratch.inputs.view(self._members, rows, -1)
        trace: list[tuple[Tensor, Tensor]] = []
        inverse: dict[int, Tensor] = {}  # of batch norm's standard deviations
        first = self._affine[0]
        for position, layer in enumerate(self._layers):
            before, buffer = current, scratch.outputs[position]
            if isinstance(layer, Affine):
                weight = self._weights[layer.weight]
                current = torch.bmm(before, weight if layer is first else weight.mT, out=buffer)
                if layer_scale is not None:
                    current.mul_(layer_scale)
                if layer.bias is not None:
                    current.add_(self._vectors.row(layer.bias))
            elif isinstance(layer, Activation):
                current = before if buffer is None else buffer
                layer.forward(before, current)
            else:
                normal = scratch.normals[position]
                current, inverse[position] = self._norms.forward(layer, before, normal, buffer)
            trace.append((before, current))
        if output_scale is not None:
            current.mul_(output_scale)
        grad = self._output_gradients.of(current, batch, scratch).mul_(coefficient)
        if self._job.rule.batch_weights != (1,):
            grad.view(*batch.index.shape, -1).mul_(self._batch_weights)
        for position in range(len(self._layers) - 1, -1, -1):
            layer, (before, after) = self._layers[position], trace[position]
            if isinstance(layer, Activation):
                layer.backward(grad, before, after, grad)
            elif isinstance(layer, Norm):
                grad = self._norms.backward(
                    layer, grad, scratch.normals[position], inverse[position]
                )
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

    def _scratch_for(self, batch: int) -> Scratch:
        if batch not in self._scratch:
            self._scratch[batch] = Scratch(
                self._layers, self._members, batch, self._inputs, self._output_gradients.targets
            )
        return self._scratch[batch]


def _kernel(update: Callable[..., object]) -> str | None:
    """`sgd` or `momentum` where an update is that rule's own, at lr / steps_per_step; else None.

    Their faster forms here stand in for the update itself, so a rule's name would not do.
    """
    if not isinstance(update, partial):
        return "sgd" if update is sgd.update else None
    if update.func is scaled_update:
        inner, scaling, _ = update.args
        return _kernel(inner) if scaling == sgd.scaling == momentum.scaling else None
    heavy_ball = momentum.update
    assert isinstance(heavy_ball, partial)
    # Not the same object where a rule was pickled.
    same = (update.func, update.args, update.keywords) == (heavy_ball.func, heavy_ball.args, {})
    return "momentum" if same else None


def _times(grad: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """Output gradients `[E, batch, outputs]` times weight `[E, outputs, inputs]`.

    One or two outputs are too few for a matrix product to pay: their outer products are summed.
    """
    if grad.shape[2] > 2:
        return torch.bmm(grad, weight, out=out)
    torch.mul(grad[:, :, :1], weight[:, :1], out=out)
    return out.addcmul_(grad[:, :, 1:], weight[:, 1:]) if grad.shape[2] == 2 else out
