"""CIFAR-10 from the publisher's files: pickles read as data, or binary rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from undertow._pickled import Call, Named, PickledDataError, read_pickle
from undertow.data._raw import RawData, data_folders

# A batch has 31 MB, and 10,000 labels with a file name each.
_LARGEST = 2**28
_OBJECTS = 200_000


def read_cifar10(root: Path | None) -> RawData:
    """CIFAR-10 from a folder, in the Python or the binary version.

    Raises:
        FileNotFoundError: it is not there, or a batch is missing.
        ValueError: a file is damaged, or no batch of it.
    """
    folders = data_folders("cifar10") if root is None else [root]
    formats: dict[str, tuple[str, Callable[[Path], tuple[np.ndarray, np.ndarray]]]] = {
        "cifar-10-batches-py": ("", _read_pickled),
        "cifar-10-batches-bin": (".bin", _read_binary),
    }
    for version, (suffix, read) in formats.items():
        for folder in [place for base in folders for place in (base / version, base)]:
            names = [*(f"data_batch_{i}{suffix}" for i in range(1, 6)), f"test_batch{suffix}"]
            missing = [name for name in names if not (folder / name).is_file()]
            if len(missing) == len(names):
                continue
            if missing:
                raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; unpack it again.")
            batches = [read(folder / name) for name in names]
            images, labels = zip(*batches[:-1], strict=True)
            train = np.concatenate(images), np.concatenate(labels)
            return RawData(train, batches[-1], f"a local folder ({version})")
    given = "no root or UNDERTOW_DATA folder" if root is None else f"root={str(root)!r} has nothing"
    raise FileNotFoundError(
        f"no CIFAR-10 found ({given}): unpack cifar-10-batches-py or cifar-10-batches-bin from the"
        " publisher's archive and name the folder above it by root= (--data-root)."
    )


def _read_pickled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        if path.stat().st_size > _LARGEST:
            raise PickledDataError(f"it is larger than {_LARGEST:,} bytes")
        with path.open("rb") as file:
            batch = read_pickle(file, strings="bytes", objects=_OBJECTS)
        if not isinstance(batch, dict):
            raise PickledDataError(f"it holds a {type(batch).__name__}")
        missing = [name for name in ("data", "labels") if _entry(batch, name) is None]
        if missing:
            raise PickledDataError(f"it has no {missing[0]}")
        pixels, labels = _array(_entry(batch, "data")), _labels(_entry(batch, "labels"))
    except PickledDataError as error:
        raise ValueError(f"{path} is no batch of CIFAR-10 ({error}); unpack it again.") from error
    return _arrays(path, pixels, labels)


def _entry(batch: dict[Any, Any], name: str) -> Any:
    return batch.get(name.encode(), batch.get(name))


def _labels(found: Any) -> np.ndarray:
    if isinstance(found, Call):
        return _array(found).astype(np.int64)
    if isinstance(found, list) and all(type(n) is int and 0 <= n < 256 for n in found):
        return np.array(found, dtype=np.int64)
    raise PickledDataError("its labels are no list of class numbers")


def _array(found: Any) -> np.ndarray:
    """An array as numpy pickles it: its shape, its type of numbers, its bytes."""
    match found:
        case Call(
            function=Named(
                "numpy.core.multiarray" | "numpy._core.multiarray" | "numpy._core.numeric", name
            )
        ):
            pass
        case Call(function=function):
            raise PickledDataError(f"it asks for {function}")
        case _:
            raise PickledDataError(f"its data is a {type(found).__name__}")
    match name, found.arguments, found.state:
        case "_reconstruct", _, (1, tuple(shape), Call() as kind, fortran, bytes(content)):
            order = "F" if fortran else "C"
        case "_frombuffer", (bytes(content), Call() as kind, tuple(shape), str(order)), _:
            pass
        case _:
            raise PickledDataError(f"it asks for {found.function} in a way that numpy does not")
    dtype = _number_type(kind)
    if not all(type(n) is int and 0 <= n < 2**40 for n in shape) or len(shape) > 2:
        raise PickledDataError("its data has no shape")
    if len(content) != math.prod(shape) * dtype.itemsize or order not in ("C", "F"):
        raise PickledDataError(f"its data of shape {shape} takes {len(content):,} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if order == "F" else "C")


def _number_type(kind: Call) -> np.dtype[Any]:
    """The type of numbers that a pickle names, by its letters alone."""
    named = kind.function == Named("numpy", "dtype") and isinstance(kind.arguments, tuple)
    code = kind.arguments[0] if named and kind.arguments else None
    known = {"u1": "u1", "i8": "<i8", "i4": "<i4", "f8": "<f8", "f4": "<f4"}
    if not isinstance(code, str) or code not in known:
        code = code.decode("latin1") if isinstance(code, bytes) else code
    if not isinstance(code, str) or code not in known:
        raise PickledDataError(f"it asks for {kind.function} of {str(code)[:20]}")
    state = kind.state if isinstance(kind.state, tuple) else ()
    if len(state) > 1 and state[1] in (">", b">"):
        raise PickledDataError("its numbers are big-endian")
    return np.dtype(known[code])


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % 3073:
        raise ValueError(f"{path} is cut short: its size is no multiple of 3,073; unpack it again.")
    rows = content.reshape(-1, 3073)
    return _arrays(path, rows[:, 1:], rows[:, 0].astype(np.int64))


def _arrays(path: Path, pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = len(labels) if labels.ndim == 1 else -1
    if pixels.dtype != np.uint8 or pixels.shape != (rows, 3072) or not rows:
        raise ValueError(
            f"{path} is no batch of CIFAR-10: it has pixels {pixels.dtype} {pixels.shape} for"
            f" labels {labels.shape}; uint8 (n, 3072) for (n,) would do."
        )
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{path} is no batch of CIFAR-10: its labels are not all in 0 to 9.")
    return pixels.reshape(-1, 3, 32, 32), labels
