"""Which file of a folder is meant, and small JSON files, read with bounds."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

from undertow.apply._names import natural

# What a folder may hold, the most complete first: an index names every shard.
IN_A_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "adapter_model.bin",
)
_KNOWN = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# Files of a trainer that hold no weights.
_BESIDE = {"training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "scheduler.bin"}
_BESIDE |= {"scaler.pt", "rng_state.pth"}
_JSON_BYTES = 2**26


def in_folder(folder: Path) -> Path:
    """The one checkpoint of a folder, an index where it is sharded.

    Raises:
        ValueError: it holds none, or several; the message names what it and its folders hold.
    """
    for name in IN_A_FOLDER:
        if (folder / name).is_file():
            return folder / name
    entries = sorted(folder.iterdir(), key=lambda entry: natural(entry.name))
    files = [
        entry
        for entry in entries
        if entry.suffix in _KNOWN and entry.is_file() and not _beside(entry.name)
    ]
    indices = [entry for entry in entries if entry.name.endswith(".index.json")]
    if len(indices) == 1:
        return indices[0]
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files[:4])
        more = ", ..." if len(files) > 4 else ""
        raise ValueError(f"{folder} holds {len(files)} checkpoints ({names}{more}); name one")
    below = [entry.name for entry in entries if entry.is_dir() and _holds_one(entry)]
    if below:
        listed = ", ".join(below if len(below) <= 4 else [*below[:2], "...", below[-1]])
        holds = "a checkpoint" if len(below) == 1 else f"{len(below)} checkpoints"
        raise ValueError(
            f"{folder} holds {holds} in folders of its own ({listed}); name one, such as "
            f"{folder / below[-1]}"
        )
    if any(entry.suffix == ".distcp" for entry in entries):
        raise ValueError(
            f"{folder} is a distributed checkpoint, which is not read; make a file of it with "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
        )
    raise ValueError(f"{folder} holds no .safetensors, .pt, .pth, .bin or .ckpt file")


def read_json(file: Path) -> Any:
    """The content of a JSON file of a folder.

    Raises:
        ValueError: it is no regular file, too large, or no JSON.
    """
    if not stat.S_ISREG(file.stat().st_mode) or file.stat().st_size > _JSON_BYTES:
        raise ValueError(f"{file.name} is no regular file of at most {_JSON_BYTES:,} bytes")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = str(error).split("\n")[0][:80]
        raise ValueError(f"{file.name} is no JSON file ({reason}); fetch it again") from error


def _beside(name: str) -> bool:
    return name in _BESIDE or bool(re.fullmatch(r"rng_state_\d+\.pth", name))


def _holds_one(folder: Path) -> bool:
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError:
        return False
    return any(
        name in IN_A_FOLDER or name.endswith(".index.json") or Path(name).suffix in _KNOWN
        for name in names
        if not _beside(name)
    )
