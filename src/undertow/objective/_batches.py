"""Data in batches that are checked, read again on every pass in the same order, and cut in pieces.

A batch is (inputs, targets), where inputs are a tensor, or a tuple or dictionary of arguments; or a
dictionary with the targets under "labels", as Hugging Face's collators make it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset

from undertow.objective._inputs import described, leaves
from undertow.objective._random_states import fresh_states, set_states, states
from undertow.objective._sparse import parts

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


def is_batch(data: Any) -> bool:
    """Whether data are one batch themselves, and not something to iterate over."""
    if isinstance(data, Mapping):
        return "labels" in data
    if not isinstance(data, tuple) or len(data) < 2:
        return False
    given = [isinstance(part, Tensor) for part in data]
    return any(given) if len(data) == 2 else all(given)


def checked_pair(batch: Any, index: int, model: nn.Module) -> tuple[Any, Tensor]:
    """A batch as (inputs, targets).

    Raises:
        TypeError: if it is of another kind.
        ValueError: if lengths differ or are zero, or a number is not finite.
    """
    if isinstance(batch, Mapping):
        batch = _labelled(batch, index)
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise TypeError(f"batch {index} of data must be (inputs, targets), got {described(batch)}")
    inputs, targets = batch if len(batch) == 2 else _several(batch, index, model)
    if isinstance(targets, Mapping | tuple | list):
        raise TypeError(
            f"targets of batch {index} must be one tensor [samples, ...], got {described(targets)}"
        )
    nested = isinstance(inputs, Mapping | tuple | list)
    named = [*(leaves(inputs) if nested else [("inputs", inputs)]), ("targets", targets)]
    for part, value in named:
        if isinstance(value, Tensor | PackedSequence) or value is targets or not nested:
            _check_tensor(part, index, value)
        elif _holds_numbers(value):
            raise TypeError(
                f"{part} of batch {index} must be a tensor, which can be cut into samples, got "
                f"{described(value)}"
            )
    samples = [(len(value), part) for part, value in named if isinstance(value, Tensor)]
    if len(samples) < 2:
        raise TypeError(f"inputs of batch {index} must hold a tensor, got {described(inputs)}")
    if len({number for number, _ in samples}) != 1 or len(targets) == 0:
        found = " and ".join(
            f"{number} {part}" for number, part in (*samples[:-1][:5], samples[-1])
        )
        raise ValueError(
            f"batch {index} of data has {found}; it needs equally many, and at least one"
        )
    if nested:
        _check_containers(inputs, index, len(targets))
    return inputs, targets


def _holds_numbers(part: Any) -> bool:
    """Whether an object that is no tensor holds some all the same, as arrays and graphs do."""
    if part is None or isinstance(part, str | int | float | complex | torch.dtype | torch.device):
        return False
    own = getattr(part, "__dict__", {}).values()
    return (
        hasattr(part, "__array__")
        or hasattr(part, "to")
        or any(isinstance(value, Tensor) for value in own)
    )


def _labelled(batch: Mapping[Any, Any], index: int) -> tuple[dict[Any, Any], Any]:
    if "labels" not in batch:
        raise TypeError(
            f"batch {index} of data is a dictionary of {', '.join(map(str, list(batch)[:8]))}: the "
            "targets must be under 'labels'"
        )
    return {key: part for key, part in batch.items() if key != "labels"}, batch["labels"]


def _several(batch: Any, index: int, model: nn.Module) -> tuple[tuple[Any, ...], Any]:
    """More than two parts: the last are the targets if the model needs exactly the others.

    Raises:
        TypeError: if the others could also be weights or indices of samples.
    """
    if _needed_arguments(model) != len(batch) - 1:
        raise TypeError(
            f"batch {index} of data must be (inputs, targets), got {len(batch)} parts, and whether "
            f"{len(batch) - 1} are inputs of {type(model).__name__} is open: write ((a, b), "
            "targets), or a dictionary with the targets under 'labels'"
        )
    return tuple(batch[:-1]), batch[-1]


def _needed_arguments(model: nn.Module) -> int | None:
    """How many arguments by place a model takes, if that is one number."""
    kinds = inspect.Parameter
    try:
        given = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    by_place = [p for p in given if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    open_ended = any(p.kind is kinds.VAR_POSITIONAL for p in given)
    optional = any(p.default is not kinds.empty for p in by_place)
    return None if open_ended or optional else len(by_place)


def _check_tensor(name: str, index: int, part: Any) -> None:
    plain = isinstance(part, Tensor) and part.layout is torch.strided and part.ndim > 0
    if not plain or part.is_nested:
        _check_layout(f"{name} of batch {index}", part)
    if part.is_meta:
        raise ValueError(f"{name} of batch {index} have no values: they are on the meta device")
    if (part.is_floating_point() or part.is_complex()) and not all(map(is_finite, parts(part))):
        raise ValueError(f"{name} of batch {index} hold NaN or infinities")


def _check_layout(name: str, part: Any) -> None:
    if isinstance(part, PackedSequence):
        raise TypeError(
            f"{name} must be a tensor [samples, ...], got a PackedSequence, which mixes samples: "
            "give the padded tensor and the lengths, and pack inside the model"
        )
    if isinstance(part, Tensor) and part.is_nested:
        raise TypeError(
            f"{name} must be a tensor [samples, ...], got a nested tensor, which cannot be cut "
            "into samples: give a padded one and a mask"
        )
    if not isinstance(part, Tensor) or part.ndim == 0:
        raise TypeError(f"{name} must be a tensor [samples, ...], got {described(part)}")


def _check_containers(inputs: Any, index: int, samples: int) -> None:
    """No list with an entry per sample that is no tensor: it could not be cut into samples."""
    waiting = [inputs]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, tuple | list):
            plain = not any(isinstance(each, Tensor | Mapping | tuple | list) for each in part)
            listed = isinstance(part, list) or all(isinstance(each, str) for each in part)
            if plain and listed and len(part) == samples > 1 and part[0] is not None:
                raise TypeError(
                    f"inputs of batch {index} hold a list of {samples} {type(part[0]).__name__}, "
                    "one a sample: give a tensor, which can be cut into samples"
                )
            waiting += part


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
        place = data.data_ptr() if data.layout is torch.strided else id(data)
        return place, data.shape, version
    if isinstance(data, Mapping):
        return tuple((name, fingerprint(part)) for name, part in data.items())
    if isinstance(data, tuple | list):
        return tuple(fingerprint(part) for part in data)
    return id(data)
