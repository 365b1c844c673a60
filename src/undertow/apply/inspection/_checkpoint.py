"""The tensors of a checkpoint on disk, mapped from the file and not copied; nothing is unpickled.

Safetensors files, PyTorch state dicts, sharded checkpoints with their index, and Hugging Face
folders that hold any of these.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from undertow.measure import WeightMatrix

# What a folder may hold, the most complete first: an index names every shard.
_IN_A_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "adapter_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "adapter_model.bin",
)
_PICKLED = {".pt", ".pth", ".bin", ".ckpt"}
# Where training checkpoints keep the weights, beside the optimizer's state.
_WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "params_ema", "params")


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Names and tensors of a checkpoint, in its order; the values stay in the file until used.

    Args:
        path: a `.safetensors` file, a `.pt`, `.pth`, `.bin` or `.ckpt` file with a state dict
            (or a training checkpoint that holds one), the `.index.json` of a sharded checkpoint,
            or a folder with one of these.

    Raises:
        FileNotFoundError: there is no such file, or a shard that the index names is missing.
        ValueError: the file is cut off or no checkpoint, holds anything but tensors and plain
            values, or is of a kind that is not read here; the message says what would do.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"there is no file or folder {str(place)!r}")
    if place.is_dir():
        place = _in_folder(place)
    if place.name.endswith(".index.json"):
        return _sharded(place)
    if place.suffix == ".safetensors":
        return _safetensors(place)
    if place.suffix in _PICKLED:
        return _state_dict(place)
    advice = ""
    if place.suffix == ".gguf":
        advice = "; GGUF weights are quantised: save the model that they came from"
    raise ValueError(
        f"{place.name}: cannot read {place.suffix or 'a file without an extension'!r}; give a "
        f".safetensors, .pt, .pth, .bin or .ckpt file, an .index.json, or a folder{advice}"
    )


def taps_of(item: WeightMatrix) -> int:
    """Taps of a convolution's kernel, by which initialisers multiply its fan_out; 1 of others."""
    return 1 if item.kernel is None else item.kernel[0, 0].numel()


def _in_folder(folder: Path) -> Path:
    for name in _IN_A_FOLDER:
        if (folder / name).is_file():
            return folder / name
    known = {".safetensors", *_PICKLED}
    files = sorted(file for file in folder.iterdir() if file.suffix in known)
    indices = sorted(folder.glob("*.index.json"))
    if len(indices) == 1:
        return indices[0]
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files[:4])
        raise ValueError(f"{folder} holds {len(files)} checkpoints ({names}, ...); name one")
    raise ValueError(f"{folder} holds no .safetensors, .pt, .pth, .bin or .ckpt file")


def _sharded(index: Path) -> dict[str, Tensor]:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = list(dict.fromkeys(shard_of.values()))
        missing = [name for name in shards if not (index.parent / name).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index.name} is no index: it needs a 'weight_map' from names to files"
        ) from error
    if missing:
        raise FileNotFoundError(
            f"{index.name} names {len(shards)} shards, and {', '.join(missing[:3])}"
            f"{' and others' if len(missing) > 3 else ''} of them "
            f"{'is' if len(missing) == 1 else 'are'} not in {index.parent}"
        )
    found: dict[str, Tensor] = {}
    for name in shards:
        shard = index.parent / name
        held = _safetensors(shard) if shard.suffix == ".safetensors" else _state_dict(shard)
        # Another shard may hold a tensor of the same name, left from before: the index decides.
        found |= {key: value for key, value in held.items() if shard_of.get(key) == name}
    absent = [name for name in shard_of if name not in found]
    if absent:
        raise ValueError(f"{index.name} promises {absent[0]!r}, which no shard holds")
    return {name: found[name] for name in shard_of}


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{file.name} is cut off or no safetensors file ({error}); fetch it again"
        ) from error


def _state_dict(file: Path) -> dict[str, Tensor]:
    try:
        # Mapping needs the zip format that torch has written since 1.6.
        mapped = zipfile.is_zipfile(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated storage types load all the same
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file.name} holds more than tensors and plain values, and loading that could run "
            "code; save model.state_dict(), or with safetensors, and give that file"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{file.name} is cut off or no PyTorch state dict ({reason}); a TorchScript archive is "
            "none either: save model.state_dict()"
        ) from error
    return _weights_of(loaded, file.name)


def _weights_of(loaded: Any, name: str) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        for key in _WEIGHT_KEYS:
            if isinstance(loaded.get(key), Mapping):
                return _weights_of(loaded[key], f"{name}[{key!r}]")
        held = [(str(key), value) for key, value in loaded.items() if isinstance(value, Tensor)]
        tensors = dict(held)
        if len(tensors) < len(held):
            raise ValueError(f"{name} holds two tensors of one name, as a number and as text")
        inner = [repr(key) for key, value in loaded.items() if isinstance(value, Mapping)]
        if inner and all(value.ndim < 2 for value in tensors.values()):
            raise ValueError(
                f"{name} keeps no weights where training checkpoints do, under "
                f"{', '.join(_WEIGHT_KEYS[:4])}, ...; it has {', '.join(inner[:6])}: save the one "
                "that is the state dict as a file of its own"
            )
        if tensors:
            return tensors
        keys = ", ".join(repr(key) for key in list(loaded)[:6])
        raise ValueError(f"{name} holds no tensors by name; its entries are {keys or 'none'}")
    raise ValueError(
        f"{name} holds a {type(loaded).__name__}, not a state dict (names and tensors)"
    )
