"""Which layers of a forward pass use which parameters, seen at PyTorch's own functions.

Functions and not modules are watched, so that attention's packed projections, functional calls and
modules of any name are found alike; a parameter is known by its identity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from undertow.measure._nested import flattened, tensors
from undertow.measure.noise._layer_gradients import (
    Shared,
    Use,
    broadcast_uses,
    convolution_uses,
    embedding_uses,
    matrix_uses,
    scale_uses,
    shared_parameter,
    shared_rows,
)

_ALL = slice(None)
# The order of arguments.
_ATTENTION = (
    "query",
    "key",
    "value",
    "embed_dim_to_check",
    "num_heads",
    "in_proj_weight",
    "in_proj_bias",
    "bias_k",
    "bias_v",
    "add_zero_attn",
    "dropout_p",
    "out_proj_weight",
    "out_proj_bias",
    "training",
)
_NORM = ("input", "normalized_shape", "weight", "bias", "eps")
_RMS_NORM = ("input", "normalized_shape", "weight", "eps")
_GROUP = ("input", "num_groups", "weight", "bias", "eps")
_BATCH = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
# Functions that handle their parameters alike.
_SUMS = (torch.Tensor.add, torch.add)
_DIFFERENCES = (torch.Tensor.sub, torch.sub)
_PRODUCTS = (torch.Tensor.mul, torch.mul)
_EXPANSIONS = (torch.Tensor.expand, torch.Tensor.expand_as, torch.broadcast_to)


@dataclass(frozen=True)
class Layout:
    """Where the samples lie in a layer's input: on which axis, and with how many rows each."""

    axis: int
    fold: int


@dataclass(frozen=True)
class Layouts:
    """The layout of each parameter that a formula covers, and how often it is used."""

    layout: Mapping[str, Layout]
    uses: Mapping[str, int]


class Capture(TorchFunctionMode):
    """While active, hands each use of a parameter with the gradient at its output to `collect`.

    Args:
        leaves: the parameters by name.
        samples: in the batch.
        collect: called in the backward pass.
        known: the layouts to expect; uses that lie otherwise are passed over. None guesses.

    Attributes:
        layouts: of each parameter, by its last use.
        counts: how often each parameter was used by a function that is watched.
        unseen: parameters that other functions used too.
    """

    def __init__(
        self,
        leaves: Mapping[str, Tensor],
        samples: int,
        collect: Callable[[Use, Tensor], None],
        known: Mapping[str, Layout] | None = None,
    ) -> None:
        super().__init__()
        self._names = {id(leaf): name for name, leaf in leaves.items()}
        self._shared = {id(leaf): shared_parameter(name, leaf) for name, leaf in leaves.items()}
        self._kept: list[Tensor] = []  # so that no other tensor gets the identity of a shared one
        self._samples = samples
        self._collect = collect
        self._known = known
        self._noted: set[str] = set()  # what the call at hand has accounted for
        self._parts: dict[str, list[slice]] = {}
        self.layouts: dict[str, Layout] = {}
        self.counts: Counter[str] = Counter()
        self.unseen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one function of PyTorch, and watches it if it is a layer's."""
        del types
        kwargs = dict(kwargs or {})
        handler = self._handlers.get(func)
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

    def _layout(
        self, names: Iterable[str | None], shape: Sequence[int], *, times_first: bool = False
    ) -> Layout | None:
        if self._known is not None:
            known = [name for name in names if name is not None and name in self._known]
            layout = self._known[known[0]] if known else None
            if layout is None or len(shape) <= layout.axis:
                return None
            fits = shape[layout.axis] == layout.fold * self._samples
            return layout if fits else None
        if not shape or shape[0] == 0:
            return None
        second = len(shape) > 1 and shape[1] == self._samples
        if times_first or (second and shape[0] != self._samples):
            return Layout(1, 1) if second else None
        fold, rest = divmod(shape[0], self._samples)
        return None if rest else Layout(0, fold)

    def _watch(
        self, output: Tensor, uses: Sequence[Use], layout: Layout, rows: slice = _ALL
    ) -> Tensor:
        for use in uses:
            self.counts[use.name] += 1
            self.layouts[use.name] = layout
            self._parts.setdefault(use.name, []).append(rows)
            self._noted.add(use.name)

        def hook(delta: Tensor) -> None:
            with torch.no_grad():
                for use in uses:
                    self._collect(use, delta)

        if uses and output.requires_grad:
            output.register_hook(hook)
        return output

    def _product(
        self,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        names: tuple[str | None, ...],
        rows: slice = _ALL,
        *,
        times_first: bool = False,
    ) -> Tensor:
        output = functional.linear(inputs, weight, bias)
        layout = self._layout(names, inputs.shape[:-1], times_first=times_first)
        if layout is None or not any(names):
            return output
        own = (names[0], names[1])
        uses = matrix_uses(inputs.detach(), own, self._samples, layout.axis, rows)
        return self._watch(output, uses, layout, rows)

    def _linear(
        self, func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        del func
        given = _given(("input", "weight", "bias"), args, kwargs)
        weight, bias = given["weight"], given.get("bias")
        return self._product(given["input"], weight, bias, self._own(weight, bias))

    def _convolution(
        self, func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        order = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        output = func(*args, **kwargs)
        given = _given(order, args, kwargs)
        inputs, weight, bias = given["input"], given["weight"], given.get("bias")
        names = self._own(weight, bias)
        dimensions = weight.ndim - 2
        layout = self._layout(names, inputs.shape[:1])
        if not any(names) or layout != Layout(0, 1) or inputs.ndim != weight.ndim:
            return output
        options: dict[str, Any] = {"groups": given.get("groups", 1)}
        for option, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
            value = given.get(option, default)
            options[option] = (value,) * dimensions if isinstance(value, int) else value
        uses = convolution_uses(func, inputs.detach(), weight.shape, (names[0], names[1]), options)
        return self._watch(output, uses, layout)

    def _embedding(
        self, func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        order = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq")
        output = func(*args, **kwargs)
        given = _given(order, args, kwargs)
        indices, weight = given["input"], given["weight"]
        (name,) = self._own(weight)
        if name is None or given.get("scale_grad_by_freq"):
            return output
        padding = given.get("padding_idx")
        padding = None if padding is None or padding == -1 else padding % len(weight)
        layout = self._layout((name,), indices.shape)
        if layout is None:
            self._share(output, shared_rows(indices, name, padding, output.shape))
            return output
        uses = embedding_uses(indices, name, padding, self._samples, layout.axis)
        return self._watch(output, uses, layout)

    def _scale(
        self,
        order: Sequence[str],
        last: bool,
        func: Callable[..., Tensor],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> Tensor:
        output = func(*args, **kwargs)
        given = _given(order, args, kwargs)
        weight, bias = given.get("weight"), given.get("bias")
        names = self._own(weight, bias)
        inputs = given["input"].detach()
        layout = self._layout(names, inputs.shape)
        if not any(names) or layout is None:
            return output
        bare = {**given, "input": inputs, "weight": None, "bias": None}
        if func is functional.rms_norm:
            del bare["bias"]
        scale = weight if weight is not None else bias
        assert scale is not None  # one of them has a name
        sizes = scale.shape
        uses = scale_uses(
            lambda: func(**bare), (names[0], names[1]), sizes, last, self._samples, layout.axis
        )
        return self._watch(output, uses, layout)

    def _share(self, tensor: Tensor, shared: Shared) -> None:
        self._shared[id(tensor)] = shared
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
        layout = self._layout((shared.name,), output.shape)
        padded = (1,) * (output.ndim - len(shared.shape)) + shared.shape
        if layout is None or layout.fold != 1 or padded[layout.axis] != 1:
            return output
        factor: Tensor | float = 1.0
        if func in _PRODUCTS:
            factor = args[1] if other is None else args[0]
            factor = factor.detach() if isinstance(factor, Tensor) else factor
        if func in _DIFFERENCES and one is None:
            factor = -1.0
        return self._watch(output, broadcast_uses(shared, factor, layout.axis), layout)

    def _attention(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """The projections by themselves, and PyTorch's attention with identities in their place.

        The identities cost a product each, a small part of a transformer's; every mask and option
        stays PyTorch's own.
        """
        given = _given(_ATTENTION, args, kwargs)
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
            product = self._product(tensors[0], weight, bias, own, times_first=True)
            parts = list(product.chunk(3, dim=-1))
        else:
            rows = [slice(start, start + width) for start in (0, width, 2 * width)]
            parts = [
                self._product(
                    x, weight[r], None if bias is None else bias[r], own, r, times_first=True
                )
                for x, r in zip(tensors, rows, strict=True)
            ]
        identity = torch.eye(width, dtype=weight.dtype, device=weight.device)
        replaced: dict[str, Any] = dict(zip(("query", "key", "value"), parts, strict=True))
        replaced |= {f"{letter}_proj_weight": identity for letter in "qkv"}
        replaced |= {"use_separate_proj_weight": True, "in_proj_weight": None}
        replaced |= {"in_proj_bias": None, "out_proj_weight": identity, "out_proj_bias": None}
        mixed, weights = func(**{**given, **replaced})
        output = self._product(
            mixed, given["out_proj_weight"], given["out_proj_bias"], out_own, times_first=True
        )
        return output, weights

    _handlers: ClassVar[dict[Any, _Handler]] = {
        **dict.fromkeys((*_SUMS, *_DIFFERENCES, *_PRODUCTS, *_EXPANSIONS), _broadcast),
        torch.Tensor.__getitem__: _slice,
        functional.linear: _linear,
        functional.embedding: _embedding,
        functional.multi_head_attention_forward: _attention,
        functional.layer_norm: lambda self, *call: self._scale(_NORM, True, *call),
        functional.rms_norm: lambda self, *call: self._scale(_RMS_NORM, True, *call),
        functional.group_norm: lambda self, *call: self._scale(_GROUP, False, *call),
        functional.batch_norm: lambda self, *call: self._scale(_BATCH, False, *call),
        torch.conv1d: _convolution,
        torch.conv2d: _convolution,
        torch.conv3d: _convolution,
    }


_Handler = Callable[[Capture, Callable[..., Any], Sequence[Any], dict[str, Any]], Any]


def _given(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name; positional ones come in the order of `names`."""
    return {**dict(zip(names, args, strict=False)), **kwargs}
