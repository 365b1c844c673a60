"""The module that is run in the place of a user's, on tensors that are given by name.

A forward pass may write to parameters, buffers and attributes; whatever it writes to is not the
user's. An exception, or an interrupt at any instant, therefore leaves nothing to be put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from undertow.objective._twin import Twin, original, plain_copy

Result = TypeVar("Result")


class StandIn:
    """A copy of a module's structure, in eval mode, that follows the module.

    Blocks under two names and tied weights are one, as they are in the module. A tensor that a
    forward pass writes to (`nn.Embedding(max_norm=...)`, counters, `weight.data.clamp_()`) is
    copied for each call, so that every call starts from what it is given; derivatives pass through
    the copy as if nothing were written, as they do in the user's training.

    Args:
        model: read, never written to.
        beside: something else that may hold the module or parts of it, such as a function.

    Attributes:
        model: the module; what `torch.compile` or data parallelism wraps, of one that is wrapped.
        draws: whether forward passes draw from Python's or NumPy's random state.
        recomputes: whether backward passes run parts of it again, which then need what they had.
    """

    def __init__(self, model: nn.Module, beside: Any = None) -> None:
        self.model = original(model)
        self._beside = beside
        self._twin: Twin | None = None
        self._named: list[tuple[str, Tensor]] = []
        self._plain: list[tuple[Any, Tensor]] = []
        # What forward passes have written to.
        self._written: set[str] = set()
        self.recomputes = self.draws = False

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_twin": None, "_named": [], "_plain": []}

    def apart(self, beside: Any = None) -> StandIn:
        """Another one of the same module, on which hooks may be left."""
        other = StandIn(self.model, beside)
        other._written = self._written
        other.recomputes, other.draws = self.recomputes, self.draws
        return other

    def follow(self) -> nn.Module:
        """The copy, made anew if modules, hooks or attributes have changed."""
        if self._twin is None or not self._twin.follows():
            self._twin = Twin(self.model, names_of(self.model), self._beside)
            self._named = [*self.model.named_parameters(), *self.model.named_buffers()]
            self._plain = []
        return self._twin.module

    def of(self, module: nn.Module) -> nn.Module:
        """The copy of a part of the module."""
        if self._twin is None:
            self.follow()
        assert self._twin is not None
        return self._twin.twins[id(original(module))]

    def own(self) -> dict[str, Tensor]:
        """Copies of all parameters and buffers, by name."""
        self.follow()
        with torch.inference_mode(False), torch.no_grad():
            return {name: tensor.clone() for name, tensor in self._named}

    def run(
        self,
        tensors: Mapping[str, Tensor],
        arguments: Iterable[Any],
        named: Mapping[str, Any] | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """What the module returns at these parameters and buffers.

        Args:
            tensors: all of them, by name.
            arguments: of the module, by place.
            named: the same, by name.
            dtype: of other tensors that the module holds; None for their own.
        """
        return self.apply(
            tensors, lambda module, _: module(*arguments, **(named or {})), dtype=dtype
        )

    def apply(
        self,
        tensors: Mapping[str, Tensor],
        function: Callable[[nn.Module, Any], Result],
        *,
        dtype: torch.dtype | None = None,
    ) -> Result:
        """`function(copy, copy of what was given beside)` while the copy has these tensors."""
        if self._twin is None:
            self.follow()
        twin = self._twin
        assert twin is not None
        again = self.recomputes and torch.is_grad_enabled()
        if again:
            twin = Twin(self.model, names_of(self.model), self._beside)
        given = dict(tensors)
        for name in self._written & given.keys():
            given[name] = given[name].clone()
        plain = self._other(twin, dtype)
        everything = [*given.values(), *plain]
        before, hooks = _versions(everything), twin.hooks()
        try:
            twin.fill(given, plain)
            return function(twin.module, twin.beside)
        finally:
            if not again:
                twin.reset(hooks)
            self._note(list(given), before, _versions(everything))

    def _other(self, twin: Twin, dtype: torch.dtype | None) -> list[Tensor]:
        """Copies of tensors that are neither parameters nor buffers, which follow these."""
        while len(self._plain) < len(twin.plain):
            self._plain.append((None, torch.empty(0)))
        for index, (_, _, tensor) in enumerate(twin.plain):
            now = (tensor.data_ptr(), *_versions([tensor]), dtype)
            if self._plain[index][0] != now:
                self._plain[index] = now, plain_copy(tensor, dtype)
        return [copied for _, copied in self._plain]

    def aliases(self, dtype: torch.dtype | None) -> dict[int, str]:
        """Copies of tensors that share memory with a parameter or buffer: its name by identity."""
        self.follow()
        assert self._twin is not None
        stored = storages(self.model)
        copies = self._other(self._twin, dtype)
        pairs = zip(self._twin.plain, copies, strict=True)
        found = {id(copied): stored.get(storage(place[2]), "") for place, copied in pairs}
        return {key: name for key, name in found.items() if name}

    def note_written(self, names: Iterable[str]) -> None:
        """Forward writes to these: they are copied for each call from now on."""
        self._written.update(names)

    def _note(self, names: Sequence[str], before: Sequence[int], after: Sequence[int]) -> None:
        if before == after:
            return
        for index, (then, now) in enumerate(zip(before, after, strict=True)):
            if then != now and index < len(names):
                self._written.add(names[index])
            elif then != now:
                self._plain[index - len(names)] = (None, torch.empty(0))


def names_of(model: nn.Module) -> dict[int, str]:
    """The first name of each parameter and buffer, by its identity."""
    named = {id(buffer): name for name, buffer in model.named_buffers()}
    return named | {id(parameter): name for name, parameter in model.named_parameters()}


def storages(model: nn.Module) -> dict[int, str]:
    """The same by the identity of the memory that they are in."""
    named = [*model.named_buffers(), *model.named_parameters()]
    found = {storage(tensor): name for name, tensor in named}
    found.pop(0, None)
    return found


def storage(tensor: Tensor) -> int:
    """The identity of a tensor's memory while it is alive; 0 where it has none, or not one."""
    try:
        place = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return 0
    # No public name tells storages apart that hold nothing: their addresses are all 0.
    identity: int = place._cdata if place.nbytes() else 0  # noqa: SLF001
    return identity


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    """How often each has been written to; PyTorch's counter has no public name."""
    with torch._C.DisableTorchFunction():  # noqa: SLF001 (modes need not see it)
        return [0 if t.is_inference() else t._version for t in tensors]  # noqa: SLF001
