"""The tensors of a checkpoint on disk, mapped from the file and not copied; nothing is unpickled.

Safetensors files, PyTorch state dicts, sharded checkpoints with their index, and Hugging Face
folders that hold any of these. Whatever a file holds, a failure is one line that names it.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from undertow.apply._names import natural
from undertow.apply.inspection._folder import in_folder, read_json
from undertow.apply.inspection._torch_file import Call, TorchFileError, Unread, read_torch_file
from undertow.measure import WeightMatrix

_PICKLED = {".pt", ".pth", ".bin", ".ckpt"}
# Where training checkpoints keep the weights, beside the optimizer's state.
_WEIGHT_KEYS = (
    *("state_dict", "model_state_dict", "model", "module", "net", "params_ema", "params"),
    *("model_state", "network", "state"),
)
_DEEPEST = 6
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file or a folder holds.

    Attributes:
        tensors: by name, in the file's order.
        place: the file that was read.
        metadata: what a safetensors file says beside its tensors.
        notes: on what was left out or assumed.
    """

    tensors: dict[str, Tensor]
    place: Path
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Names and tensors of a checkpoint, in its order; the values stay in the file until used.

    Args:
        path: a `.safetensors` file, a `.pt`, `.pth`, `.bin` or `.ckpt` file with a state dict
            (or a training checkpoint that holds one), the `.index.json` of a sharded checkpoint,
            or a folder with one of these.

    Raises:
        FileNotFoundError: there is no such file, or a shard that the index names is missing.
        ValueError: the file is cut off or no checkpoint, holds anything but tensors and plain
            values, promises more than it holds, or is of a kind that is not read here; the
            message says what would do.
    """
    return open_checkpoint(path).tensors


def open_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """As `read_checkpoint`, with what else there is to say of the file."""
    place = Path(path).expanduser()
    try:
        kind = place.stat().st_mode
    except ValueError as error:  # a null character
        raise ValueError(f"{str(place)!r} is no path") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file or folder {str(place)!r}") from error
    except OSError as error:
        raise OSError(f"cannot open {str(place)!r}: {error.strerror}") from error
    if stat.S_ISDIR(kind):
        place = in_folder(place)
    if place.name.endswith(".index.json"):
        return _sharded(place)
    return _one_file(place)


def taps_of(item: WeightMatrix) -> int:
    """Taps of a convolution's kernel, by which initialisers multiply its fan_out; 1 of others."""
    return 1 if item.kernel is None else item.kernel[0, 0].numel()


def _one_file(place: Path) -> Checkpoint:
    if not stat.S_ISREG(place.stat().st_mode):
        raise ValueError(f"{place.name} is no regular file, so it is not read; give a file")
    if place.suffix not in {".safetensors", *_PICKLED}:
        advice = ""
        if place.suffix == ".gguf":
            advice = "; GGUF weights are quantised: save the model that they came from"
        raise ValueError(
            f"{place.name}: cannot read {place.suffix or 'a file without an extension'!r}; give a "
            f".safetensors, .pt, .pth, .bin or .ckpt file, an .index.json, or a folder{advice}"
        )
    if place.stat().st_size == 0:
        raise ValueError(f"{place.name} is empty; fetch it again")
    try:
        return _safetensors(place) if place.suffix == ".safetensors" else _state_dict(place)
    except PermissionError as error:
        raise PermissionError(f"cannot open {str(place)!r}: {error.strerror}") from error


def _sharded(index: Path) -> Checkpoint:
    content = read_json(index)
    shard_of = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shard_of, dict) or not all(isinstance(n, str) for n in shard_of.values()):
        raise ValueError(f"{index.name} is no index: it needs a 'weight_map' from names to files")
    shards = list(dict.fromkeys(shard_of.values()))
    # A folder of links, as the hub's cache is, has the files themselves beside the index itself.
    homes = {index.parent.resolve(), index.resolve().parent}
    for name in shards:
        if "\0" in name or len(name) > 255 or Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{index.name} names the shard {name[:80]!r}, which is not beside it")
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index.name} names {len(shards)} shards, and {', '.join(missing[:3])}"
            f"{' and others' if len(missing) > 3 else ''} of them "
            f"{'is' if len(missing) == 1 else 'are'} not in {index.parent}"
        )
    found: dict[str, Tensor] = {}
    notes: list[str] = []
    metadata: dict[str, str] = {}
    for name in shards:
        if (index.parent / name).resolve().parent not in homes:
            raise ValueError(f"{index.name} names the shard {name!r}, a link out of its folder")
        held = _one_file(index.parent / name)
        notes += held.notes
        metadata |= held.metadata
        # Another shard may hold a tensor of the same name, left from before: the index decides.
        found |= {key: value for key, value in held.tensors.items() if shard_of.get(key) == name}
    absent = [name for name in shard_of if name not in found]
    if absent and not any(note.startswith(absent[0]) for note in notes):
        raise ValueError(f"{index.name} promises {absent[0]!r}, which no shard holds")
    ordered = {name: found[name] for name in _in_order(list(shard_of)) if name in found}
    return Checkpoint(ordered, index, metadata, tuple(notes))


def _safetensors(file: Path) -> Checkpoint:
    _no_pointer(file)
    if _readable(file) != str(file):
        raise ValueError(f"{file.name}: safetensors opens no path that is not UTF-8; rename it")
    try:
        with safe_open(file, framework="pt") as opened:
            names = _in_order(list(opened.keys()))
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in names}
    except OSError:
        raise
    except Exception as error:  # its own kind of error, and torch's where a header lies
        reason = str(error).split("\n")[0][:120]
        raise ValueError(
            f"{file.name} is cut off or no safetensors file ({reason}); fetch it again"
        ) from error
    # `save_model` keeps a tied tensor under one name, and says here which others it has.
    for alias, name in metadata.items():
        if name in tensors and alias not in tensors:
            tensors[alias] = tensors[name]
    return Checkpoint(tensors, file, metadata)


def _in_order(names: list[str]) -> list[str]:
    """Names that a file has letter by letter, by their numbers; other orders as they are."""
    return sorted(names, key=natural) if names == sorted(names) else names


def _no_pointer(file: Path) -> None:
    with file.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{file.name} is a pointer of git-lfs, not the file; git lfs pull")


def _state_dict(file: Path) -> Checkpoint:
    _no_pointer(file)
    try:
        loaded = read_torch_file(file)
    except TorchFileError as error:
        raise ValueError(
            f"{file.name} is cut off or no PyTorch state dict ({error}); a TorchScript archive is "
            "none either: save model.state_dict()"
        ) from error
    tensors, notes = _weights_of(loaded, file.name)
    return Checkpoint(tensors, file, {}, tuple(notes))


def _weights_of(loaded: Any, name: str, depth: int = 0) -> tuple[dict[str, Tensor], list[str]]:
    if isinstance(loaded, Mapping) and depth < _DEEPEST:
        direct = any(isinstance(value, Tensor) and value.ndim > 1 for value in loaded.values())
        inside = [key for key in _WEIGHT_KEYS if isinstance(loaded.get(key), Mapping)]
        if inside and not direct:
            tensors, notes = _weights_of(loaded[inside[0]], f"{name}[{inside[0]!r}]", depth + 1)
            if len(inside) > 1:
                notes.append(f"{inside[0]} was read; the file holds {', '.join(inside[1:])}, too")
            return tensors, notes
        return _named_tensors(loaded, name)
    if isinstance(loaded, Call):
        raise ValueError(_more_than_tensors(name, loaded))
    kind = "list" if isinstance(loaded, list) else type(loaded).__name__
    raise ValueError(f"{name} holds a {kind}, not a state dict (names and tensors)")


def _named_tensors(loaded: Mapping[Any, Any], name: str) -> tuple[dict[str, Tensor], list[str]]:
    held = [(_readable(key), value) for key, value in loaded.items() if isinstance(value, Tensor)]
    tensors = dict(held)
    if len(tensors) < len(held):
        raise ValueError(f"{name} holds two tensors of one name, as a number and as text")
    notes = [
        f"{_readable(k)} {v.why} and was skipped"
        for k, v in loaded.items()
        if isinstance(v, Unread)
    ]
    inner = [repr(key) for key, value in loaded.items() if isinstance(value, Mapping)]
    if inner and all(value.ndim < 2 for value in tensors.values()):
        raise ValueError(
            f"{name} keeps no weights where training checkpoints do, under "
            f"{', '.join(_WEIGHT_KEYS[:4])}, ...; it has {', '.join(inner[:6])}: save the one "
            "that is the state dict as a file of its own"
        )
    if tensors:
        return tensors, notes
    objects = [value for value in loaded.values() if isinstance(value, Call)]
    if objects:
        raise ValueError(_more_than_tensors(name, objects[0]))
    if notes:
        raise ValueError(f"{name} holds no tensor that is read: {notes[0]}")
    keys = ", ".join(repr(key)[:60] for key in list(loaded)[:6])
    raise ValueError(f"{name} holds no tensors by name; its entries are {keys or 'none'}")


def _readable(key: Any) -> str:
    """A name as text that every encoding holds: half of a surrogate pair is written out."""
    return str(key).encode("utf-8", "backslashreplace").decode()


def _more_than_tensors(name: str, found: Call) -> str:
    what = str(found.function)[:80] if found.function is not None else "an object"
    return (
        f"{name} holds more than tensors and plain values ({what}), and loading that could run "
        "code; save model.state_dict(), or with safetensors, and give that file"
    )
