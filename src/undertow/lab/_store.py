"""A study's folder: one Parquet file per trial, written whole, readable without this library."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from undertow.lab._files import TEMPORARY_SUFFIX, StoreError, json_bytes, write_atomically
from undertow.lab._records import Record, encode_records, join_records
from undertow.lab._trial import trial_hash

try:
    import fcntl
except ImportError:  # Windows, where two runs in one folder are not kept apart
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
_CONFIG, _ENVIRONMENT, _LOCK = "config.json", "environment.json", ".lock"
_PACKAGES = ("undertow", "torch", "numpy", "scipy", "polars")


@dataclass(frozen=True)
class Failure:
    """A trial that gave no records, and why: `error` is the exception's name."""

    trial: str
    fields: Mapping[str, Any]
    error: str
    message: str
    traceback: str = ""

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value}" for name, value in self.fields.items())
        return f"trial {self.trial[:8]} ({fields}) failed with {self.error}: {self.message}"


class Store:
    """A study's folder.

    `config.json` (format, study, knobs), `environment.json`, `trials/<hash>.parquet`,
    `failures/<hash>.json`, and whatever callers add with `write_json`, `write_text` and
    `write_bytes`. Every file is written whole or not at all. A trial's file that cannot be read is
    set aside as `<hash>.parquet.corrupt`, and the trial counts as not done.

    Args:
        path: the folder; made if it is not there or empty.
        create: when false, the folder must be a store already.

    Raises:
        StoreError: the folder holds something else, or a newer version of Undertow wrote it.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True) -> None:
        self.path = Path(path)
        config = self.path / _CONFIG
        if config.is_file():
            self._check_format(self.config)
        elif not create or self._holds_something():
            raise StoreError(
                f"{self.path} is not an Undertow store: it has no {_CONFIG}; "
                "give the folder of an earlier run"
                + (", an empty one, or one that is not there yet" if create else "")
            )
        else:
            write_atomically(config, json_bytes({"format": FORMAT, "study": None, "config": {}}))

    def __repr__(self) -> str:
        return (
            f"store of {self.study or 'no study yet'} in {self.path}: {len(self.hashes())} trials"
        )

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` holds: `format`, `study` and `config`."""
        try:
            config = json.loads((self.path / _CONFIG).read_bytes())
        except ValueError as error:
            raise StoreError(f"{self.path / _CONFIG} cannot be read as JSON: {error}") from error
        if not isinstance(config, dict):
            raise StoreError(f"{self.path / _CONFIG} does not hold a JSON object")
        return config

    @property
    def study(self) -> str | None:
        """The name of the study that the store holds, once it holds one."""
        return self.config.get("study")

    def begin(self, study: str, config: Mapping[str, Any]) -> None:
        """Note the study, its knobs and the software that runs it.

        The same study with other knobs may share the folder: each trial is known by its content.

        Raises:
            StoreError: the folder holds another study.
        """
        if self.study not in {None, study}:
            raise StoreError(
                f"{self.path} holds the study {self.study!r}, not {study!r}; give another folder"
            )
        content = {"format": FORMAT, "study": study, "config": config}
        write_atomically(self.path / _CONFIG, json_bytes(content))
        self._note_environment()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the store for one run, and clear away what a killed one left half-written.

        The lock belongs to the process: the system drops it when the process ends, however it ends.

        Raises:
            StoreError: another process runs a study in this folder.
        """
        with open(self.path / _LOCK, "wb") as lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise StoreError(
                        f"another process is running a study in {self.path}; wait for it or stop it"
                    ) from error
                except OSError:  # a file system without locks
                    pass
            for leftover in self.path.rglob(f".*{TEMPORARY_SUFFIX}"):
                leftover.unlink(missing_ok=True)
            yield

    def has(self, trial: str) -> bool:
        """Whether the records of the trial with this hash are here and can be read."""
        return self.read(trial) is not None

    def read(self, trial: str) -> pl.DataFrame | None:
        """The records of the trial with this hash; None where they are not here."""
        path = self.path / "trials" / f"{trial}.parquet"
        try:
            # Through memory: polars would take brackets in a folder's name for a pattern.
            return pl.read_parquet(io.BytesIO(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            path.replace(path.with_name(f"{path.name}.corrupt"))
            return None

    def hashes(self) -> tuple[str, ...]:
        """The hashes of the trials whose records are here, in ascending order."""
        return tuple(sorted(path.stem for path in (self.path / "trials").glob("*.parquet")))

    def records(self, trials: Iterable[str] | None = None) -> pl.DataFrame:
        """The records of the trials with these hashes, in this order; of all trials by default.

        Columns: `trial`, the trials' fields, the records' keys. Types that differ between trials
        are relaxed to one that holds both; a trial that is not here has no rows.
        """
        wanted = self.hashes() if trials is None else trials
        frames = (self.read(trial) for trial in wanted)
        return join_records(frame for frame in frames if frame is not None)

    def write_records(self, trial: Any, rows: Sequence[Record], *, kind: str = "") -> None:
        """Store the records of a trial (see `Experiment.run`), and forget its failure."""
        identity = trial_hash(trial, kind)
        self.write_encoded(identity, encode_records(identity, trial, rows))

    def write_encoded(self, trial: str, content: bytes) -> None:
        """Store the Parquet file of the trial with this hash, as a worker encoded it."""
        write_atomically(self.path / "trials" / f"{trial}.parquet", content)
        (self.path / "failures" / f"{trial}.json").unlink(missing_ok=True)

    def write_failure(self, failure: Failure) -> None:
        """Store why a trial gave no records; it is tried again by the next run."""
        content = json_bytes(dataclasses.asdict(failure))
        write_atomically(self.path / "failures" / f"{failure.trial}.json", content)

    def failures(self) -> tuple[Failure, ...]:
        """The trials that failed when last tried, by ascending hash."""
        paths = sorted((self.path / "failures").glob("*.json"))
        return tuple(Failure(**json.loads(path.read_bytes())) for path in paths)

    def write_json(self, name: str, value: Any) -> Path:
        """Write `value` as JSON to the file `name`, such as `verdict.json`; returns its path.

        NaN and infinities, which JSON lacks, become the strings "NaN", "Infinity" and "-Infinity".
        """
        return self.write_bytes(name, json_bytes(value))

    def write_text(self, name: str, text: str) -> Path:
        """Write `text` (UTF-8) to the file `name`; returns its path."""
        return self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write `content` to the file `name`, such as `figures/rank.svg`; returns its path.

        Raises:
            ValueError: `name` leads out of the store, or is a file that the store keeps itself.
            StoreError: the file could not be written.
        """
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise ValueError(f"name: expected a path inside the store, got {name!r}")
        if parts[0] in {_CONFIG, _ENVIRONMENT, _LOCK, "trials", "failures"}:
            raise ValueError(f"name: {name!r} is kept by the store itself; choose another name")
        path = self.path.joinpath(*parts)
        write_atomically(path, content)
        return path

    def _holds_something(self) -> bool:
        if not self.path.exists():
            return False
        if not self.path.is_dir():
            raise StoreError(f"{self.path} is a file; give a folder")
        return any(not entry.name.endswith(TEMPORARY_SUFFIX) for entry in self.path.iterdir())

    def _check_format(self, config: Mapping[str, Any]) -> None:
        version = config.get("format")
        if not isinstance(version, int):
            raise StoreError(f"{self.path} is not an Undertow store: {_CONFIG} gives no format")
        if version > FORMAT:
            raise StoreError(
                f"{self.path} was written by a newer Undertow (store format {version}, this one "
                f"reads up to {FORMAT}); upgrade with: pip install --upgrade undertow"
            )

    def _note_environment(self) -> None:
        """A study resumed elsewhere keeps the earlier environments under `earlier`."""
        path = self.path / _ENVIRONMENT
        environment = _environment()
        with contextlib.suppress(FileNotFoundError, ValueError):
            before = json.loads(path.read_bytes())
            earlier = before.pop("earlier", [])
            if before != environment:
                earlier.append(before)
            if earlier:
                environment["earlier"] = earlier
        write_atomically(path, json_bytes(environment))


def _environment() -> dict[str, Any]:
    """What may change a result's last digits. No host, no user, no path."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "versions": versions,
    }
