"""Files with flipped bits, cut off, or spliced: a result or one line that names them, and no crash.

`UNDERTOW_FUZZ=20000 pytest tests/test_fuzz_files.py -s` draws so many of each kind, minutes long,
and prints how many were read and refused; so does `make slow`.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from undertow import apply
from undertow.data import _cifar, _files

EXAMPLES = int(os.environ.get("UNDERTOW_FUZZ", "60"))
TALLY: Counter[tuple[str, str]] = Counter()
Damage = tuple[list[tuple[float, int]], float, tuple[float, bytes] | None]

damages = st.tuples(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=4),
    st.one_of(st.just(1.0), st.floats(0, 1)),
    st.none() | st.tuples(st.floats(0, 1), st.binary(max_size=24)),
)
fuzzed = settings(
    max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES < 100
)


@pytest.fixture(scope="module", autouse=True)
def tally() -> Iterator[None]:
    yield
    lines = [f"{kind}: {count} {outcome}" for (kind, outcome), count in sorted(TALLY.items())]
    print("\n" + "\n".join(lines))


def damaged(content: bytes, damage: Damage) -> bytes:
    flips, kept, spliced = damage
    changed = bytearray(content)
    for place, bit in flips:
        changed[int(place * len(changed))] ^= 1 << bit
    if spliced is not None:
        at = int(spliced[0] * len(changed))
        changed[at : at + len(spliced[1]) // 2] = spliced[1]
    return bytes(changed[: int(kept * len(changed))])


def saved(legacy: bool) -> bytes:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(6, 5, generator=generator)
    weights = {"a.weight": shared, "a.bias": shared[0], "b.weight": torch.ones(4, 4).half()}
    buffer = io.BytesIO()
    content = {"state_dict": weights, "epoch": 3, "lr": [0.1, None]}
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


ADAPTER = save({"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.ones(3, 2)})
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"q": 8}}
FILES: dict[str, tuple[str, bytes]] = {
    "zip": ("model.pt", saved(legacy=False)),
    "legacy": ("model.pt", saved(legacy=True)),
    "safetensors": ("model.safetensors", save({"w": torch.ones(4, 3), "b": torch.ones(3)})),
    "index": (
        "model.safetensors.index.json",
        json.dumps({"metadata": {}, "weight_map": {"w": "w.safetensors"}}).encode(),
    ),
    "adapter": ("adapter_model.safetensors", ADAPTER),
    "config": ("adapter_config.json", json.dumps(CONFIG).encode()),
}


@pytest.mark.parametrize("kind", FILES)
@fuzzed
@given(damage=damages)
def test_checkpoints(kind: str, damage: Damage, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz" / kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "w.safetensors").write_bytes(save({"w": torch.ones(4, 3)}))
    if kind in ("adapter", "config"):
        (folder / "adapter_model.safetensors").write_bytes(ADAPTER)
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    name, content = FILES[kind]
    (folder / name).write_bytes(damaged(content, damage))
    read = folder / ("adapter_model.safetensors" if kind == "config" else name)
    try:
        found = apply.inspect(read, workers=1)
    except (ValueError, OSError) as error:
        TALLY[kind, "refused"] += 1
        line = str(error)
        assert "\n" not in line
        assert name in line or "w.safetensors" in line or read.name in line
        return
    TALLY[kind, "read"] += 1
    assert np.isfinite(found.table["frobenius_norm"].to_numpy()).all()


def batch() -> bytes:
    pixels = np.zeros((3, 3072), dtype=np.uint8)
    return pickle.dumps({b"data": pixels, b"labels": [0, 1, 2]}, protocol=2)


TABLES: dict[str, tuple[Callable[[Path], object], bytes]] = {
    "cifar": (_cifar._read_pickled, batch()),
    "csv": (
        lambda path: _files._read_csv(path, side=2),
        gzip.compress(b"1,2,3,4,0\n5,6,7,8,1\n", mtime=0),
    ),
    "idx": (
        lambda path: _files._parse_idx(path.read_bytes(), path.name),
        b"\0\0\x08\x02\0\0\0\x02\0\0\0\x03abcdef",
    ),
}


@pytest.mark.parametrize("kind", TABLES)
@fuzzed
@given(damage=damages)
def test_data(kind: str, damage: Damage, tmp_path_factory: pytest.TempPathFactory) -> None:
    read, content = TABLES[kind]
    path = tmp_path_factory.getbasetemp() / f"fuzzed-{kind}.gz"
    path.write_bytes(damaged(content, damage))
    try:
        read(path)
    except ValueError as error:
        TALLY[kind, "refused"] += 1
        line = str(error)
        assert path.name in line
        return
    TALLY[kind, "read"] += 1
