"""Files of `torch.save` as data: the tensors are views of the mapped file, nothing is unpickled.

Both formats, the zip archive (since torch 1.6) and the one before. A tensor never says more than
its storage holds, and a storage never more than the file, whatever the pickle claims.
"""

from __future__ import annotations

import io
import mmap
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undertow._pickled import Call, Named, Persistent, PickledDataError, read_pickle
from undertow.apply.inspection._archive import Archive, ArchiveError, open_archive

# The pickled part that is read at most; that of a thousand tensors takes 0.2 MB.
_PICKLE_BYTES = 2**27
# Distinct tensors may together be so many times as large as the storages that they view, and so
# many bytes more: what is tied or expanded passes, what would compute for ever does not.
_VIEWS = 4
_SPARE_BYTES = 2**24
_DEEPEST = 40
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
}
_WRAPPERS = (
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "_rebuild_device_tensor_from_cpu_tensor",
)
_Bytes = mmap.mmap | bytearray


class TorchFileError(ValueError):
    """A file of `torch.save` that is damaged, or promises what it does not hold."""


@dataclass(frozen=True)
class Unread:
    """What stands in the place of a tensor that is not read, and why, as a clause."""

    why: str


@dataclass(frozen=True, eq=False)
class _Storage:
    """Bytes of a storage: where they lie and what they are."""

    source: _Bytes
    offset: int
    size: int
    dtype: torch.dtype


@dataclass(eq=False)
class _Reader:
    """The storages of one file by key, and what its tensors promise so far."""

    storages: dict[str, _Storage]
    promised: dict[tuple[Any, ...], int] = field(default_factory=dict)
    read: dict[int, Any] = field(default_factory=dict)

    def value(self, found: Any, depth: int = 0) -> Any:
        """Containers of tensors, from what the pickle spells; other objects stay `Call`."""
        if depth > _DEEPEST:
            raise TorchFileError("it nests its values too deeply")
        if not isinstance(found, dict | list | tuple | Call):
            return found
        if id(found) not in self.read:  # a value that stands in many places is read once
            self.read[id(found)] = None
            made: Any
            if isinstance(found, dict):
                made = {key: self.value(item, depth + 1) for key, item in found.items()}
            elif isinstance(found, Call):
                made = self.tensor(found)
            else:
                made = [self.value(item, depth + 1) for item in found]
            self.read[id(found)] = made
        return self.read[id(found)]

    def tensor(self, call: Call) -> Any:
        if not isinstance(call.function, Named) or not isinstance(call.arguments, tuple):
            return call
        name, arguments = call.function.name, call.arguments
        if call.function.module == "torch._utils":
            if name in ("_rebuild_tensor", "_rebuild_tensor_v2") and len(arguments) >= 4:
                return self.view(arguments[:4], None, arguments[6:])
            if name == "_rebuild_tensor_v3" and len(arguments) >= 7:
                return self.view(arguments[:4], _dtype(arguments[6]), arguments[7:])
            if name in _WRAPPERS and arguments:
                return self.inner(arguments[0])
            if name == "_rebuild_meta_tensor_no_storage":
                return Unread("has no values (it was saved on the meta device)")
            for kind in ("sparse", "nested", "q"):
                if name.startswith(f"_rebuild_{kind}"):
                    return Unread(f"is {'quantised' if kind == 'q' else kind}")
            if name.startswith("_rebuild_"):
                return Unread(f"is stored as {name.removeprefix('_rebuild_')}")
        if call.function == Named("torch._tensor", "_rebuild_from_type_v2") and len(arguments) == 4:
            return self.subclass(*arguments)
        if call.function in (Named("torch", "Tensor"), Named("torch.nn.parameter", "Parameter")):
            return Unread("is stored as torch did before its version 0.4")
        return call

    def inner(self, call: Any) -> Any:
        return self.tensor(call) if isinstance(call, Call) else call

    def subclass(self, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        """A tensor of a class of its own: plain views, parameters and whole DTensors are read."""
        made = str(kind)
        if isinstance(state, tuple):  # of its dictionary and its slots
            state = {key: v for part in state if isinstance(part, dict) for key, v in part.items()}
        if made.startswith("torch.distributed") and made.endswith(".DTensor"):
            return self.distributed(state)
        if function == Named("torch._utils", "_rebuild_wrapper_subclass"):
            return Unread(f"is a {made}")
        if made in ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"):
            return self.inner(Call(function, arguments))
        return Unread(f"is a {made}")

    def distributed(self, state: Any) -> Any:
        refused = Unread(
            "is one shard of a DTensor; save the whole, with .full_tensor() or "
            "get_model_state_dict(..., options=StateDictOptions(full_state_dict=True))"
        )
        if not isinstance(state, dict):
            return refused
        spec = state.get("_spec")
        described = spec.state if isinstance(spec, Call) and isinstance(spec.state, dict) else {}
        local = self.inner(state.get("_local_tensor"))
        meta = described.get("tensor_meta")
        shape = meta.arguments[0] if isinstance(meta, Call) and meta.arguments else None
        if isinstance(shape, Call) and shape.function == Named("torch", "Size"):
            shape = shape.arguments[0]
        placements = described.get("placements")
        whole = isinstance(placements, tuple) and all(
            isinstance(place, Call) and str(place.function).endswith(("Shard", "Replicate"))
            for place in placements
        )
        if whole and isinstance(local, Tensor) and tuple(local.shape) == shape:
            return local
        return refused

    def view(self, place: tuple[Any, ...], dtype: torch.dtype | None, more: Any) -> Any:
        """A tensor of the storage, by its offset, sizes and strides in entries."""
        where, offset, size, stride = place
        if not isinstance(where, Persistent):
            return Unread("is stored as torch does not store tensors")
        storage = self.storages.get(_storage_key(where))
        if storage is None:
            raise TorchFileError("it names a storage that is not there")
        dtype = dtype or storage.dtype
        size, stride = _whole_numbers(size), _whole_numbers(stride)
        (offset,) = _whole_numbers((offset,))
        if len(size) != len(stride) or len(size) > 64:
            raise TorchFileError("a tensor has more sizes than strides, or fewer")
        held = storage.size // dtype.itemsize
        reach = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + offset
        entries = 1
        for n in size:
            entries *= n
        if entries and reach >= held:
            raise TorchFileError("a tensor reaches beyond its storage")
        if entries == 0 or held == 0:
            return torch.empty(size if entries == 0 else (0,), dtype=dtype)
        if isinstance(more, tuple) and any(isinstance(one, dict) and one for one in more):
            return Unread("is a conjugate or negative view")
        self.promised[_storage_key(where), dtype, offset, size, stride] = entries * dtype.itemsize
        return torch.as_strided(_flat(storage, dtype, held), size, stride, offset)


def read_torch_file(file: Path) -> Any:
    """What `torch.save` wrote: containers of tensors that are views of the mapped file.

    Where an object is none of these, a `Call` says what the pickle would have called; a tensor of
    a kind that is not read is `Unread`.

    Raises:
        TorchFileError: the file is cut off, damaged, or promises more than it holds.
        OSError: it cannot be opened.
    """
    try:
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        if mapped[:4] == b"PK\x03\x04":
            return _zipped(open_archive(file, mapped))
        return _legacy(mapped)
    except (PickledDataError, ArchiveError) as error:
        raise TorchFileError(str(error)) from error
    except (OSError, TorchFileError):
        raise
    except Exception as error:  # damaged bytes, in whatever way
        raise TorchFileError(f"{type(error).__name__}: {str(error)[:80]}") from error


def _zipped(archive: Archive) -> Any:
    if archive.holds("constants.pkl"):
        raise TorchFileError("it is a TorchScript archive")
    if archive.text("byteorder") == "big" or sys.byteorder == "big":
        raise TorchFileError("its numbers are big-endian")
    if archive.size("data.pkl") > _PICKLE_BYTES:
        raise TorchFileError(f"its pickled part is larger than {_PICKLE_BYTES:,} bytes")
    content = io.BytesIO(archive.read("data.pkl"))
    found = read_pickle(content, objects=_steps(len(archive.mapped)))
    storages: dict[str, _Storage] = {}
    for place, dtype, _ in _named_storages(found):
        if place not in storages:
            archive.check(f"data/{place}")
            source, offset, size = archive.place(f"data/{place}")
            storages[place] = _Storage(source, offset, size, dtype)
    return _finished(found, storages)


def _legacy(mapped: mmap.mmap) -> Any:
    """The format before the zip archive: five pickles, then each storage's length and bytes."""
    if len(mapped) > 512 and mapped[257:262] == b"ustar":
        raise TorchFileError("it is a tar archive, which torch stopped writing before 0.2")
    start = io.BytesIO(mapped[:_PICKLE_BYTES])
    steps = _steps(len(mapped))
    magic = read_pickle(start, objects=steps)
    if magic != _LEGACY_MAGIC:
        raise TorchFileError("it is a pickle that torch did not write")
    if read_pickle(start, objects=steps) != 1001:
        raise TorchFileError("it has an unknown protocol")
    system = read_pickle(start, objects=steps)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise TorchFileError("its numbers are big-endian")
    found, keys = (read_pickle(start, objects=steps) for _ in range(2))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise TorchFileError("it does not list its storages")
    named = {place: dtype for place, dtype, _ in _named_storages(found)}
    storages: dict[str, _Storage] = {}
    at = start.tell()
    for key in keys:
        entries = int.from_bytes(mapped[at : at + 8], "little", signed=True)
        dtype = named.get(key)
        if dtype is None:
            raise TorchFileError("it lists a storage that no tensor names")
        size = entries * dtype.itemsize
        if entries < 0 or at + 8 + size > len(mapped):
            raise TorchFileError("a storage reaches beyond the file's end")
        storages[key] = _Storage(mapped, at + 8, size, dtype)
        at += 8 + size
    return _finished(found, storages)


def _steps(size: int) -> int:
    """Steps that the pickle of a file of so many bytes may take; a tensor needs some 25."""
    return min(1_500_000, 400_000 + size // 8)


def _finished(found: Any, storages: dict[str, _Storage]) -> Any:
    reader = _Reader(storages)
    value = reader.value(found)
    held = sum(storage.size for storage in storages.values())
    promised = sum(reader.promised.values())
    if promised > _VIEWS * held + _SPARE_BYTES:
        raise TorchFileError(f"its tensors promise {promised:,} bytes, and it holds {held:,}")
    return value


def _named_storages(found: Any) -> list[tuple[str, torch.dtype, int]]:
    """Key, type and length of every storage that the pickle names, once each."""
    named: dict[str, tuple[str, torch.dtype, int]] = {}
    seen: set[int] = set()
    waiting = [found]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, str | bytes | int | float | None):
            continue
        seen.add(id(one))
        if isinstance(one, Persistent):
            key = _storage_key(one)
            kind = one.key[1] if isinstance(one.key, tuple) and len(one.key) > 4 else None
            dtype = _STORAGES.get(kind.name) if isinstance(kind, Named) else None
            if dtype is not None:
                count = one.key[4] if isinstance(one.key[4], int) else 0
                named.setdefault(key, (key, dtype, count))
        elif isinstance(one, Call):
            waiting += [one.arguments, one.state, one.items]
        elif isinstance(one, Mapping):
            waiting += list(one.values())
        elif isinstance(one, list | tuple):
            waiting += one
    return list(named.values())


def _storage_key(persistent: Persistent) -> str:
    key = persistent.key
    if not (isinstance(key, tuple) and len(key) > 4 and isinstance(key[2], str)):
        raise TorchFileError("it names a storage in a way that torch does not")
    if len(key) > 5 and key[5] is not None:
        raise TorchFileError("it has views of storages, which torch stopped writing before 1.0")
    return key[2]


def _flat(storage: _Storage, dtype: torch.dtype, count: int) -> Tensor:
    if storage.offset % dtype.itemsize == 0:
        return torch.frombuffer(storage.source, dtype=dtype, count=count, offset=storage.offset)
    # Memory that is not aligned is read one copy of a storage at a time.
    copied = bytearray(storage.source[storage.offset : storage.offset + storage.size])
    return torch.frombuffer(copied, dtype=dtype, count=count)


def _dtype(named: Any) -> torch.dtype:
    found = getattr(torch, named.name, None) if isinstance(named, Named) else None
    if not isinstance(found, torch.dtype):
        raise TorchFileError(f"it has a type of numbers that is unknown here, {str(named)[:40]}")
    return found


def _whole_numbers(found: Any) -> tuple[int, ...]:
    if isinstance(found, Call) and found.function == Named("torch", "Size"):
        found = found.arguments[0]
    known = isinstance(found, tuple | list) and len(found) <= 64
    if not known or not all(type(n) is int and 0 <= n < 2**62 for n in found):
        raise TorchFileError("a tensor has sizes or strides that are no whole numbers")
    return tuple(found)
