"""Data in batches that are checked, read again on every pass in the same order, and cut in pieces.

A batch is (inputs, targets), where inputs are a tensor or a dictionary of arguments, or it is a
dictionary with the targets under "labels", as Hugging Face's collators make it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from undertow.objective._random_states import fresh_states, set_states, states

# Datasets without a given microbatch are read so many samples at a time.
_DATASET_BATCH = 256


def reiterable(data: Any, microbatch: int | None) -> Iterable[Any]:
    """Data as something that can be iterated over again and again.

    Raises:
        TypeError: if it is of another kind, or can be iterated over only once.
    """
    if isinstance(data, Dataset):
        # Its own generator: iterating a loader without one moves torch's global random state.
        size = microbatch or _DATASET_BATCH
        return DataLoader(data, batch_size=size, generator=torch.Generator().manual_seed(0))
    if isinstance(data, Mapping | str | Tensor) or not isinstance(data, Iterable):
        raise TypeError(
            "data must be a tuple of tensors (inputs, targets), a Dataset, or an iterable of "
            f"such batches, got {type(data).__name__}"
        )
    if isinstance(data, Iterator):
        raise TypeError(
            f"data is a {type(data).__name__}, which is spent after one pass; give a list of "
            "batches, or a DataLoader"
        )
    return data


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are; a sum tells at a fraction of the cost, unless it overflows."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def checked_pair(batch: Any, index: int) -> tuple[Any, Tensor]:
    """A batch as (inputs, targets).

    Raises:
        TypeError: if it is of another kind.
        ValueError: if lengths differ or are zero, or a number is not finite.
    """
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise TypeError(
                f"batch {index} of data is a dictionary of {', '.join(map(str, batch))}: the "
                "targets must be under 'labels'"
            )
        batch = ({name: part for name, part in batch.items() if name != "labels"}, batch["labels"])
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(f"batch {index} of data must be (inputs, targets), got {type(batch)}")
    inputs, targets = batch
    parts = {"targets": targets}
    if isinstance(inputs, Mapping):
        parts = {str(n): part for n, part in inputs.items() if isinstance(part, Tensor)} | parts
    else:
        parts = {"inputs": inputs} | parts
    for name, part in parts.items():
        if not isinstance(part, Tensor) or part.ndim == 0:
            raise TypeError(f"{name} of batch {index} must be a tensor [samples, ...], got {part}")
        if (part.is_floating_point() or part.is_complex()) and not is_finite(part):
            raise ValueError(f"{name} of batch {index} hold NaN or infinities")
    samples = {name: len(part) for name, part in parts.items()}
    if len(set(samples.values())) != 1 or len(targets) == 0:
        found = " and ".join(f"{number} {name}" for name, number in samples.items())
        raise ValueError(
            f"batch {index} of data has {found}; it needs equally many, and at least one"
        )
    return inputs, targets


def piece(part: Any, chosen: slice, device: torch.device) -> Any:
    """Some samples of a tensor, or of every tensor in a dictionary, on a device."""
    if isinstance(part, Mapping):
        return {name: piece(value, chosen, device) for name, value in part.items()}
    if not isinstance(part, Tensor):
        return part
    found = part[chosen].to(device)
    return found.clone() if found.is_inference() else found  # which no graph could hold


def with_own_random_state(batches: Iterable[Any]) -> Iterator[Any]:
    """Iterate with a random state of the pass's own, the same for each pass.

    Loaders draw from torch's global generator when they shuffle and when they start, or from one
    that they were given; data sets from Python's or NumPy's too.
    """
    generators = [torch.default_generator, *_generators(batches)]
    own = [torch.Generator(each.device).manual_seed(0).get_state() for each in generators]
    draws = not isinstance(batches, list | tuple)
    own_others = fresh_states() if draws else None
    iterator: Iterator[Any] | None = None
    while True:
        outer = [each.get_state() for each in generators]
        outer_others = states() if draws else None
        _set_states(generators, own)
        try:
            if own_others is not None:
                set_states(own_others)
            iterator = iter(batches) if iterator is None else iterator
            batch = next(iterator)
        except StopIteration:
            return
        finally:
            own = [each.get_state() for each in generators]
            _set_states(generators, outer)
            if outer_others is not None:
                own_others = states()
                set_states(outer_others)
        yield batch


def _generators(batches: Iterable[Any]) -> list[torch.Generator]:
    """What a loader and its samplers draw from."""
    together = getattr(batches, "batch_sampler", None)
    samplers = getattr(batches, "sampler", None), together, getattr(together, "sampler", None)
    found = [getattr(owner, "generator", None) for owner in (batches, *samplers)]
    distinct = {id(each): each for each in found if isinstance(each, torch.Generator)}
    return list(distinct.values())


def _set_states(generators: list[torch.Generator], states: list[Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def fingerprint(data: Any) -> Any:
    """Something that changes when a tensor in tuples, lists or dictionaries is replaced or written.

    Datasets and loaders are known by their identity only.
    """
    if isinstance(data, Tensor):
        # PyTorch's counter of writes to a tensor has no public name.
        version = None if data.is_inference() else data._version  # noqa: SLF001
        return data.data_ptr(), data.shape, version
    if isinstance(data, Mapping):
        return tuple((name, fingerprint(part)) for name, part in data.items())
    if isinstance(data, tuple | list):
        return tuple(fingerprint(part) for part in data)
    return id(data)
