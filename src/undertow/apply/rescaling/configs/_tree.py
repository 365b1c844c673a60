"""Configurations of any make as leaves with a path: dictionaries, dataclasses, namespaces.

Read without a change to the source; what is written goes into a copy of the same type.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

Path = tuple[Any, ...]

_DEPTH = 12
# Properties of objects that say what no field does.
_PROPERTIES = ("world_size", "n_gpu")


@dataclass(frozen=True)
class Leaf:
    """One value of a configuration.

    Attributes:
        path: the keys and attributes that lead to it.
        parts: the same as plain words: lower case, no leading hyphens, dotted keys taken apart.
        value: as it stands there.
        default: whether it is a dataclass's own default, which nobody wrote down.
        fixed: whether it cannot be written.
        closed: whether what holds it takes no further names.
    """

    path: Path
    parts: tuple[str, ...]
    value: Any
    default: bool = False
    fixed: bool = False
    closed: bool = False

    @property
    def name(self) -> str:
        """Its last word."""
        return self.parts[-1]

    def __str__(self) -> str:
        return ".".join(str(key) for key in self.path)


def is_tree(value: Any) -> bool:
    """Whether this holds values under names: no module, trainer or optimizer that has some too."""
    if isinstance(value, Mapping | SimpleNamespace | Namespace | partial):
        return True
    kind = type(value)
    made_for_it = hasattr(kind, "model_fields") or hasattr(kind, "__attrs_attrs__")
    plain = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return plain or made_for_it or kind.__name__ in ("ConfigDict", "FrozenConfigDict")


def is_config(value: Any) -> bool:
    """The same, or an object with a learning rate that is nobody's optimizer."""
    rated = any(hasattr(value, name) for name in ("learning_rate", "lr"))
    own = rated and not callable(value) and bool(getattr(value, "__dict__", None))
    return is_tree(value) or own


def leaves(source: Any) -> list[Leaf]:
    """Every value, in the order in which they are written."""
    return list(_walk(source, (), (), _DEPTH))


def _walk(node: Any, path: Path, parts: tuple[str, ...], depth: int) -> Iterator[Leaf]:
    if isinstance(node, partial):  # functools' way to say an optimizer and its arguments
        kind = parts or ("optimizer",)
        yield Leaf((*path, "func"), (*kind, "type"), node.func, fixed=True)
        yield from _walk(node.keywords, (*path, "keywords"), kind, depth)
        return
    for key, value, default, fixed in _children(node):
        here, words = (*path, key), (*parts, *_words(key))
        if isinstance(value, Mapping) and {"value"} <= set(value) <= {"value", "desc"}:
            yield Leaf(
                (*here, "value"), words, _plain(value["value"])
            )  # as Weights & Biases has it
        elif is_tree(value) and depth:
            yield from _walk(value, here, words, depth - 1)
        elif depth and isinstance(value, list | tuple) and any(map(is_tree, value)):
            for index, item in enumerate(value):
                if is_tree(item):
                    yield from _walk(item, (*here, index), (*words, str(index)), depth - 1)
        else:
            yield Leaf(here, words, _plain(value), default, fixed, not isinstance(node, Mapping))


def _children(node: Any) -> Iterator[tuple[Any, Any, bool, bool]]:
    if isinstance(node, Mapping):
        for key in node:
            yield key, node[key], False, False
        return
    if type(node).__name__.endswith("ConfigDict"):
        for key, value in node.items():
            yield key, value, False, False
        return
    names = [name for name in vars(node) if not name.startswith("_")]
    defaults: dict[str, Any] = {}
    if dataclasses.is_dataclass(node):
        fields = dataclasses.fields(node)
        names = [field.name for field in fields if hasattr(node, field.name)]
        defaults = {field.name: field.default for field in fields}
    for name in names:
        value = getattr(node, name)
        yield name, value, name in defaults and _same(defaults[name], value), False
    for name in _PROPERTIES:
        if name not in names and isinstance(getattr(type(node), name, None), property):
            yield name, getattr(node, name), True, True


def _words(key: Any) -> list[str]:
    plain = re.sub(r"[\s\-]+", "_", str(key).lstrip("-")).lower()
    return [word for word in re.split(r"[./]", plain) if word] or [plain]


def _plain(value: Any) -> Any:
    """Sequences of OmegaConf as lists; the rest as it is."""
    return list(value) if type(value).__module__.startswith("omegaconf") else value


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # arrays, or a comparison of somebody's that fails
        return False


def written(source: Any, changes: Mapping[Path, Any]) -> Any:
    """A copy of the same type with new values at some paths; the rest is as it was."""
    result = _copy(source)
    for path, value in changes.items():
        node = result
        for key in path[:-1]:
            node = node[key] if isinstance(node, Mapping | list | tuple) else getattr(node, key)
        _set(node, path[-1], value)
    return result


def _copy(source: Any) -> Any:
    try:
        return copy.deepcopy(source)
    except Exception as error:
        raise TypeError(
            f"{type(source).__name__} cannot be copied ({type(error).__name__}); give its fields "
            "as a dictionary"
        ) from None


def _set(node: Any, key: Any, value: Any) -> None:
    if isinstance(node, Mapping):
        try:
            node[key] = value  # type: ignore[index]
            return
        except Exception:  # OmegaConf that is read-only or closed; a mapping proxy
            raise TypeError(
                f"{key}: a {type(node).__name__} that cannot be written; give a dictionary"
            ) from None
    try:
        setattr(node, key, value)
    except AttributeError:  # frozen: this is a copy that nobody else holds
        object.__setattr__(node, key, value)
