"""A model, a loss and data, seen as one function of the parameters: what users have of a risk.

Arguments are checked here; what is computed is said of an `EmpiricalRisk` (`_risk`), its gradients
and its curvature products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.data import Dataset

from undertow.objective._arguments import whole_number
from undertow.objective._curvature_products import CurvatureProducts
from undertow.objective._evaluation import Tensors
from undertow.objective._gauss_newton_trace import gauss_newton_trace
from undertow.objective._gradients import gradient, gradient_noise_draws
from undertow.objective._losses import Loss
from undertow.objective._risk import EmpiricalRisk


class Objective:
    """L(theta), the mean loss of a model over data, as a function of its parameters.

    Evaluated in eval mode: batch-norm statistics are frozen and dropout is off. The module is
    left exactly as found: modes, gradients, buffers, `requires_grad`, and the random states of
    torch, Python, NumPy and a loader's generator; also when something raises. Not the module is
    run but a copy of its structure, on copies of its tensors. Where forward writes to a parameter
    (`nn.Embedding(max_norm=...)`) L is what it makes of the copy, and derivatives are those at
    the values written, as in training. Parameters that the loss or forward reaches otherwise,
    such as by a penalty in the loss, count too. The caller's autocast does not
    reach it. Each call passes over the data once, in microbatches; one that runs out of memory is
    halved, and later ones with it.

    Curvature products run attention by plain matrix products (the fused kernels have no second
    derivative) and half-precision modules in float32. They keep the graphs of the first backward
    pass, up to 1 GiB, and use them again while parameters, buffers and the options of a loss
    module have the same values; `release()` frees them. Data are not read again in the meantime:
    tensors are known to have changed by their version, which writing through `.data` or NumPy
    leaves as it is, datasets and loaders not at all. Call `release()` after such a change.

    Args:
        model: any module that maps a batch of inputs to outputs; of an output with `.logits`, the
            loss sees these. What `torch.compile` or DataParallel wraps is run by itself, neither
            compiled nor checkpointed: microbatches are what bounds memory.
        loss: maps (outputs, targets) to the batch mean (0-d) or a value per sample (`[batch]`).
            It must be an average over samples, so that microbatches add up; any other only has
            the value and derivatives of one batch. None for the loss
            that a Hugging Face-style model returns when it is given labels.
        data: a tuple (inputs, targets), a `Dataset` of such pairs, or anything that can be
            iterated over again and again in batches (inputs, targets): a `DataLoader`, a list. A
            loader that shuffles gives the same order on every pass. Targets are a tensor; inputs
            are one, or tensors in a tuple or list, `model(*inputs)`, or in a mapping,
            `model(**inputs)`, nested at will. In each the samples lie along the first axis; what
            is no tensor (None, a number, a name) is the same for all. A batch may be a mapping
            with the targets under "labels", or, where the model needs that many arguments by
            place, (first, second, ..., targets).
        params: which parameters theta consists of: None for those that require a gradient, a
            list of names, or a function (name, parameter) -> bool.
        microbatch: samples per forward pass; by default whole batches, or as many samples of a
            tensor as take 32 MiB.

    Raises:
        TypeError: if the data can be iterated over only once, or are no tensors, a parameter is
            not of a real floating-point type, sparse or sharded (`DTensor`), the model is
            TorchScript, quantised or exported, or microbatch is no whole number.
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
        self._risk = EmpiricalRisk(model, loss, data, params=params, microbatch=microbatch)
        self._products = CurvatureProducts(self._risk)

    @property
    def risk(self) -> EmpiricalRisk:
        """What is evaluated, microbatch by microbatch: for measures and solvers of one's own."""
        return self._risk

    @property
    def products(self) -> CurvatureProducts:
        """Curvature products of that risk, and the graphs that they keep."""
        return self._products

    @property
    def model(self) -> nn.Module:
        """The module as given; of one that is compiled or wrapped, the module inside."""
        return self._risk.model

    @property
    def loss(self) -> Loss | None:
        """The loss, as given."""
        return self._risk.loss

    @property
    def param_names(self) -> tuple[str, ...]:
        """What theta consists of, in the order of the module."""
        return self._risk.param_names

    @property
    def num_params(self) -> int:
        """Length p of the flat parameter vector."""
        return self._risk.num_params

    @property
    def num_samples(self) -> int:
        """Number of samples; counted by one pass over the data where it is not known."""
        return self._risk.num_samples

    def batches(self) -> Iterator[tuple[Any, Tensor]]:
        """The data on the model's device, checked, in microbatches (inputs, targets)."""
        return self._risk.batches()

    def value(self) -> Float[Tensor, ""]:
        """L(theta)."""
        return self._risk.value()

    def gradient(self) -> Float[Tensor, " params"]:
        """The gradient of L as one vector, in the order of `param_names`.

        In the parameters' type, of several the widest; half precision is added up in float32. A
        parameter that the loss does not depend on has gradient zero.

        Raises:
            ValueError: if the loss depends on none of the parameters.
        """
        return gradient(self._risk)

    def hvp(
        self, vectors: Float[Tensor, "directions params"]
    ) -> Float[Tensor, "directions params"]:
        """The Hessian of L times each direction.

        In float32 for half-precision parameters, otherwise in their type, of several the widest.
        A ReLU has the second derivative zero.

        Tried once on a few samples, in float64: for symmetry, and where an operation's backward
        pass is written by hand (an `autograd.Function`) as the derivative of the gradient.

        Raises:
            ValueError: if the directions are no block `[k, p]` of finite numbers, or the loss
                depends on none of the parameters, is not finite, cannot be differentiated
                twice, or has second derivatives that are wrong.
        """
        return self._products.product("hessian", vectors)

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
        return self._products.product("ggn", vectors)

    def ggn_trace(self, max_outputs: int = 16) -> tuple[float, int] | None:
        """The exact trace of the Gauss-Newton matrix, and its cost in gradients of all samples.

        Exact from the per-sample gradients of as many directions as a sample has outputs. None
        where these are more than `max_outputs`, samples depend on each other, or the model cannot
        be mapped over samples by `torch.func.vmap`.

        Raises:
            TypeError, ValueError: as `ggnvp`; and if max_outputs is no whole number, or below 1.
        """
        found = gauss_newton_trace(self._risk, whole_number("max_outputs", max_outputs))
        if found is None:
            return None
        total, count, products = found
        return float(self._risk.normalized(total, count)), products

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
            TypeError: if draws or batch_size is no whole number, or there is no generator.
            ValueError: if draws or batch_size < 1, or there is only one sample.
        """
        draws = whole_number("draws", draws)
        batch_size = whole_number("batch_size", batch_size)
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
        return gradient_noise_draws(self._risk, draws, batch_size, generator)

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """For many products at the same parameters: values are compared once, not each time.

        Inside, parameters, buffers and data must not change; after a change, products may be
        those at the old values. Attention is unfused until the end.
        """
        with self._products.fixed():
            yield

    def release(self) -> None:
        """Free the graphs that curvature products keep."""
        self._products.release()

    def predictions(self) -> Shaped[Tensor, "samples ..."]:
        """The model's outputs for all samples, in the order of the data."""
        outputs: list[Tensor] = []

        def forward(tensors: Tensors, inputs: Any, targets: Tensor) -> Tensor:
            output = self._risk.logits(tensors, inputs, targets)
            if not isinstance(output, Tensor):
                raise TypeError(f"predictions need a tensor; the model returns {type(output)}")
            return output

        self._risk.sweep(forward, outputs.append, by_loss=False)
        return torch.cat(outputs)

    def __repr__(self) -> str:
        loss = getattr(self.loss, "__name__", type(self.loss).__name__)
        loss = "its own loss" if self.loss is None else loss
        samples = "its" if self._risk.known_samples is None else f"{self._risk.known_samples:,}"
        return (
            f"Objective: the mean of {loss} of {type(self.model).__name__} over {samples} samples, "
            f"in {self.num_params:,} parameters; in eval mode (batch-norm statistics frozen, "
            "dropout off)."
        )
