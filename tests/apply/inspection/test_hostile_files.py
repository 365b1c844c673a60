"""Files of strangers: a table, or one line that names the file, soon and cheap."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from undertow import apply


def zipped(file: Path, content: bytes, *, packed: bool = False) -> None:
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")


def refused(file: Path, said: str = "") -> str:
    with pytest.raises((ValueError, OSError), match=said or None) as caught:
        apply.inspect(file, workers=1)
    line = str(caught.value)
    assert file.name in line
    assert "\n" not in line
    assert len(line) < 600
    return line


def bits(tensor: Tensor) -> list[int]:
    """The bytes of a tensor's entries."""
    flat = tensor.detach().contiguous().flatten()
    return flat.view(torch.uint8).tolist() if flat.numel() else []


class Subclass(Tensor):
    """A tensor of a class of its own."""


ZOO: dict[str, Callable[[], Any]] = {
    "views": lambda: (lambda x: {"a": x[:, 1:], "b": x.t(), "c": x[2:4, ::2], "d": x})(
        torch.randn(6, 6)
    ),
    "parameters": lambda: {"w": nn.Parameter(torch.randn(3, 4)), "b": nn.Parameter(torch.ones(3))},
    "types": lambda: {
        str(kind): torch.arange(12).reshape(3, 4).to(kind)
        for kind in (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64),
            *(torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64),
            *(torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16),
        )
    },
    "ordered": lambda: OrderedDict(nn.Linear(3, 4).state_dict()),
    "empty": lambda: {"none": torch.empty(0, 5), "scalar": torch.tensor(3.0), "w": torch.ones(2)},
    "expanded": lambda: {"w": torch.randn(1, 5).expand(4, 5), "m": torch.ones(1).expand(64, 64)},
    "trainer": lambda: {
        "epoch": 3,
        "state_dict": nn.Linear(3, 4).state_dict(),
        "optimizer": {
            "state": {0: {"step": torch.tensor(1.0)}},
            "groups": [{"betas": (0.9, 0.99)}],
        },
        "history": [1.0, None, "text", b"bytes", True, 2**70, -1, (1, [2, {"x": 3.5}])],
    },
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ZOO)
def test_files_of_torch_are_read_as_torch_reads_them(
    tmp_path: Path, kind: str, legacy: bool
) -> None:
    saved = ZOO[kind]()
    if legacy and kind == "types":
        for name in ("torch.uint16", "torch.float8_e4m3fn", "torch.float8_e5m2"):
            del saved[name]  # torch itself does not read them back
    file = tmp_path / "model.pt"
    torch.save(saved, file, _use_new_zipfile_serialization=not legacy)
    expected = torch.load(file, weights_only=True)
    expected = expected.get("state_dict", expected)
    found = apply.read_checkpoint(file)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].stride() == value.stride()
        assert found[name].shape == value.shape
        assert bits(found[name]) == bits(value)


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_tensor_is_named_and_left_out(tmp_path: Path) -> None:
    other = {
        "sparse": torch.eye(3).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.randn(3, 3), 0.1, 0, torch.qint8),
        "meta": torch.empty(3, 3, device="meta"),
        "own": torch.randn(3, 3).as_subclass(Subclass),
    }
    for name, value in other.items():
        torch.save({name: value, "w": torch.randn(4, 4)}, tmp_path / f"{name}.pt")
        found = apply.inspect(tmp_path / f"{name}.pt")
        assert found.table["name"].to_list() == ["w"]
        assert any(note.startswith(name) for note in found.notes)
        torch.save({name: value}, tmp_path / f"{name}.pt")
        refused(tmp_path / f"{name}.pt", name)


def test_objects_beside_the_weights_are_neither_made_nor_in_the_way(tmp_path: Path) -> None:
    weights = {"w": torch.randn(4, 4)}
    trap = tmp_path / "trap"
    torch.save({"model": weights, "args": Trap(trap)}, tmp_path / "beside.pt")
    assert torch.equal(apply.read_checkpoint(tmp_path / "beside.pt")["w"], weights["w"])
    torch.save({"w": Trap(trap)}, tmp_path / "instead.pt")
    refused(tmp_path / "instead.pt", "more than tensors and plain values")
    assert not trap.exists()


class Trap:
    """What an attacker would save: a call that leaves a trace."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def test_a_packed_archive_is_read_and_a_bomb_is_not(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(4, 4)}, tmp_path / "model.pt")
    with (
        zipfile.ZipFile(tmp_path / "model.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for record in plain.infolist():
            packed.writestr(record.filename, plain.read(record))
    first, second = (apply.read_checkpoint(tmp_path / f"{n}.pt") for n in ("model", "packed"))
    assert torch.equal(first["w"], second["w"])
    zipped(tmp_path / "bomb.pt", b"\0" * 2**27, packed=True)
    assert (tmp_path / "bomb.pt").stat().st_size < 2**18
    refused(tmp_path / "bomb.pt", "would inflate")


def test_a_flipped_bit_of_a_weight_is_noticed(tmp_path: Path) -> None:
    """By the checksum that torch has written, where it was not told to write none."""
    file, weight = tmp_path / "model.pt", torch.randn(64, 32)
    torch.save({"w": weight}, file)
    sound = file.read_bytes()
    start = sound.index(weight.numpy().tobytes())
    for place in (0, 1, 4321, weight.nbytes - 1):
        changed = bytearray(sound)
        changed[start + place] ^= 1
        file.write_bytes(changed)
        refused(file, said="its record data/0 is damaged")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": weight}, file)
    finally:
        torch.serialization.set_crc32_options(True)
    assert apply.inspect(file, workers=1).table["frobenius_norm"].item() == pytest.approx(
        weight.norm().item()
    )


@pytest.mark.parametrize("legacy", [False, True])
def test_no_tensor_is_larger_than_its_storage(tmp_path: Path, legacy: bool) -> None:
    one = torch.zeros(1)
    many = {f"w{i}": one.expand(4096, 4096 + i) for i in range(50)}
    for name, saved in (("wide", {"w": one.as_strided((10**9, 10**9), (0, 0))}), ("many", many)):
        file = tmp_path / f"{name}.pt"
        torch.save(saved, file, _use_new_zipfile_serialization=not legacy)
        refused(file, "promise")


def test_a_storage_that_is_shorter_than_it_says(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(8, 8)}, tmp_path / "model.pt")
    with (
        zipfile.ZipFile(tmp_path / "model.pt") as whole,
        zipfile.ZipFile(tmp_path / "short.pt", "w") as short,
    ):
        for record in whole.infolist():
            content = whole.read(record)
            short.writestr(
                record.filename, content[:40] if "/data/" in record.filename else content
            )
    refused(tmp_path / "short.pt", "beyond its storage")
    buffer = io.BytesIO()
    torch.save({"w": torch.randn(4, 4)}, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    place = content.rfind(struct.pack("<q", 16))
    for entries in (10**12, -5, 17):
        lying = content[:place] + struct.pack("<q", entries) + content[place + 8 :]
        (tmp_path / "lying.pt").write_bytes(lying)
        refused(tmp_path / "lying.pt", "beyond the file's end")


NESTED = b"\x80\x02}X\x01\0\0\0w"
PICKLES = {
    "nothing": b"",
    "lists": b"\x80\x02" + b"]" * 1_000_000 + b".",
    "nested": NESTED + b"]" * 100_000 + b"a" * 99_999 + b"s.",
    "tuples": b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.",
    "laughs": NESTED
    + b"".join(b"]q%c(" % k + (b"h%c" % max(0, k - 1)) * 10 * (k > 0) + b"e" for k in range(30))
    + b"0" * 29
    + b"s.",
    "itself": b"\x80\x02}q\0X\x01\0\0\0wh\0s.",
    "colliding": b"\x80\x02}("
    + b"".join(
        b"\x8a\x0c" + ((2**61 - 1) * k).to_bytes(12, "little", signed=True) + b"N"
        for k in range(1, 50_000)
    )
    + b"u.",
    "long text": b"\x80\x02}\x8d" + struct.pack("<Q", 2**62) + b"abc",
    "a call": b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.",
    "memory": NESTED + b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x10\x85Rs.",
    "an extension": b"\x80\x02\x82\x01.",
    "no mark": b"\x80\x02}u.",
    "a lost memo": b"\x80\x02h\x05.",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_that_ask_for_much_are_refused(tmp_path: Path, kind: str) -> None:
    for name, content in (("zip.pt", b""), ("bare.pt", PICKLES[kind])):
        if content or name == "bare.pt":
            (tmp_path / name).write_bytes(content)
        else:
            zipped(tmp_path / name, PICKLES[kind])
        refused(tmp_path / name)


def header(file: Path, said: object, data: bytes = b"", length: int | None = None) -> None:
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    def entry(shape: list[int], *offsets: int, dtype: str = "F32") -> dict[str, object]:
        return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}

    zeros = b"\0" * 64
    file = tmp_path / "model.safetensors"
    cases: list[tuple[object, bytes, int | None]] = [
        ({"a": entry([4, 4], 0, 64), "b": entry([4, 4], 32, 96)}, b"\0" * 96, None),
        ({"a": entry([4, 4], 0, 640)}, zeros, None),
        ({"a": entry([4, 4], 640, 704)}, zeros, None),
        ({"a": entry([2**40, 2**40], 0, 64)}, zeros, None),
        ({"a": entry([-4, 4], 0, 64)}, zeros, None),
        ({"a": entry([4, 4], 0, 64, dtype="X9")}, zeros, None),
        ({}, b"", 2**62),
        ({}, b"", 2**30),
        (b'{"a":' + b"[" * 100_000 + b"}", b"", None),
        (b'{"\xff\xfe":1}', b"", None),
        (b"[]", b"", None),
        (b'{"__metadata__":{"a":1}}', b"", None),
    ]
    for said, data, length in cases:
        header(file, said, data, length)
        refused(file, "no safetensors file")
    twice = b'{"a":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]},' * 1
    twice += b'"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
    header(file, twice, zeros)
    refused(file)
    header(file, {"a": entry([0, 2**62], 0, 0), "b": entry([4, 4], 0, 64)}, zeros)
    assert apply.inspect(file).table["name"].to_list() == ["b"]


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "/etc/passwd",
        ".",
        "..",
        "",
        "a\0b",
        "sub/x.pt",
        "a" * 5000,
        "link.pt",
    ],
)
def test_shards_lie_beside_their_index(tmp_path: Path, shard: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    save_file({"w": torch.randn(3, 3)}, tmp_path / "secret.safetensors")
    torch.save({"w": torch.randn(3, 3)}, tmp_path / "secret.pt")
    (home / "link.pt").symlink_to(tmp_path / "secret.pt")
    index = home / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    refused(index, "not beside it|out of its folder")


def test_a_cache_of_links_is_read(tmp_path: Path) -> None:
    """The hub keeps files as blobs, and a snapshot as links to them, the index among them."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_file({"w": torch.randn(3, 3)}, blobs / "abc")
    (blobs / "def").write_text(json.dumps({"weight_map": {"w": "model-1.safetensors"}}))
    (snapshot / "model-1.safetensors").symlink_to(blobs / "abc")
    (snapshot / "model.safetensors.index.json").symlink_to(blobs / "def")
    assert list(apply.read_checkpoint(snapshot)) == ["w"]


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b"\xff\xfe\0", b"[1]", b"{}", b'{"weight_map": {"w": 3}}']
)
def test_an_index_that_is_none(tmp_path: Path, content: bytes) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(content)
    refused(index)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    for suffix in (".pt", ".safetensors", ".index.json"):
        os.mkfifo(tmp_path / f"fifo{suffix}")
        refused(tmp_path / f"fifo{suffix}", "no regular file")
        (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
        refused(tmp_path / f"device{suffix}", "no regular file")
        (tmp_path / f"empty{suffix}").touch()
        refused(tmp_path / f"empty{suffix}")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    refused(tmp_path / "loop.pt", "cannot open")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.pt"))
        refused(tmp_path / "socket.pt", "no regular file")


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for suffix in (".pt", ".safetensors"):
        (tmp_path / f"pointer{suffix}").write_bytes(pointer)
        refused(tmp_path / f"pointer{suffix}", "git-lfs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(3, 3)).save(tmp_path / "script.pt")
    refused(tmp_path / "script.pt", "TorchScript")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"w": [1.0]}))
    refused(tmp_path / "pickle.pt", "torch did not write")
    for content in (b"hello\n" * 99, b"<!DOCTYPE html>", b"\x1f\x8b" + b"\0" * 50, b"PK\x03\x04"):
        (tmp_path / "other.bin").write_bytes(content)
        refused(tmp_path / "other.bin", "no PyTorch state dict")


def test_folders_name_the_checkpoints_within(tmp_path: Path) -> None:
    for step in (500, 1000, 20000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file({"w": torch.ones(2, 2)}, tmp_path / f"checkpoint-{step}" / "model.safetensors")
    torch.save({}, tmp_path / "training_args.bin")
    refused(tmp_path, r"checkpoint-500, checkpoint-1000, checkpoint-20000\); name one")
    assert list(apply.read_checkpoint(tmp_path / "checkpoint-500")) == ["w"]


def test_names_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"layers.{number}.weight" for number in range(12)]
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "model.safetensors")
    assert list(apply.read_checkpoint(tmp_path / "model.safetensors")) == names
