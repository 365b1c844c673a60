"""A classifier and inputs of it, parts of which are masked: what it makes of what is left.

It is run on copies in eval mode, and the module left as found. What is masked are the pixels of
images, in all their channels, or the embeddings of tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from undertow.measure._kinds import check_model
from undertow.measure.saliency._memory import MEMORY, blocks, need
from undertow.objective import StandIn, evaluating, kept_states, logits_of

NO_GRADIENT = (
    "model has no gradient in its inputs (it rounds them, or looks them up); name the embedding= "
    "that is to be masked, or score maps that need no gradient"
)
_ALIKE = 1e-3  # relative: outputs of a sample alone and among others
_FEW = 4  # samples on which that is tried


class Classifier:
    """A model and its inputs.

    Args:
        model: from inputs to logits `[rows, classes]`.
        inputs: images `[n, channels, height, width]` or embeddings `[n, tokens, width]`; with
            `embedding`, what the model takes, `[n, ...]`.
        embedding: the part of the model whose output `[n, tokens, width]` is masked.
        memory: bytes that a block of rows may take.

    Attributes:
        inputs: what is masked, in the model's precision.
        whole: log probabilities of the unmasked inputs.

    Raises:
        TypeError: no module, or inputs that cannot be masked by parts.
        ValueError: outputs that are no logits of at least two classes, or that depend on the other
            samples of a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        *,
        embedding: nn.Module | None = None,
        memory: int = MEMORY,
    ) -> None:
        check_model(model)
        self.stand_in = StandIn(model)
        self.tensors: Mapping[str, Tensor] = self.stand_in.own()
        self._embedding = embedding
        self._memory = memory
        self._taken = self._moved("inputs", inputs)
        with self.running(), torch.no_grad():
            self.inputs = self._masked("inputs", self._taken)
            self.whole = self._met(memory)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return self.whole.shape[1]

    @property
    def is_image(self) -> bool:
        """Whether pixels are masked, and not tokens."""
        return self.inputs.ndim == 4

    @property
    def spatial(self) -> tuple[int, ...]:
        """The shape of a mask: `(height, width)` or `(tokens,)`."""
        return tuple(self.inputs.shape[2:] if self.is_image else self.inputs.shape[1:2])

    @property
    def predicted(self) -> Int64[Tensor, " n"]:
        """The label that the model gives to each input."""
        return self.whole.argmax(1)

    def beside(self, method: Any, tensors: Mapping[str, Tensor] | None = None) -> Classifier:
        """The same with a method beside that is run on copies, or at other tensors."""
        other = copy.copy(self)
        other.stand_in = self.stand_in.apart(method)
        other.tensors = dict(self.tensors if tensors is None else tensors)
        return other

    @contextmanager
    def running(self) -> Iterator[None]:
        """A random state to be thrown away, and gradients; the caller's are put back at the end."""
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            evaluating(self.stand_in.model),
            kept_states(),
        ):
            yield

    def over(self, masks: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """Masks `[..., *spatial]` with an axis of length one for channels or widths."""
        return masks.unsqueeze(-3 if self.is_image else -1)

    def log_probabilities(
        self, masked: Float[Tensor, "rows ..."], rows: Int64[Tensor, " rows"]
    ) -> Float[Tensor, "rows classes"]:
        """Of masked inputs; `rows` says of which input each is made."""
        return self.logits(masked, rows).log_softmax(1)

    def logits(
        self, masked: Float[Tensor, "rows ..."], rows: Int64[Tensor, " rows"]
    ) -> Float[Tensor, "rows classes"]:
        """The model's outputs on masked inputs."""
        if self._embedding is None:
            found = self.stand_in.run(self.tensors, (masked,))
        else:
            found = self._through(self._taken[rows], lambda _: masked)
        return logits_of(found)

    def maskable(self, name: str, data: Any) -> Tensor:
        """Other data of the kind of the inputs, as what is masked of them.

        Raises:
            TypeError, ValueError: as of the inputs; or they are of another shape.
        """
        with self.running(), torch.no_grad():
            found = self._masked(name, self._moved(name, data))
        if found.shape[1:] != self.inputs.shape[1:]:
            shapes = tuple(self.inputs.shape[1:]), tuple(found.shape[1:])
            raise ValueError(f"{name} must be of the inputs' shape {shapes[0]}, got {shapes[1]}")
        return found

    def _masked(self, name: str, taken: Tensor) -> Tensor:
        """What is masked of what the model takes."""
        found = taken if self._embedding is None else self._embedded(taken)
        _check_inputs(name, found, self._embedding is not None)
        return found

    def taken(self, rows: Int64[Tensor, " rows"]) -> Tensor:
        """What the model takes, of some inputs: the inputs themselves, or what is embedded."""
        return self._taken[rows]

    def of_masked(self, module: nn.Module, rows: Int64[Tensor, " rows"]) -> nn.Module:
        """A copy of the module, as a function of what is masked of some inputs."""
        if self._embedding is None:
            return module
        return _OfEmbeddings(module, self.stand_in.of(self._embedding), self._taken[rows])

    def _moved(self, name: str, inputs: Any) -> Tensor:
        """In the precision and on the device of the model's parameters."""
        if not isinstance(inputs, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(inputs).__name__}")
        if inputs.ndim < 2 or not len(inputs):
            shape = tuple(inputs.shape)
            raise ValueError(f"{name} must hold samples along their first axis, got shape {shape}")
        first = next((t for t in self.tensors.values() if t.is_floating_point()), inputs)
        kept = self._embedding is not None or not inputs.is_floating_point()
        return inputs.detach().to(first.device, inputs.dtype if kept else first.dtype)

    def _embedded(self, whole: Tensor) -> Tensor:
        """The embeddings of all samples."""
        seen: list[Tensor] = []

        def look(output: Tensor) -> Tensor:
            seen.append(output)
            return output

        taken = need(lambda rows: self._through(whole[:rows], look), len(whole))
        size = taken.rows(self._memory, "input")
        seen.clear()
        for rows in blocks(len(whole), size):
            self._through(whole[rows], look)
        if any(not isinstance(found, Tensor) for found in seen):
            raise TypeError(f"embedding must return a tensor, got {type(seen[0]).__name__}")
        return torch.cat(seen).detach()

    def _through(self, taken: Tensor, change: Callable[[Any], Any]) -> Any:
        """The model's outputs where the embedding's are changed."""
        assert self._embedding is not None
        calls = 0

        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            nonlocal calls
            calls += 1
            return change(output)

        self.stand_in.follow()
        try:
            copied = self.stand_in.of(self._embedding)
        except KeyError:
            raise ValueError(
                "embedding must be a part of the model, such as its nn.Embedding, got "
                f"another {type(self._embedding).__name__}"
            ) from None
        handle = copied.register_forward_hook(hook)
        try:
            found = self.stand_in.run(self.tensors, (taken,))
        finally:
            handle.remove()
        if calls != 1:
            raise ValueError(
                f"embedding must be called once in the model's forward pass, got {calls} calls"
            )
        return found

    def _met(self, memory: int) -> Float64[Tensor, "n classes"]:
        """Outputs of the whole inputs, after trying whether they are logits of each by itself."""
        count = len(self.inputs)
        rows = torch.arange(count, device=self.inputs.device)

        def run(some: slice) -> Tensor:
            return self.logits(self.inputs[some], rows[some])

        few = slice(0, min(_FEW, count))
        run(few)  # what it writes to is known then, and copied for each call from now on
        self.tensors = self.stand_in.own()
        together = run(few)
        _check_logits(together, few.stop)
        alike = _ALIKE * (1 + float(together.abs().max()))
        if float((run(few) - together).abs().max()) > alike:
            raise ValueError(
                "model must give the same outputs each time, but draws random numbers in eval mode"
            )
        alone = torch.cat([run(slice(i, i + 1)) for i in range(few.stop)])
        if float((alone - together).abs().max()) > alike:
            raise ValueError(
                "model must take each sample by itself, but in eval mode its outputs depend on the "
                "others in a batch; give batch norm running statistics"
            )
        size = need(lambda most: run(slice(0, most)), count).rows(memory, "input")
        logits = torch.cat([run(some) for some in blocks(count, size)])
        _check_probabilities(logits)
        return logits.double().log_softmax(1)


class _OfEmbeddings(nn.Module):
    """A model whose embedding's output is what it is given."""

    def __init__(self, module: nn.Module, embedding: nn.Module, taken: Tensor) -> None:
        super().__init__()
        self.module, self.embedding, self._taken = module, embedding, taken
        self.eval()

    def forward(self, embedded: Tensor) -> Any:
        """The module's outputs."""
        if len(embedded) != len(self._taken):
            raise ValueError(
                f"attributions within a model are of batches as they are given, {len(self._taken)} "
                f"inputs, got {len(embedded)}; give a model of the embeddings instead of embedding="
            )
        handle = self.embedding.register_forward_hook(lambda *_: embedded)
        try:
            return self.module(self._taken)
        finally:
            handle.remove()


def _check_inputs(name: str, inputs: Tensor, embedded: bool) -> None:
    if not inputs.is_floating_point():
        raise TypeError(
            f"{name} must be real numbers as the model was trained on, got {inputs.dtype}; scale "
            "images of whole numbers (x / 255, then as in training), and of tokens name the "
            "embedding="
        )
    if inputs.ndim not in ((3,) if embedded else (3, 4)):
        wanted = (
            "embedding must give [n, tokens, width]"
            if embedded
            else f"{name} must be images [n, channels, height, width] or embeddings "
            "[n, tokens, width]"
        )
        raise ValueError(f"{wanted}, got shape {tuple(inputs.shape)}")
    if not torch.isfinite(inputs).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def _check_logits(found: Any, count: int) -> None:
    if not isinstance(found, Tensor):
        raise TypeError(f"model must return a tensor of logits, got {type(found).__name__}")
    shape = tuple(found.shape)
    if not found.is_floating_point():
        raise TypeError(f"model must return real logits, got {found.dtype}")
    if shape in ((count,), (count, 1)):
        raise ValueError(
            f"model must return logits of at least two classes, got shape {shape}: a regression "
            "has no probability of a label to keep; of a binary classifier give [-f / 2, f / 2]"
        )
    if len(shape) != 2 or shape[0] != count:
        raise ValueError(f"model must return logits [rows, classes], got {shape} of {count} rows")


def _check_probabilities(logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise ValueError("model must return finite logits, got NaN or infinity")
    sums = logits.double().sum(1)
    if bool((logits >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all()):
        raise ValueError(
            "model must return logits, but returns probabilities: none is negative and each row's "
            "sum is 1; leave out its softmax, or return the logarithms"
        )
