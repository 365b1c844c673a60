"""A model, a loss and data, seen as one function of the parameters.

L(theta) = sum_i l(f(theta, x_i), y_i) / n, where n is the loss's own denominator: the number of
samples, or the weight of the labels that count (class weights, `ignore_index`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset

Loss = nn.Module | Callable[[Any, Any], Tensor]
SumAndCount = Callable[[Any, Tensor, int], tuple[Tensor, Tensor]]
Parameters = Mapping[str, Tensor]
Result = TypeVar("Result")

# Tensors go through the model in one piece while the inputs take at most so many bytes.
_PIECE_BYTES = 2**25
# Datasets without a given microbatch are read so many samples at a time.
_DATASET_BATCH = 256
_ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
_FUNCTIONS: dict[Any, Callable[[], nn.Module]] = {
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.nll_loss: nn.NLLLoss,
    functional.mse_loss: nn.MSELoss,
}


def as_sum_and_count(loss: Loss) -> SumAndCount:
    """A loss as a function (outputs, targets, samples) -> (sum, count) that adds up over batches.

    `loss` maps (outputs, targets) to the mean over the batch, 0-d, or to a value per sample,
    `[samples]`. The count is the loss's own denominator: for `CrossEntropyLoss` and `NLLLoss` the
    total weight of the labels that are not ignored, otherwise the number of samples.

    Raises:
        TypeError: if `loss` is not callable.
        ValueError: if it has reduction="sum". The function returned raises ValueError where
            labels lie outside the classes, shapes of outputs and targets would broadcast in an
            elementwise loss, or the loss has any other shape.
    """
    if not callable(loss):
        raise TypeError(f"loss must be an nn.Module or a function; got {type(loss).__name__}")
    if isinstance(loss, FunctionType) and loss in _FUNCTIONS:
        loss = _FUNCTIONS[loss]()
    if getattr(loss, "reduction", "mean") == "sum":
        raise ValueError("loss has reduction='sum'; use 'mean', or 'none' for a value per sample")

    def sum_and_count(outputs: Any, targets: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        check_targets(loss, outputs, targets)
        value = loss(outputs, targets)
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if shape == (samples,):
            return value.sum(), value.new_tensor(float(samples))
        if shape != ():
            raise ValueError(
                "loss must return the batch mean as a 0-d tensor or one value per sample, "
                f"[{samples}]; got {shape}. Average over the other axes, or use reduction='mean'"
            )
        count = _denominator(loss, targets, samples).to(value)
        # With every label ignored the mean is 0 / 0.
        return (value * count if count > 0 else torch.zeros_like(value)), count

    return sum_and_count


def check_targets(loss: Loss, outputs: Any, targets: Tensor) -> None:
    """Targets that the loss would refuse obscurely, or misread, as errors that say what is wrong.

    Raises:
        ValueError: if labels of a cross-entropy lie outside the classes, or the shapes of outputs
            and targets differ in an elementwise loss.
    """
    if not isinstance(outputs, Tensor):
        return
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and not targets.is_floating_point():
        classes = outputs.shape[1 if outputs.ndim > 1 else 0]
        wrong = ((targets < 0) | (targets >= classes)) & (targets != loss.ignore_index)
        if wrong.any():
            raise ValueError(
                f"targets hold the label {int(targets[wrong][0])}, but the model has {classes} "
                f"outputs: labels must be 0 to {classes - 1}, or ignore_index={loss.ignore_index}"
            )
    if isinstance(loss, _ELEMENTWISE) and outputs.shape != targets.shape:
        raise ValueError(
            f"{type(loss).__name__} compares elements, but outputs have shape "
            f"{tuple(outputs.shape)} and targets {tuple(targets.shape)}; make them equal"
        )


def _denominator(loss: Loss, targets: Tensor, samples: int) -> Tensor:
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        return torch.tensor(float(samples))
    if targets.is_floating_point():  # a distribution over classes per position, all of weight one
        classes = targets.shape[1 if targets.ndim > 1 else 0]
        return torch.tensor(targets.numel() / classes)
    counted = targets != loss.ignore_index
    return counted.sum() if loss.weight is None else loss.weight[targets[counted]].sum()


class Objective:
    """L(theta), the mean loss of a model over data, as a function of its parameters.

    Evaluated in eval mode: batch-norm statistics are frozen and dropout is off. The module is
    left exactly as found: modes, gradients, buffers, `requires_grad`, and the random state of
    torch; also when something raises. Each call passes over the data once, in microbatches; one
    that runs out of memory is halved, and later ones with it.

    Args:
        model: any module that maps a batch of inputs to outputs.
        loss: maps (outputs, targets) to the batch mean (0-d) or a value per sample (`[batch]`).
            It must be an average over samples, so that microbatches add up.
        data: a tuple of tensors (inputs, targets), a `Dataset` of such pairs, or anything that
            can be iterated over again and again in batches (inputs, targets): a `DataLoader`, a
            list. A loader that shuffles gives the same order on every pass.
        params: which parameters theta consists of: None for those that require a gradient, a
            list of names, or a function (name, parameter) -> bool.
        microbatch: samples per forward pass; by default whole batches, or as many samples of a
            tensor as take 32 MiB.

    Raises:
        TypeError: if the data can be iterated over only once, or are no tensors.
        ValueError: if the data are empty or not finite, a parameter is unknown or has no values
            yet, or microbatch < 1; on evaluation also for targets and losses that make no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: tuple[Tensor, Tensor] | Dataset[Any] | Iterable[tuple[Tensor, Tensor]],
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
        self.param_names = _select(model, params)
        self._sum_and_count = as_sum_and_count(loss)
        self._piece = microbatch
        self._num_samples: int | None = None
        self._data: Iterable[Any] = [data]
        if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
            inputs, _ = _checked_pair(data, 0)
            sample_bytes = max(1, inputs[0].numel() * inputs.element_size())
            self._piece = microbatch or max(1, _PIECE_BYTES // sample_bytes)
            self._num_samples = len(inputs)
        else:
            self._data = _reiterable(data, microbatch)

    @property
    def num_params(self) -> int:
        """Length p of the flat parameter vector."""
        selected = set(self.param_names)
        return sum(p.numel() for name, p in self.model.named_parameters() if name in selected)

    @property
    def num_samples(self) -> int:
        """Number of samples; counted by one pass over the data where it is not known."""
        if self._num_samples is None:
            self._num_samples = sum(len(inputs) for inputs, _ in self.batches())
        return self._num_samples

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The data on the model's device, checked, in microbatches (inputs, targets)."""
        device = next(self.model.parameters()).device
        empty = True
        for index, batch in enumerate(_with_own_random_state(self._data)):
            inputs, targets = _checked_pair(batch, index)
            step = self._piece or len(inputs)
            for start in range(0, len(inputs), step):
                empty = False
                piece = slice(start, start + step)
                yield inputs[piece].to(device), targets[piece].to(device)
        if empty:
            raise ValueError("data are empty: an objective needs at least one sample")

    def value(self) -> Float[Tensor, ""]:
        """L(theta)."""
        return self._mean(
            lambda parameters, inputs, targets: self._loss(parameters, inputs, targets)
        )

    def gradient(self) -> Float[Tensor, " params"]:
        """The gradient of L as one vector, in the order of `param_names`.

        A parameter that the loss does not depend on has gradient zero.

        Raises:
            ValueError: if the loss depends on none of the parameters.
        """
        reached = False

        def contribution(
            parameters: Parameters, inputs: Tensor, targets: Tensor
        ) -> tuple[Tensor, Tensor]:
            nonlocal reached
            with torch.enable_grad():
                leaves = {n: parameters[n].detach().requires_grad_() for n in self.param_names}
                total, count = self._loss({**parameters, **leaves}, inputs, targets)
                gradients: Iterable[Tensor | None] = [None] * len(leaves)
                if total.requires_grad:
                    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
            reached = (
                reached or bool(count == 0) or any(gradient is not None for gradient in gradients)
            )
            parts = [
                torch.zeros_like(leaf) if gradient is None else gradient
                for leaf, gradient in zip(leaves.values(), gradients, strict=True)
            ]
            return torch.cat([part.flatten() for part in parts]), count

        gradient = self._mean(contribution)
        if not reached:
            raise ValueError(
                f"the loss depends on none of the parameters {_shown(self.param_names)}: does "
                "the model or the loss detach, round, or run under no_grad?"
            )
        return gradient

    def predictions(self) -> Shaped[Tensor, "samples ..."]:
        """The model's outputs for all samples, in the order of the data."""
        outputs: list[Tensor] = []

        def forward(parameters: Parameters, inputs: Tensor, targets: Tensor) -> Tensor:
            del targets
            output = functional_call(self.model, dict(parameters), (inputs,))
            if not isinstance(output, Tensor):
                raise TypeError(f"predictions need a tensor; the model returns {type(output)}")
            return output

        self._sweep(forward, outputs.append)
        return torch.cat(outputs)

    def __repr__(self) -> str:
        loss = getattr(self.loss, "__name__", type(self.loss).__name__)
        samples = "its" if self._num_samples is None else f"{self._num_samples:,}"
        return (
            f"Objective: the mean of {loss} of {type(self.model).__name__} over {samples} samples, "
            f"in {self.num_params:,} parameters; in eval mode (batch-norm statistics frozen, "
            "dropout off)."
        )

    # Every product is a mean over microbatches: curvature and noise add a contribution each.

    def _loss(
        self, parameters: Parameters, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sum and count of the loss over one microbatch."""
        outputs = functional_call(self.model, dict(parameters), (inputs,))
        return self._sum_and_count(outputs, targets, len(inputs))

    def _mean(
        self, contribution: Callable[[Parameters, Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Sum of the contributions over the sum of their counts."""
        totals: list[Tensor] = []

        def add(result: tuple[Tensor, Tensor]) -> None:
            if totals:
                for total, part in zip(totals, result, strict=True):
                    total += part
            else:
                totals.extend(part.clone() for part in result)

        self._sweep(contribution, add)
        total, count = totals
        if count == 0:
            raise ValueError("no target counts: every label is ignored or has class weight zero")
        mean = total / count
        if not torch.isfinite(mean).all():
            bad = [n for n, p in self.model.named_parameters() if not torch.isfinite(p).all()]
            cause = f"parameter {bad[0]} is not finite" if bad else "outputs or loss overflow"
            raise ValueError(f"the objective is not finite although the data are: {cause}")
        return mean

    def _sweep(
        self,
        compute: Callable[[Parameters, Tensor, Tensor], Result],
        collect: Callable[[Result], None],
    ) -> None:
        """One pass over the data, halving the microbatch whenever memory runs out."""
        with _evaluating(self.model), torch.no_grad():
            tensors = {name: p.detach() for name, p in self.model.named_parameters()}
            # Copies, so that a module that writes to its buffers writes to nothing of the user's.
            tensors |= {name: buffer.clone() for name, buffer in self.model.named_buffers()}
            for batch in self.batches():
                waiting = [batch]
                while waiting:
                    inputs, targets = waiting.pop()
                    try:
                        result = compute(tensors, inputs, targets)
                    except RuntimeError as error:
                        if not _out_of_memory(error) or len(inputs) == 1:
                            raise
                    else:
                        collect(result)
                        continue
                    half = (len(inputs) + 1) // 2
                    self._piece = min(half, self._piece or half)
                    waiting += [(inputs[half:], targets[half:]), (inputs[:half], targets[:half])]


def _select(
    model: nn.Module, params: Iterable[str] | Callable[[str, nn.Parameter], bool] | None
) -> tuple[str, ...]:
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        if is_lazy(parameter) or parameter.device.type == "meta":
            raise ValueError(f"parameter {name} has no values yet; run one forward pass first")
    if params is None:
        chosen = [name for name, parameter in named.items() if parameter.requires_grad]
    elif callable(params):
        chosen = [name for name, parameter in named.items() if params(name, parameter)]
    elif isinstance(params, str):
        raise TypeError(f"params must be a list of names or a function; did you mean [{params!r}]")
    else:
        wanted = list(params)
        for name in wanted:
            if name not in named:
                raise ValueError(f"params names {name!r}; the model has {_shown(tuple(named))}")
        chosen = [name for name in named if name in wanted]
    if not chosen:
        raise ValueError("params selects no parameter: an objective needs at least one")
    return tuple(chosen)


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _reiterable(data: Any, microbatch: int | None) -> Iterable[Any]:
    if isinstance(data, Dataset):
        # Its own generator: iterating a loader without one moves torch's global random state.
        size = microbatch or _DATASET_BATCH
        return DataLoader(data, batch_size=size, generator=torch.Generator().manual_seed(0))
    if isinstance(data, Mapping | str | Tensor) or not isinstance(data, Iterable):
        raise TypeError(
            "data must be a tuple of tensors (inputs, targets), a Dataset, or an iterable of "
            f"such batches; got {type(data).__name__}"
        )
    if isinstance(data, Iterator):
        raise TypeError(
            f"data is a {type(data).__name__}, which is spent after one pass; give a list of "
            "batches, or a DataLoader"
        )
    return data


def _checked_pair(batch: Any, index: int) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(f"batch {index} of data must be (inputs, targets); got {type(batch)}")
    for name, part in zip(("inputs", "targets"), batch, strict=True):
        if not isinstance(part, Tensor) or part.ndim == 0:
            raise TypeError(f"{name} of batch {index} must be a tensor [samples, ...]; got {part}")
        if (part.is_floating_point() or part.is_complex()) and not torch.isfinite(part).all():
            raise ValueError(f"{name} of batch {index} hold NaN or infinities")
    inputs, targets = batch
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(
            f"batch {index} of data has {len(inputs)} inputs and {len(targets)} targets; it needs "
            "equally many, and at least one"
        )
    return inputs, targets


def _with_own_random_state(batches: Iterable[Any]) -> Iterator[Any]:
    """Iterate with a random state of the pass's own, the same for each pass.

    Loaders draw from torch's global generator when they shuffle and when they start.
    """
    own = torch.Generator().manual_seed(0).get_state()
    iterator: Iterator[Any] | None = None
    while True:
        outer = torch.get_rng_state()
        torch.set_rng_state(own)
        try:
            iterator = iter(batches) if iterator is None else iterator
            batch = next(iterator)
        except StopIteration:
            return
        finally:
            own = torch.get_rng_state()
            torch.set_rng_state(outer)
        yield batch


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and a random state to be thrown away; both put back at the end."""
    training = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        model.eval()
        with torch.random.fork_rng(devices=[device.index for device in devices]):
            yield
    finally:
        for module, flag in training:
            module.training = flag


def _out_of_memory(error: RuntimeError) -> bool:
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "not enough memory"))
