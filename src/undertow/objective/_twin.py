"""A copy of a module's structure whose tensors are put in from outside.

Modules, containers, closures and other objects are new where they could be written to; parameters
and buffers are places that are filled, every tensor in all the places where it is found.
"""

from __future__ import annotations

import copy
import functools
import random
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from undertow.objective._kinds import (
    EMPTY,
    contents,
    is_atomic,
    is_plain_class,
    numpys_own,
    own_dict,
    slot_names,
)
from undertow.objective._module import type_in
from undertow.objective._support import check_not_scripted

# Other objects than modules and containers are copied up to so many; the rest is shared.
_MOST_OBJECTS = 20_000
_LISTS = (list, deque)
_DICTS = (dict, OrderedDict, defaultdict)
# What hangs on a module beside what it computes with. It may be added to between calls.
_HOOKS = frozenset(
    name
    for name, value in vars(nn.Module()).items()
    if isinstance(value, dict) and name not in ("_parameters", "_buffers", "_modules")
)


def original(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` or data parallelism wraps; any other one itself."""
    while True:
        if "_orig_mod" in module._modules and hasattr(module, "dynamo_ctx"):  # noqa: SLF001
            inner = module._modules["_orig_mod"]  # noqa: SLF001
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        else:
            return module
        assert isinstance(inner, nn.Module)
        module = inner


_Hooks = tuple[list[int], list[tuple[dict[Any, Any], dict[Any, Any]]]]


class _Attributes:
    """What a class keeps in slots, as a container."""

    def __init__(self, owner: object) -> None:
        self._owner = owner

    def __setitem__(self, name: str, value: object) -> None:
        object.__setattr__(self._owner, name, value)


class _Contents:
    """A closure's variable, as a container."""

    def __init__(self, cell: types.CellType) -> None:
        self._cell = cell

    def __setitem__(self, _: int, value: object) -> None:
        self._cell.cell_contents = value


class Twin:
    """A module's copy, and where its tensors go.

    Args:
        model: is read only.
        names: of its tensors by identity.
        beside: something else that may hold the module or parts of it.

    Attributes:
        module: the copy, in eval mode; empty but for tensors that are neither parameters nor
            buffers.
        beside: the copy of what was given beside.
        twins: the copy of each module by the identity of the module.
        places: (container, key, name) of parameters and buffers.
        plain: (container, key, tensor) of all other tensors that can be filled in.
    """

    def __init__(self, model: nn.Module, names: Mapping[int, str], beside: Any = None) -> None:
        self._names = names
        self._memo: dict[int, Any] = {}
        self._alive: list[Any] = []  # or identities could be those of other objects
        self._objects = 0
        self._empty: list[Any] = []
        self._watched: list[tuple[Any, list[int]]] = []
        self._states: list[tuple[Any, list[int], Any]] = []
        self._copies: list[Any] = []
        self._hooks: list[dict[Any, Any]] = []
        self._generators: list[tuple[torch.Generator, torch.Generator]] = []
        self.twins: dict[int, nn.Module] = {}
        self.places: list[tuple[Any, Any, str]] = []
        self.plain: list[tuple[Any, Any, Tensor]] = []
        self.module: nn.Module = self._item(model)
        self.beside = self._item(beside)
        for module in self.module.modules():
            module.training = False
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                module.sparse = False  # gradients in full, as second derivatives and vmap need them
        for container in self._copies:
            values = container.values() if isinstance(container, dict) else container
            pristine = container.copy()
            self._states.append((container, list(map(id, values)), pristine))
        self._copies.clear()

    def follows(self) -> bool:
        """Whether the module is still as it was copied, its tensors' values aside."""
        if any(self._empty):
            return False
        for container, then in self._watched:
            values = container.values() if isinstance(container, dict) else container
            if list(map(id, values)) != then and not self._only_mode(container, then):
                return False
        return True

    def _only_mode(self, container: Any, then: list[int]) -> bool:
        """Whether nothing but a module's mode has changed, which plays no part."""
        if not isinstance(container, dict) or not isinstance(container.get("training"), bool):
            return False
        now = list(map(id, container.values()))
        place = list(container).index("training")
        if len(now) != len(then) or [i for i, n in enumerate(now) if n != then[i]] != [place]:
            return False
        then[place] = now[place]
        return True

    def fill(self, tensors: Mapping[str, Tensor], plain: Sequence[Tensor]) -> None:
        """Put parameters and buffers, by name, and all other tensors in all their places."""
        for container, key, name in self.places:
            container[key] = tensors[name]
        for (container, key, _), tensor in zip(self.plain, plain, strict=True):
            container[key] = tensor
        for made, given in self._generators:
            made.set_state(given.get_state())

    def hooks(self) -> _Hooks:
        """Those that hang on the copy now."""
        return list(map(len, self._hooks)), [(kind, kind.copy()) for kind in self._hooks if kind]

    def reset(self, hooks: _Hooks) -> None:
        """Empty all places, and undo what a forward pass has written to modules and containers.

        Args:
            hooks: as they were before it; some modules add to them when they are first used.
        """
        lengths, kept = hooks
        if list(map(len, self._hooks)) != lengths or any(kind != then for kind, then in kept):
            for kind in self._hooks:
                kind.clear()
            for kind, then in kept:
                kind.update(then)
        for container, ids, pristine in self._states:
            values = container.values() if isinstance(container, dict) else container
            if list(map(id, values)) != ids:
                container.clear()
                if isinstance(container, dict):
                    container.update(pristine)
                else:
                    container.extend(pristine)

    # One value.

    def _item(self, value: Any, container: Any = None, key: Any = None) -> Any:
        """A copy of a value, which is going to be `container[key]` where there is such a place."""
        if isinstance(value, Tensor):
            return self._tensor(value, container, key)
        if is_atomic(value):
            return value
        known = self._memo.get(id(value))
        if known is not None:
            return known
        made = self._made(value)
        if made is None:
            self._remember(value, value)
            return value
        return made

    def _remember(self, value: Any, made: Any) -> Any:
        self._memo[id(value)] = made
        self._alive.append(value)
        return made

    def _tensor(self, value: Tensor, container: Any, key: Any) -> Any:
        name = self._names.get(id(value))
        if name is not None and container is not None:
            self.places.append((container, key, name))
            return None
        if name is not None:  # nowhere to put another
            return value
        if container is not None:
            self.plain.append((container, key, value))
            return None
        if id(value) not in self._memo:
            self._remember(value, plain_copy(value))
        return self._memo[id(value)]

    def _made(self, value: Any) -> Any:
        """A new object, or None for one to be shared."""
        kind = type(value)
        if isinstance(value, nn.Module):
            return self._module(value)
        if kind in _DICTS:
            return self._dict(value)
        if kind in _LISTS:
            return self._list(value)
        if kind in (tuple, set, frozenset):
            return self._remember(value, kind(map(self._item, value)))
        if kind is types.MethodType:
            bound = types.MethodType(self._item(value.__func__), self._item(value.__self__))
            return self._remember(value, bound)
        if kind is types.FunctionType:
            return self._function(value)
        if kind is functools.partial:
            return self._partial(value)
        if kind is weakref.ReferenceType:
            target = value()
            found = None if target is None else self._item(target)
            return None if found is target else self._remember(value, weakref.ref(found))
        if kind is torch.Generator:
            made = torch.Generator(value.device)
            self._generators.append((made, value))
            return self._remember(value, made)
        if isinstance(value, random.Random) or kind in numpys_own():
            return self._remember(value, copy.deepcopy(value))
        return self._object(value)

    def _module(self, value: nn.Module) -> nn.Module:
        inner = original(value)
        if inner is not value:
            return self._remember(value, self._item(inner))
        check_not_scripted("a module beside the model's own", value)
        made: nn.Module = object.__new__(type(value))
        self._remember(value, made)
        self.twins[id(value)] = made
        self._fill_dict(vars(value), vars(made))
        if vars(made).get("_compiled_call_impl") is not None:
            vars(made)["_compiled_call_impl"] = None
        self._slots(value, made)
        return made

    # Containers.

    def _watch(self, value: Any) -> None:
        if value:
            values = value.values() if isinstance(value, dict) else value
            self._watched.append((value, list(map(id, values))))
            self._alive.append(list(values))
        else:
            self._empty.append(value)

    def _fill_dict(
        self, value: dict[Any, Any], made: dict[Any, Any], *, hooks: bool = False
    ) -> None:
        self._watch(value)
        for key, item in list(value.items()):
            if key in _HOOKS and type(item) in _DICTS:
                made[key] = self._remember(item, type(item)())
                self._fill_dict(item, made[key], hooks=True)
                self._hooks.append(made[key])
            else:
                made[key] = self._item(item, made, key)
        if not hooks:
            self._copies.append(made)

    def _dict(self, value: Any) -> Any:
        made = type(value)()
        if isinstance(value, defaultdict):
            made.default_factory = value.default_factory
        self._remember(value, made)
        self._fill_dict(value, made)
        return made

    def _list(self, value: Any) -> Any:
        made: Any = deque(maxlen=value.maxlen) if isinstance(value, deque) else []
        self._remember(value, made)
        self._watch(value)
        for index, item in enumerate(list(value)):
            made.append(None)
            made[index] = self._item(item, made, index)
        self._copies.append(made)
        return made

    # What holds other objects in its own way.

    def _function(self, value: types.FunctionType) -> Any:
        """A function on copies of what it has closed over."""
        cells = value.__closure__ or ()
        kept = [*map(contents, cells), *(value.__defaults__ or ())]
        kept += [*(value.__kwdefaults__ or {}).values(), *vars(value).values()]
        if all(is_atomic(item) and not isinstance(item, Tensor) for item in kept):
            return None
        fresh = tuple(types.CellType() for _ in cells)
        made = types.FunctionType(
            value.__code__, value.__globals__, value.__name__, None, fresh or None
        )
        self._remember(value, made)
        for cell, new in zip(cells, fresh, strict=True):
            content = contents(cell)
            if content is not EMPTY:
                new.cell_contents = self._item(content, _Contents(new), 0)
        made.__defaults__ = self._item(value.__defaults__)
        made.__kwdefaults__ = self._item(value.__kwdefaults__)
        made.__dict__.update({name: self._item(item) for name, item in vars(value).items()})
        for name in ("__doc__", "__module__", "__qualname__", "__annotations__"):
            setattr(made, name, getattr(value, name))
        return made

    def _partial(self, value: functools.partial[Any]) -> Any:
        made: functools.partial[Any] = functools.partial(
            self._item(value.func), *map(self._item, value.args)
        )
        self._remember(value, made)
        self._fill_dict(value.keywords, made.keywords)
        return made

    def _object(self, value: Any) -> Any:
        """An object of a class that is made in Python, by its attributes."""
        kind: type = type(value)
        own = own_dict(value)
        self._objects += 1
        if self._objects > _MOST_OBJECTS or not is_plain_class(kind):
            return None
        if not own and not slot_names(kind):  # nothing to write to, and perhaps known by identity
            return None
        made: Any = object.__new__(kind)
        self._remember(value, made)
        if own:
            self._fill_dict(own, object.__getattribute__(made, "__dict__"))
        self._slots(value, made)
        return made

    def _slots(self, value: Any, made: Any) -> None:
        attributes = _Attributes(made)
        kind: type = type(value)
        for name in slot_names(kind):
            try:
                item = object.__getattribute__(value, name)
            except AttributeError:
                continue
            attributes[name] = self._item(item, attributes, name)


def plain_copy(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy in memory of its own, with the graph that it may hang on."""
    with torch.inference_mode(False), torch.set_grad_enabled(tensor.grad_fn is not None):
        made = tensor.to(type_in(tensor, dtype), copy=True)
    return made if made.requires_grad else made.requires_grad_(tensor.requires_grad)
