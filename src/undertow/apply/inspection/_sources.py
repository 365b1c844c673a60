"""What `inspect` is given, opened: the weights of a path, a module or a mapping, or an adapter."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from torch import nn

from undertow.apply._names import role
from undertow.apply.inspection._adapters import (
    Adapter,
    LowRankChange,
    adapter_of,
    holds_pairs,
)
from undertow.apply.inspection._checkpoint import open_checkpoint
from undertow.measure import WeightMatrix, weight_matrices
from undertow.objective import original

Weight = WeightMatrix | LowRankChange
Include = Callable[[str], bool] | Iterable[str] | None


@dataclass(frozen=True, eq=False)
class Opened:
    """One source.

    Attributes:
        called: its path, or the kind of object that it is.
        content: the module, or the mapping from names to tensors.
        adapter: where it is an adapter, what that changes.
        notes: on what the file holds.
    """

    called: str
    content: Any
    adapter: Adapter | None = None
    notes: tuple[str, ...] = ()

    def weights(
        self, include: Include, *, once: bool, like: Any = None
    ) -> tuple[list[Weight], list[str]]:
        """The weights, each by its first name, or by all of them without `once`.

        Raises:
            ValueError: there is none.
        """
        if self.adapter is not None:
            found: list[Weight] = [*self.adapter.changes, *self.adapter.whole]
            return _chosen(found, include), [*self.notes, *self.adapter.notes]
        module = like if isinstance(like, nn.Module) else None
        try:
            held, notes = weight_matrices(
                self.content, include if once else None, check_finite=False, once=once, like=module
            )
        except ValueError as error:
            said = str(error).removeprefix("model_or_state_dict ")
            if not isinstance(self.content, Mapping) or said == str(error):
                raise
            reasons = said.split("; ")
            if len(reasons) > 4:
                said = "; ".join([*reasons[:3], f"and {len(reasons) - 3} more such reasons"])
            raise ValueError(f"{self.called} {said}") from error
        if not once:
            held = _chosen([*held, *_aliases(self.content, held)], include)
        return list(held), [*self.notes, *notes]


def opened(source: str | PathLike[str] | nn.Module | Mapping[str, Any]) -> Opened:
    """Open what `inspect` is given.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`, or an adapter that is not read.
    """
    if not isinstance(source, str | PathLike):
        return Opened(type(source).__name__, source)
    checkpoint = open_checkpoint(source)
    adapter = adapter_of(checkpoint)
    notes = list(checkpoint.notes)
    if adapter is None:
        notes += _parametrised(checkpoint.tensors)
        if holds_pairs(checkpoint.tensors):
            notes.append("pairs of adapters among the weights were taken as they are stored")
    return Opened(os.fspath(source), checkpoint.tensors, adapter, tuple(notes))


def collapsed(notes: Iterable[str]) -> list[str]:
    """Notes of which those that differ in their weight's number alone are one, with a count."""
    alike: dict[tuple[str, str], list[str]] = {}
    for note in notes:
        name, _, rest = note.partition(" ")
        alike.setdefault((role(name), rest), []).append(name)
    said = []
    for (_, rest), names in alike.items():
        more = f" and {len(names) - 1} more like it" if len(names) > 1 else ""
        rest = f"were {rest.removeprefix('was ')}" if more and rest.startswith("was ") else rest
        said.append(f"{names[0]}{more} {rest}".strip())
    return said


def _chosen(found: list[Any], include: Include) -> list[Any]:
    if include is None:
        return found
    wanted = include if callable(include) else set(include).__contains__
    return [item for item in found if wanted(item.name)]


def _aliases(source: Any, found: list[WeightMatrix]) -> list[WeightMatrix]:
    """The weights of a module by their further names: what is tied here may not be elsewhere."""
    if not isinstance(source, nn.Module):
        return []
    known = {item.name for item in found}
    first: dict[int, str] = {}
    more = []
    for name, value in original(source).named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(value), name)
        if name in known or kept == name:
            continue
        for item in found:
            if item.name == kept or item.name.startswith(f"{kept}["):
                more.append(replace(item, name=name + item.name.removeprefix(kept)))
    return [item for item in more if item.name not in known]


def _parametrised(names: Iterable[str]) -> list[str]:
    """Stored parts of weights that only the module can put together."""
    known = [name for name in names if re.search(r"parametrizations\.|\.weight_[gv]$", name)]
    if not known:
        return []
    return [
        f"{len(known)} parts of parametrised weights ({known[0]}, ...) were taken as they are "
        "stored; give the module itself to see the weights that it computes"
    ]
