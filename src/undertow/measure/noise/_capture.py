"""Which layers of a forward pass use which parameters, seen at PyTorch's own functions.

Functions and not modules are watched, so that attention's packed projections, functional calls and
modules of any name are found alike; a parameter is known by its identity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from undertow.measure._nested import flattened, tensors
from undertow.measure.noise._attention import between_projections
from undertow.measure.noise._calls import (
    ATTENTION,
    BATCH,
    CONVOLUTION,
    EMBEDDING,
    GROUP,
    LINEAR,
    NORM,
    RMS_NORM,
    given_to,
)
from undertow.measure.noise._convolutions import (
    Watched,
    convolution_uses,
    options_of,
    own_backward,
)
from undertow.measure.noise._layer_gradients import (
    Shared,
    Use,
    broadcast_uses,
    embedding_uses,
    matrix_uses,
    scale_uses,
    shared_parameter,
    shared_rows,
)
from undertow.measure.noise._sites import Layout, Site

_ALL = slice(None)
# Functions that handle their parameters alike.
_SUMS = (torch.Tensor.add, torch.add)
_DIFFERENCES = (torch.Tensor.sub, torch.sub)
_PRODUCTS = (torch.Tensor.mul, torch.mul)
_READING = frozenset((torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__))
_EXPANSIONS = (torch.Tensor.expand, torch.Tensor.expand_as, torch.broadcast_to)


Collect = Callable[[Site, Tensor], Mapping[str, Tensor]]


class Capture(TorchFunctionMode):
    """While active, notes each use of a parameter, and hands on the gradient at its output.

    Args:
        leaves: the parameters by name.
        samples: in the batch.
        collect: called in backward passes once the mode has ended; gradients in parameters that it
            returns need not be computed.
        known: the layouts to expect; uses that cannot lie so are passed over. None passes over
            what can lie in no way.

    Attributes:
        sites: in the order of the calls.
        edges: of the graph, to what each call gave.
        counts: how often each parameter was used by a function that is watched.
        unseen: parameters that other functions used too.
        read: whether values were read that PyTorch may not see again, as by NumPy.
    """

    def __init__(
        self,
        leaves: Mapping[str, Tensor],
        samples: int,
        collect: Collect,
        known: Mapping[str, Layout] | None = None,
    ) -> None:
        super().__init__()
        self._names = {id(leaf): name for name, leaf in leaves.items()}
        self._shared = {id(leaf): shared_parameter(name, leaf) for name, leaf in leaves.items()}
        self._kept: list[Tensor] = []  # so that no other tensor gets the identity of a shared one
        self._rows_shared: set[int] = set()
        self._samples = samples
        self._collect = collect
        self._known = known
        self._noted: set[str] = set()  # what the call at hand has accounted for
        self._parts: dict[str, list[slice]] = {}
        self._listening: list[bool] = []
        self.sites: list[Site] = []
        self.edges: list[GradientEdge] = []
        self.counts: Counter[str] = Counter()
        self.unseen: set[str] = set()
        self.read = False

    def __exit__(self, *raised: Any) -> None:
        """Ends the forward pass; gradients within it were not those of the loss."""
        self._listening.append(True)
        super().__exit__(*raised)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """A backward pass of which nothing is handed on."""
        self._listening.clear()
        try:
            yield
        finally:
            self._listening.append(True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one function of PyTorch, and watches it if it is a layer's."""
        del types
        kwargs = dict(kwargs or {})
        handler = self._handlers.get(func)
        self.read |= func in _READING
        self._noted.clear()
        output = func(*args, **kwargs) if handler is None else handler(self, func, args, kwargs)
        missed = self._uses(args, kwargs) - self._noted
        # The rest reads a shape or a type, or detaches.
        if missed and any(tensor.requires_grad for tensor in tensors(output)):
            self.unseen |= missed
        return output

    def _uses(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[str]:
        """The parameters among the arguments of a function."""
        found: set[str] = set()
        for argument in (*args, *kwargs.values()):
            nested = isinstance(argument, tuple | list | dict)
            for value in flattened(argument) if nested else (argument,):
                shared = self._shared.get(id(value))
                if shared is not None:
                    found.add(shared.name)
        return found

    def used_once(self, name: str) -> bool:
        """Whether no part of a parameter is used twice: cross terms have no formula."""
        if name in self.unseen or name not in self._parts:
            return False
        parts = sorted((part.start or 0, part.stop) for part in self._parts[name])
        return all(end is not None and end <= start for (_, end), (start, _) in pairwise(parts))

    def _own(self, *tensors: Tensor | None) -> tuple[str | None, ...]:
        return tuple(self._names.get(id(tensor)) for tensor in tensors)

    def _axes(
        self, names: Iterable[str | None], shape: Sequence[int], *, shared: bool = False
    ) -> tuple[int, ...]:
        """On which axes of `shape` the samples may lie, as far as their sizes can tell."""
        found = tuple(i for i, size in enumerate(shape) if size and size % self._samples == 0)
        if self._known is None:
            return found
        layouts = {self._known.get(name) for name in names if name is not None}
        layouts.discard(None)
        return tuple(axis for axis in found if layouts == {Layout(axis, shared)})

    def _watch(
        self,
        output: Tensor,
        names: Iterable[str | None],
        shape: Sequence[int],
        axes: tuple[int, ...],
        uses: Callable[[int], list[Use]],
        rows: slice = _ALL,
        *,
        shared: bool = False,
        heard: list[Site] | None = None,
    ) -> Tensor:
        """Notes a call; where its own backward hands on the gradient, that is `heard` for it."""
        own = tuple(name for name in names if name is not None)
        if not own or not axes:
            return output
        for name in own:
            self.counts[name] += 1
            self._parts.setdefault(name, []).append(rows)
            self._noted.add(name)
        if not output.requires_grad:
            return output
        site = Site(own, tuple(shape), axes, uses, shared)
        self.sites.append(site)
        self.edges.append(get_gradient_edge(output))
        if heard is not None:
            heard.append(site)
            return output
        # The graph holds the hook: if that held an edge of it, neither would ever be freed.
        listening, collect = self._listening, self._collect

        def hook(delta: Tensor) -> None:
            if listening:
                with torch.no_grad():
                    collect(site, delta)

        output.register_hook(hook)
        return output

    def _product(
        self,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        names: tuple[str | None, ...],
        rows: slice = _ALL,
    ) -> Tensor:
        output = functional.linear(inputs, weight, bias)
        shape = inputs.shape[:-1]

        samples = self._samples

        def uses(axis: int) -> list[Use]:
            own = (names[0], names[1])
            return matrix_uses(inputs.detach(), own, samples, axis, rows)

        return self._watch(output, names, shape, self._axes(names, shape), uses, rows)

    def _linear(
        self, func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        del func
        given = given_to(LINEAR, args, kwargs)
        weight, bias = given["weight"], given.get("bias")
        return self._product(given["input"], weight, bias, self._own(weight, bias))

    def _convolution(
        self, func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        given = given_to(CONVOLUTION, args, kwargs)
        inputs, weight, bias = given["input"], given["weight"], given.get("bias")
        names = self._own(weight, bias)
        # Samples that are folded with something else have no formula.
        shape = inputs.shape[:1] if inputs.ndim == weight.ndim else ()
        axes = self._axes(names, shape) if shape == (self._samples,) else ()
        options = options_of(given, weight.ndim - 2)

        def uses(axis: int) -> list[Use]:
            del axis
            return convolution_uses(
                func, inputs.detach(), weight.shape, (names[0], names[1]), options
            )

        # The batch's gradient may come with those of the samples.
        heard: list[Site] | None = None
        if axes and names[0] and own_backward(inputs, weight, options):
            heard, listening, collect = [], self._listening, self._collect

            def seen(delta: Tensor) -> tuple[Tensor | None, Tensor | None] | None:
                if not listening:
                    return None
                found = collect(heard[0], delta) if heard else {}
                return found.get(names[0] or ""), found.get(names[1] or "")

            output = Watched.apply(inputs, weight, bias, func, options, seen)
        else:
            output = func(*args, **kwargs)
        return self._watch(output, names, shape, axes, uses, heard=heard)

    def _embedding(
        self, func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        output = func(*args, **kwargs)
        given = given_to(EMBEDDING, args, kwargs)
        indices, weight = given["input"], given["weight"]
        (name,) = self._own(weight)
        if name is None or given.get("scale_grad_by_freq"):
            return output
        padding = given.get("padding_idx")
        padding = None if padding is None or padding == -1 else padding % len(weight)
        axes = self._axes((name,), indices.shape)
        if not axes:
            self._share(output, shared_rows(indices, name, padding, output.shape), rows=True)
            return output

        samples = self._samples

        def uses(axis: int) -> list[Use]:
            return embedding_uses(indices, name, padding, samples, axis)

        return self._watch(output, (name,), indices.shape, axes, uses)

    def _scale(
        self,
        order: Sequence[str],
        last: bool,
        func: Callable[..., Tensor],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> Tensor:
        output = func(*args, **kwargs)
        given = given_to(order, args, kwargs)
        weight, bias = given.get("weight"), given.get("bias")
        names = self._own(weight, bias)
        inputs = given["input"].detach()
        bare = {**given, "input": inputs, "weight": None, "bias": None}
        if func is functional.rms_norm:
            del bare["bias"]
        scale = weight if weight is not None else bias
        if scale is None:
            return output
        sizes = scale.shape
        shape = inputs.shape[: -len(sizes)] if last else inputs.shape[:1]

        samples = self._samples

        def uses(axis: int) -> list[Use]:
            own = (names[0], names[1])
            return scale_uses(lambda: func(**bare), own, sizes, last, samples, axis)

        return self._watch(output, names, shape, self._axes(names, shape), uses)

    def _share(self, tensor: Tensor, shared: Shared, *, rows: bool = False) -> None:
        self._shared[id(tensor)] = shared
        if rows:
            self._rows_shared.add(id(tensor))
        self._kept.append(tensor)
        self._noted.add(shared.name)

    def _slice(
        self, func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        output = func(*args, **kwargs)
        (name,) = self._own(args[0])
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        if name is not None and all(isinstance(i, int | slice | None) or i is ... for i in parts):
            self._share(output, shared_parameter(name, output, args[1]))
        return output

    def _broadcast(
        self, func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        output = func(*args, **kwargs)
        if kwargs or not isinstance(output, Tensor):
            return output
        one = self._shared.get(id(args[0]))
        pair = func not in _EXPANSIONS
        other = self._shared.get(id(args[1])) if pair else None
        if (one is None) == (other is None):
            return output
        shared = one or other
        assert shared is not None
        rows = id(args[0] if other is None else args[1]) in self._rows_shared
        padded = (1,) * (output.ndim - len(shared.shape)) + shared.shape
        axes = tuple(
            axis
            for axis in self._axes((shared.name,), output.shape, shared=rows)
            if padded[axis] == 1 and output.shape[axis] == self._samples
        )
        factor: Tensor | float = 1.0
        if func in _PRODUCTS:
            factor = args[1] if other is None else args[0]
            factor = factor.detach() if isinstance(factor, Tensor) else factor
        if func in _DIFFERENCES and one is None:
            factor = -1.0

        def uses(axis: int) -> list[Use]:
            return broadcast_uses(shared, factor, axis)

        return self._watch(output, (shared.name,), output.shape, axes, uses, shared=rows)

    def _attention(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """The projections by themselves, and PyTorch's attention with identities in their place.

        Every mask and option stays PyTorch's own.
        """
        given = given_to(ATTENTION, args, kwargs)
        if given["query"].ndim != 3 or given.get("use_separate_proj_weight") or given["training"]:
            return func(*args, **kwargs)
        tensors = [given["query"], given["key"], given["value"]]
        weight, bias = given["in_proj_weight"], given["in_proj_bias"]
        own = self._own(weight, bias)
        out_own = self._own(given["out_proj_weight"], given["out_proj_bias"])
        if not any(own) and not any(out_own):
            return func(*args, **kwargs)
        width = weight.shape[1]
        if all(tensor is tensors[0] for tensor in tensors):
            product = self._product(tensors[0], weight, bias, own)
            parts = [part.contiguous() for part in product.chunk(3, dim=-1)]
        else:
            rows = [slice(start, start + width) for start in (0, width, 2 * width)]
            parts = [
                self._product(x, weight[r], None if bias is None else bias[r], own, r)
                for x, r in zip(tensors, rows, strict=True)
            ]
        mixed, weights = between_projections(func, given, parts)
        output = self._product(mixed, given["out_proj_weight"], given["out_proj_bias"], out_own)
        return output, weights

    _handlers: ClassVar[dict[Any, _Handler]] = {
        **dict.fromkeys((*_SUMS, *_DIFFERENCES, *_PRODUCTS, *_EXPANSIONS), _broadcast),
        torch.Tensor.__getitem__: _slice,
        functional.linear: _linear,
        functional.embedding: _embedding,
        functional.multi_head_attention_forward: _attention,
        functional.layer_norm: lambda self, *call: self._scale(NORM, True, *call),
        functional.rms_norm: lambda self, *call: self._scale(RMS_NORM, True, *call),
        functional.group_norm: lambda self, *call: self._scale(GROUP, False, *call),
        functional.batch_norm: lambda self, *call: self._scale(BATCH, False, *call),
        torch.conv1d: _convolution,
        torch.conv2d: _convolution,
        torch.conv3d: _convolution,
    }


_Handler = Callable[[Capture, Callable[..., Any], Sequence[Any], dict[str, Any]], Any]
