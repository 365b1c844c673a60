"""A model, a loss and data, seen as one function of the parameters.

L(theta) = sum_i l(f(theta, x_i), y_i) / n, where n is the loss's own denominator: the number of
samples, or the weight of the labels that count (class weights, `ignore_index`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import Dataset

from undertow.objective._batches import (
    checked_pair,
    fingerprint,
    is_finite,
    piece,
    reiterable,
    with_own_random_state,
)
from undertow.objective._curvature_products import Products, Source, weighted_gradients
from undertow.objective._gauss_newton_trace import gauss_newton_trace
from undertow.objective._linearization import Kind
from undertow.objective._loss_terms import GivenLoss, OwnLoss
from undertow.objective._losses import Loss as Loss
from undertow.objective._losses import as_sum_and_count as as_sum_and_count
from undertow.objective._losses import check_targets as check_targets
from undertow.objective._losses import logits_of as logits_of
from undertow.objective._module import (
    eval_mode,
    like_parameters,
    own_random_state,
    product_type,
    select,
    shown,
)
from undertow.objective._module import evaluating as evaluating
from undertow.objective._module import out_of_memory as out_of_memory
from undertow.objective._module import unfused as unfused

Parameters = Mapping[str, Tensor]
Result = TypeVar("Result")

# Tensors go through the model in one piece while the inputs take at most so many bytes.
_PIECE_BYTES = 2**25


class Objective:
    """L(theta), the mean loss of a model over data, as a function of its parameters.

    Evaluated in eval mode: batch-norm statistics are frozen and dropout is off. The module is
    left exactly as found: modes, gradients, buffers, `requires_grad`, and the random state of
    torch and of a loader's generator; also when something raises. The caller's autocast does not
    reach it. Each call passes over the data once, in microbatches; one that runs out of memory is
    halved, and later ones with it.

    Curvature products run attention by plain matrix products (the fused kernels have no second
    derivative) and half-precision modules in float32. They keep the graphs of the first backward
    pass, up to 1 GiB, and use them again while parameters, buffers and the options of a loss
    module have the same values; `release()` frees them. Data are not read again in the meantime:
    tensors are known to have changed by their version, which writing through `.data` or NumPy
    leaves as it is, datasets and loaders not at all. Call `release()` after such a change.

    Args:
        model: any module that maps a batch of inputs to outputs. Inputs that are a dictionary
            are its keyword arguments; of an output with `.logits`, the loss sees these.
        loss: maps (outputs, targets) to the batch mean (0-d) or a value per sample (`[batch]`).
            It must be an average over samples, so that microbatches add up. None for the loss
            that a Hugging Face-style model returns when it is given labels.
        data: a tuple of tensors (inputs, targets), a `Dataset` of such pairs, or anything that
            can be iterated over again and again in batches (inputs, targets): a `DataLoader`, a
            list. A loader that shuffles gives the same order on every pass. A batch may be a
            dictionary with the targets under "labels".
        params: which parameters theta consists of: None for those that require a gradient, a
            list of names, or a function (name, parameter) -> bool.
        microbatch: samples per forward pass; by default whole batches, or as many samples of a
            tensor as take 32 MiB.

    Raises:
        TypeError: if the data can be iterated over only once, or are no tensors, or a parameter
            is not of a real floating-point type.
        ValueError: if the data are empty or not finite, a parameter is unknown or has no values
            yet, or microbatch < 1; on evaluation also for targets and losses that make no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None,
        data: tuple[Tensor, Tensor] | Dataset[Any] | Iterable[Any],
        *,
        params: Iterable[str] | Callable[[str, nn.Parameter], bool] | None = None,
        microbatch: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
        if microbatch is not None and (not isinstance(microbatch, int) or microbatch < 1):
            raise ValueError(f"microbatch must be a whole number above 0; got {microbatch!r}")
        self.model = model
        self.loss = loss
        self.param_names = select(model, params)
        self._terms = OwnLoss() if loss is None else GivenLoss(loss)
        self._piece = microbatch
        self._num_samples: int | None = None
        self._counted: Any = None
        # The layout of directions, while parameters hold still.
        self._held: tuple[int, torch.device, torch.dtype] | None = None
        self._data: Iterable[Any] = [data]
        if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
            inputs, _ = checked_pair(data, 0)
            sample_bytes = max(1, inputs[0].numel() * inputs.element_size())
            self._piece = microbatch or max(1, _PIECE_BYTES // sample_bytes)
            self._num_samples = len(inputs)
            self._counted = fingerprint(self._data)
        else:
            self._data = reiterable(data, microbatch)
        self._source = Source(
            self.param_names,
            evaluating=self._evaluating,
            own_random_state=self._own_random_state,
            current=self._current,
            copies=self._copies,
            fingerprint=self._fingerprint,
            logits=self._logits,
            logits_and_sum=self._logits_and_sum,
            sample_sums=self._sample_sums,
            count=self._count,
            output_product=self._terms.output_product,
            sweep=self._sweep,
            out_of_memory=out_of_memory,
        )
        self._products = Products(self._source)

    @property
    def num_params(self) -> int:
        """Length p of the flat parameter vector."""
        selected = set(self.param_names)
        return sum(p.numel() for name, p in self.model.named_parameters() if name in selected)

    @property
    def num_samples(self) -> int:
        """Number of samples; counted by one pass over the data where it is not known."""
        found = fingerprint(self._data)
        if self._num_samples is None or self._counted != found:  # a list may have grown
            self._num_samples = sum(len(targets) for _, targets in self.batches())
            self._counted = found
        return self._num_samples

    def batches(self) -> Iterator[tuple[Any, Tensor]]:
        """The data on the model's device, checked, in microbatches (inputs, targets)."""
        device = next(self.model.parameters()).device
        empty = True
        for index, batch in enumerate(with_own_random_state(self._data)):
            inputs, targets = checked_pair(batch, index)
            step = self._piece or len(targets)
            for start in range(0, len(targets), step):
                empty = False
                chosen = slice(start, start + step)
                yield piece(inputs, chosen, device), piece(targets, chosen, device)
        if empty:
            raise ValueError("data are empty: an objective needs at least one sample")

    def value(self) -> Float[Tensor, ""]:
        """L(theta)."""
        return self._mean(
            lambda parameters, inputs, targets: self._loss(parameters, inputs, targets)
        )

    def gradient(self) -> Float[Tensor, " params"]:
        """The gradient of L as one vector, in the order of `param_names`.

        In the parameters' type; half precision is added up in float32. A parameter that the loss
        does not depend on has gradient zero.

        Raises:
            ValueError: if the loss depends on none of the parameters.
        """
        reached, own_type = False, torch.float32

        def contribution(
            parameters: Parameters, inputs: Any, targets: Tensor
        ) -> tuple[Tensor, Tensor]:
            nonlocal reached, own_type
            with torch.enable_grad():
                leaves = {n: parameters[n].detach().requires_grad_() for n in self.param_names}
                total, count = self._loss({**parameters, **leaves}, inputs, targets)
                gradients: Iterable[Tensor | None] = [None] * len(leaves)
                if total.requires_grad:
                    # Of the mean: half precision would not hold the gradient of the sum.
                    gradients = torch.autograd.grad(
                        total / count, list(leaves.values()), allow_unused=True
                    )
            reached = (
                reached or bool(count == 0) or any(gradient is not None for gradient in gradients)
            )
            parts = [
                torch.zeros_like(leaf) if gradient is None else gradient
                for leaf, gradient in zip(leaves.values(), gradients, strict=True)
            ]
            flat = torch.cat([part.flatten() for part in parts])
            own_type = flat.dtype
            return flat.to(product_type(flat)) * count, count

        gradient = self._mean(contribution)
        self._check_reached(reached)
        return gradient.to(own_type)

    def hvp(
        self, vectors: Float[Tensor, "directions params"]
    ) -> Float[Tensor, "directions params"]:
        """The Hessian of L times each direction.

        In float32 for half-precision parameters, otherwise in their type. A ReLU has the second
        derivative zero.

        Raises:
            ValueError: if the directions are no block `[k, p]` of finite numbers, or the loss
                depends on none of the parameters, is not finite, or cannot be differentiated
                twice.
        """
        return self._product("hessian", vectors)

    def ggnvp(
        self, vectors: Float[Tensor, "directions params"]
    ) -> Float[Tensor, "directions params"]:
        """The Gauss-Newton matrix, mean of J_i^T (hessian of l in the outputs) J_i, likewise.

        For `NLLLoss` the outputs count as logits, which changes nothing but that the loss is then
        not linear in them.

        Raises:
            TypeError: if outputs are neither a tensor nor have `.logits`.
            ValueError: as `hvp`.
        """
        return self._product("ggn", vectors)

    def ggn_trace(self, max_outputs: int = 16) -> tuple[float, int] | None:
        """The exact trace of the Gauss-Newton matrix, and its cost in gradients of all samples.

        Exact from the per-sample gradients of as many directions as a sample has outputs. None
        where these are more than `max_outputs`, samples depend on each other, or the model cannot
        be mapped over samples by `torch.func.vmap`.

        Raises:
            TypeError, ValueError: as `ggnvp`.
        """
        found = gauss_newton_trace(self._source, max_outputs)
        if found is None:
            return None
        total, count, products = found
        return float(self._checked_mean(total, count)), products

    def sample_noise(
        self, draws: int, *, batch_size: int, generator: torch.Generator
    ) -> Float[Tensor, "draws params"]:
        """Normal draws of the noise of a mini-batch gradient, of covariance Sigma / batch_size.

        Sigma is the covariance of the gradients of single samples, centred at the full gradient:
        with standard normal z, the draw is sum_i (z_i - mean z) grad l_i / sqrt(n batch_size),
        one backward pass through a weighted loss. Where samples count differently (class
        weights, ignored labels; denominators c_i), Sigma is that of
        (c_i / mean c) (grad l_i - grad L): a mini-batch's ratio of sums, to first order.

        Args:
            draws: how many.
            batch_size: samples, drawn with replacement, in the mini-batch whose noise it is.
            generator: where the normal numbers come from.

        Raises:
            TypeError: if there is no generator.
            ValueError: if draws or batch_size < 1, or there is only one sample.
        """
        for name, number in (("draws", draws), ("batch_size", batch_size)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a whole number above 0; got {number!r}")
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator; got {generator!r}")
        samples = self.num_samples
        if samples < 2:
            raise ValueError("data hold one sample: its gradient has no covariance")
        with torch.inference_mode(False):  # whose tensors no graph could hold
            return self._drawn_noise(draws, samples, batch_size, generator)

    def _drawn_noise(
        self, draws: int, samples: int, batch_size: int, generator: torch.Generator
    ) -> Tensor:
        weights = torch.randn(
            draws, samples, generator=generator, dtype=torch.float64, device=generator.device
        )
        if not self._terms.known:  # the first evaluation finds it out
            self.value()
        counts = torch.cat([self._denominators(targets) for _, targets in self.batches()])
        counts = counts.to(weights)
        if counts.sum() == 0:
            raise ValueError("no target counts: every label is ignored or has class weight zero")
        weights -= (weights @ counts / counts.sum())[:, None]
        total = weighted_gradients(self._source, weights)
        return self._checked_mean(total, math.sqrt(samples * batch_size) * counts.mean())

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """For many products at the same parameters: values are compared once, not each time.

        Inside, parameters, buffers and data must not change; after a change, products may be
        those at the old values. The module is in eval mode and attention unfused until the end.
        """
        outer, self._held = self._held, self._block_layout()
        try:
            with eval_mode(self.model), self._products.fixed():
                yield
        finally:
            self._held = outer

    def release(self) -> None:
        """Free the graphs that curvature products keep."""
        self._products.release()

    def predictions(self) -> Shaped[Tensor, "samples ..."]:
        """The model's outputs for all samples, in the order of the data."""
        outputs: list[Tensor] = []

        def forward(parameters: Parameters, inputs: Any, targets: Tensor) -> Tensor:
            output = self._outputs(parameters, inputs, targets)
            output = logits_of(output)
            if not isinstance(output, Tensor):
                raise TypeError(f"predictions need a tensor; the model returns {type(output)}")
            return output

        self._sweep(forward, outputs.append)
        return torch.cat(outputs)

    def __repr__(self) -> str:
        loss = getattr(self.loss, "__name__", type(self.loss).__name__)
        loss = "its own loss" if self.loss is None else loss
        samples = "its" if self._num_samples is None else f"{self._num_samples:,}"
        return (
            f"Objective: the mean of {loss} of {type(self.model).__name__} over {samples} samples, "
            f"in {self.num_params:,} parameters; in eval mode (batch-norm statistics frozen, "
            "dropout off)."
        )

    # Every product is a mean over microbatches: curvature and noise add a contribution each.

    def _outputs(self, parameters: Parameters, inputs: Any, targets: Tensor | None) -> Any:
        if not isinstance(inputs, Mapping):
            return functional_call(
                self.model, dict(parameters), (like_parameters(inputs, parameters),)
            )
        arguments = {name: like_parameters(part, parameters) for name, part in inputs.items()}
        if self.loss is None and targets is not None:
            arguments["labels"] = targets
        return functional_call(self.model, dict(parameters), (), arguments)

    def _loss(self, parameters: Parameters, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and count of the loss over one microbatch."""
        self._learn(parameters, inputs, targets)
        outputs = self._outputs(parameters, inputs, targets)
        return self._terms.sum_and_count(outputs, targets, len(targets))

    def _learn(self, parameters: Parameters, inputs: Any, targets: Tensor) -> None:
        """Find out what the denominator of the model's own loss is, the first time."""
        if isinstance(self._terms, GivenLoss) or self._terms.known:
            return
        with torch.enable_grad():
            leaves = {name: parameters[name].detach() for name, _ in self.model.named_parameters()}
            for leaf in leaves.values():
                leaf.requires_grad_(leaf.is_floating_point())
            self._terms.learn(self._outputs({**parameters, **leaves}, inputs, targets), targets)

    def _denominators(self, targets: Tensor) -> Tensor:
        """What each sample of a microbatch adds to the loss's denominator."""
        return self._terms.denominators(targets)

    def _count(self, targets: Tensor) -> Tensor:
        return self._denominators(targets).sum()

    def _logits_and_sum(
        self, parameters: Parameters, inputs: Any, targets: Tensor
    ) -> tuple[Any, Tensor]:
        self._learn(parameters, inputs, targets)
        outputs = self._outputs(parameters, inputs, targets)
        return logits_of(outputs), self._terms.sum_by_logits(outputs, targets, len(targets))

    def _logits(self, parameters: Parameters, inputs: Any) -> Any:
        return logits_of(self._outputs(parameters, inputs, None))

    def _sample_sums(self, parameters: Parameters, inputs: Any, targets: Tensor) -> Tensor:
        return self._terms.sample_sums(self._outputs(parameters, inputs, targets), targets)

    def _product(self, kind: Kind, vectors: Tensor) -> Tensor:
        block = self._checked_block(vectors)
        if len(block) == 0:
            return block
        total, count, reached = self._products(kind, block, self._num_samples)
        self._check_reached(reached)
        return self._checked_mean(total, count)

    def _checked_block(self, vectors: Tensor) -> Tensor:
        if not isinstance(vectors, Tensor):
            raise TypeError(f"directions must be a tensor [k, p]; got {type(vectors).__name__}")
        size, device, dtype = self._held or self._block_layout()
        if vectors.ndim != 2 or vectors.shape[1] != size:
            hint = "; write v[None]" if vectors.shape == (size,) else ""
            raise ValueError(
                f"directions must be a block [k, {size}]; got {tuple(vectors.shape)}{hint}"
            )
        block = vectors.detach().to(device, dtype)
        if not is_finite(block):
            raise ValueError("directions hold NaN or infinities")
        return block

    def _block_layout(self) -> tuple[int, torch.device, torch.dtype]:
        """How long directions are, where, and of what type."""
        named = dict(self.model.named_parameters())
        chosen = [named[name] for name in self.param_names]
        size = sum(parameter.numel() for parameter in chosen)
        return size, chosen[0].device, product_type(chosen[0])

    def _evaluating(self) -> AbstractContextManager[None]:
        return evaluating(self.model)

    def _own_random_state(self) -> AbstractContextManager[None]:
        return own_random_state(self.model)

    def _fingerprint(self) -> Any:
        """Changes when tensors in the data are replaced or written to, and when the loss is."""
        return fingerprint(self._data), self._terms.state()

    def _copies(self) -> dict[str, Tensor]:
        """Parameters and buffers, half precision as single: what graphs may hold on to."""
        with torch.inference_mode(False):  # in which copies could not be differentiated
            return {n: t.to(product_type(t), copy=True) for n, t in self._current().items()}

    def _current(self) -> dict[str, Tensor]:
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: tensor.detach() for name, tensor in named}

    def _mean(
        self, contribution: Callable[[Parameters, Any, Tensor], tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Sum of the contributions over the sum of their counts."""
        totals: list[Tensor] = []

        def add(result: tuple[Tensor, Tensor]) -> None:
            if totals:
                for total, part in zip(totals, result, strict=True):
                    total += part
            else:
                # Sums in half precision would stop growing.
                totals.extend(part.to(product_type(part), copy=True) for part in result)

        self._sweep(contribution, add)
        return self._checked_mean(*totals)

    def _checked_mean(self, total: Tensor, count: Tensor) -> Tensor:
        if count == 0:
            raise ValueError("no target counts: every label is ignored or has class weight zero")
        mean = total.div_(count.to(total))  # a sum of our own making
        if not is_finite(mean):
            bad = [n for n, p in self.model.named_parameters() if not torch.isfinite(p).all()]
            cause = f"parameter {bad[0]} is not finite" if bad else "outputs or loss overflow"
            raise ValueError(f"the objective is not finite although the data are: {cause}")
        return mean

    def _check_reached(self, reached: bool) -> None:
        if not reached:
            raise ValueError(
                f"the loss depends on none of the parameters {shown(self.param_names)}: does "
                "the model or the loss detach, round, or run under no_grad?"
            )

    def _sweep(
        self,
        compute: Callable[[Parameters, Any, Tensor], Result],
        collect: Callable[[Result], None],
        tensors: Parameters | None = None,
    ) -> None:
        """One pass over the data, halving the microbatch whenever memory runs out."""
        with evaluating(self.model), torch.no_grad():
            if tensors is None:
                # Copies of buffers, so that a module that writes to them writes to nothing of ours.
                tensors = {name: p.detach() for name, p in self.model.named_parameters()}
                tensors |= {name: buffer.clone() for name, buffer in self.model.named_buffers()}
            pieces = 0
            for batch in self.batches():
                waiting = [batch]
                while waiting:
                    inputs, targets = waiting.pop()
                    pieces += 1
                    if pieces > 1 and self._terms.averages is False:
                        raise ValueError(
                            "loss is no average over samples: its mean over a batch is not that of "
                            "its means over two halves, so batches do not add up. Return a value "
                            "per sample, give class weights and ignore_index by "
                            "nn.CrossEntropyLoss, or all data in one batch"
                        )
                    try:
                        result = compute(tensors, inputs, targets)
                    except RuntimeError as error:
                        if not out_of_memory(error) or len(targets) == 1:
                            raise
                    else:
                        collect(result)
                        continue
                    half = (len(targets) + 1) // 2
                    self._piece = min(half, self._piece or half)
                    waiting += [
                        (piece(inputs, part, targets.device), targets[part])
                        for part in (slice(half, None), slice(half))
                    ]
