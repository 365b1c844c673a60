"""A study's folder: one Parquet file per trial, written whole, readable without this library."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from undertow.lab._damage import DAMAGED, make_way, set_aside
from undertow.lab._environment import environment
from undertow.lab._files import (
    StoreError,
    Unreadable,
    clear_leftovers,
    flush_files,
    is_leftover,
    json_bytes,
    read_file,
    write_atomically,
)
from undertow.lab._lock import LOCK, locked
from undertow.lab._progress import note
from undertow.lab._records import LARGEST, Loaded, Record, encode_records
from undertow.lab._seal import check_parquet, open_json, sealed_json
from undertow.lab._trial import trial_hash

FORMAT = 1
_CONFIG, _ENVIRONMENT = "config.json", "environment.json"
_TRIALS, _FAILURES = "trials", "failures"
_OWN = {_CONFIG, _ENVIRONMENT, LOCK, _TRIALS, _FAILURES, DAMAGED}
_NOTED = "run.json"  # of the run that holds the lock
_OUTPUTS = {_NOTED, "verdict.json", "report.html", "figures"}
_RECORD, _FAILURE = (re.compile(rf"([0-9a-f]{{32}})\.{end}") for end in ("parquet", "json"))
_LARGEST_JSON = 2**26  # bytes
_NOT_RUN = "counted as not run"


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
    `write_bytes`. Every file is written whole or not at all, records and JSON objects with a digest
    of name and content. What does not match it, or is no file, is moved to `damaged` in one line on
    standard error, and its trial counts as not run.

    Args:
        path: the folder; made if it is not there or empty.
        create: when false, the folder must be a store already.

    Raises:
        StoreError: the folder holds something else, or a newer version of Undertow wrote it; with
            `create` false also that its `config.json` is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True) -> None:
        self.path = Path(path)
        self._unflushed: list[Path] = []
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"{self.path} is a file; give a folder")
        try:
            self._check_format(self.config)
        except FileNotFoundError:
            self._make("is not there", create)
        except _Damaged as damage:
            self._make(damage.why, create)

    def __repr__(self) -> str:
        return (
            f"store of {self.study or 'no study yet'} in {self.path}: {len(self.hashes())} trials"
        )

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` holds: `format`, `study` and `config`."""
        try:
            return open_json(self._read_file(_CONFIG, _LARGEST_JSON), _CONFIG)
        except Unreadable as error:
            raise _Damaged(self.path / _CONFIG, str(error)) from error

    @property
    def study(self) -> str | None:
        """The name of the study that the store holds, once it holds one."""
        return self.config.get("study")

    @property
    def environment(self) -> dict[str, Any]:
        """The software and machine that computed last; empty where that is not known."""
        return self.read_json(_ENVIRONMENT) or {}

    def begin(self, study: str, config: Mapping[str, Any], *, computing: bool = True) -> None:
        """Note the study and its knobs, and the software that runs it if it is `computing`.

        The same study with other knobs may share the folder: each trial is known by its content.
        Nothing is written where nothing is new, so that a finished store may be read-only.

        Raises:
            StoreError: the folder holds another study, or cannot be written.
        """
        if self.study not in {None, study}:
            raise StoreError(
                f"{self.path} holds the study {self.study!r}, not {study!r}; give another folder"
            )
        content = sealed_json({"format": FORMAT, "study": study, "config": config}, _CONFIG)
        if content != self._read_file(_CONFIG, _LARGEST_JSON):
            self._write(_CONFIG, content)
        if computing:
            self._note_environment()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the store for one run, and clear away what a killed one left half-written.

        The lock belongs to the process: the system drops it when the process ends, however it ends.
        A folder that cannot be written is not locked.

        Raises:
            StoreError: another process runs a study in this folder.
        """
        with locked(self.path):
            for folder in (_TRIALS, _FAILURES):
                make_way(self.path, self.path / folder / "any")
                clear_leftovers(self.path / folder)
            clear_leftovers(self.path, _OWN | {_NOTED})
            clear_leftovers(self.path / "figures", ())
            yield

    def has(self, trial: str) -> bool:
        """Whether the records of the trial with this hash are here, as they were written."""
        return any(True for _ in self._sealed([trial]))

    def read(self, trial: str) -> pl.DataFrame | None:
        """The records of the trial with this hash; None where they are not here."""
        loaded = self.load([trial])
        return loaded.frame() if loaded.trials else None

    def hashes(self) -> tuple[str, ...]:
        """The hashes of the trials whose records are here, in ascending order."""
        return self._names(_TRIALS, _RECORD)

    def records(self, trials: Iterable[str] | None = None) -> pl.DataFrame:
        """The records of the trials with these hashes, in this order; of all trials by default.

        Columns: `trial`, the trials' fields, the records' keys. Types that differ between trials
        are relaxed to one that holds both; a trial that is not here has no rows.
        """
        return self.load(self.hashes() if trials is None else trials).frame()

    def load(self, trials: Iterable[str]) -> Loaded:
        """The records of trials, each once, and which of them are here: one without rows too."""
        loaded = Loaded()
        for trial, content in self._sealed(dict.fromkeys(trials)):
            loaded.add(trial, content)
        return loaded

    def write_records(self, trial: Any, rows: Sequence[Record], *, kind: str = "") -> None:
        """Store the records of a trial (see `Experiment.run`), and forget its failure."""
        identity = trial_hash(trial, kind)
        self.write_encoded(identity, encode_records(identity, trial, rows))

    def write_encoded(self, trial: str, content: bytes, *, flush: bool = True) -> None:
        """Store the Parquet file of the trial with this hash, as `encode_records` gave it.

        Without `flush` it survives the end of the process, but a power failure only after `flush`.

        Raises:
            ValueError: it is another trial's, or damaged.
            StoreError: it could not be written.
        """
        try:
            check_parquet(content, trial)
        except Unreadable as error:
            raise ValueError(f"content: the file of trial {trial} {error}") from error
        path = self._write(f"{_TRIALS}/{trial}.parquet", content, flush=flush)
        if not flush:
            self._unflushed.append(path)
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(f"{self.path}/{_FAILURES}/{trial}.json")

    def flush(self) -> None:
        """See that what was written without is on the disk, all at once.

        Raises:
            StoreError: the disk is full or broken.
        """
        paths, self._unflushed = self._unflushed, []
        flush_files(paths)

    def write_failure(self, failure: Failure) -> None:
        """Store why a trial gave no records; it is tried again by the next run."""
        name = f"{_FAILURES}/{failure.trial}.json"
        self._write(name, sealed_json(dataclasses.asdict(failure), name))

    def failures(self) -> tuple[Failure, ...]:
        """The trials that failed when last tried, by ascending hash."""
        names = (f"{_FAILURES}/{trial}.json" for trial in self._names(_FAILURES, _FAILURE))
        noted = (self.read_json(name, then=_NOT_RUN) for name in names)
        return tuple(Failure(**found) for found in noted if found is not None)

    def write_json(self, name: str, value: Any) -> Path:
        """Write `value` as JSON to the file `name`, such as `verdict.json`; returns its path.

        NaN and infinities, which JSON lacks, become the strings "NaN", "Infinity" and "-Infinity".
        An object gets a last member `digest`, by which `read_json` notices damage.
        """
        sealed = isinstance(value, Mapping)
        return self.write_bytes(name, sealed_json(value, name) if sealed else json_bytes(value))

    def read_json(self, name: str, *, then: str = "not used") -> dict[str, Any] | None:
        """The object that `write_json` wrote to the file `name`; None where it is not here.

        What is damaged is set aside; the line about it ends with `then`.
        """
        try:
            return open_json(self._read_file(name, _LARGEST_JSON), name)
        except FileNotFoundError:
            return None
        except Unreadable as error:
            self._set_aside([self.path / name], str(error), then)
            return None

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
        if parts[0] in _OWN:
            raise ValueError(f"name: {name!r} is kept by the store itself; choose another name")
        return self._write("/".join(parts), content)

    def _make(self, why: str, create: bool) -> None:
        """A new store, or one anew whose `config.json` is lost; `why` says how."""
        entries: set[str] = set()
        with contextlib.suppress(FileNotFoundError):
            entries.update(name for name in os.listdir(self.path) if not is_leftover(name))
        config = self.path / _CONFIG
        if not self._is_ours(entries) and (entries or not create):
            raise StoreError(
                f"{self.path} is not an Undertow store: {_CONFIG} {why}; "
                "give the folder of an earlier run"
                + (", an empty one, or one that is not there yet" if create else "")
            )
        if not create:
            raise StoreError(
                f"{config} {why}, so which run this is is not known; start the same run again with "
                "this folder, and it goes on from the records that are here"
            )
        if _CONFIG in entries:
            self._set_aside([config], why, "written anew")
        elif entries:
            note(f"{config} {why}: written anew", shown=True)
        self._write(_CONFIG, sealed_json({"format": FORMAT, "study": None, "config": {}}, _CONFIG))

    def _is_ours(self, entries: set[str]) -> bool:
        """Whether a folder without a sound `config.json` is a store nevertheless.

        `config.json` is a name that others give their files too.
        """
        telling = entries - _OUTPUTS - {_CONFIG}
        return bool(self.hashes()) or (bool(telling) and entries <= _OWN | _OUTPUTS)

    def _names(self, folder: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
        try:
            names = os.listdir(self.path / folder)
        except OSError:  # not there, or something else is: see `make_way`
            return ()
        return tuple(sorted(found[1] for name in names if (found := pattern.fullmatch(name))))

    def _sealed(self, trials: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """The trials that are here, each with its file; what is damaged is set aside at the end."""
        damaged: dict[str, list[Path]] = {}
        for trial in trials:
            name = f"{_TRIALS}/{trial}.parquet"
            try:
                content = self._read_file(name, LARGEST)
                check_parquet(content, trial)
            except FileNotFoundError:
                continue
            except Unreadable as error:
                damaged.setdefault(str(error), []).append(self.path / name)
            else:
                yield trial, content
        for why, paths in damaged.items():
            self._set_aside(paths, why, _NOT_RUN)

    def _read_file(self, name: str, limit: int) -> bytes:
        return read_file(f"{self.path}/{name}", limit=limit)  # a Path would cost as much as reading

    def _write(self, name: str, content: bytes, *, flush: bool = True) -> Path:
        path = self.path / name
        try:
            make_way(self.path, path)
            write_atomically(path, content, flush=flush)
        except StoreError as error:
            kept = StoreError(f"{error}: what was finished before is stored and not computed twice")
            kept.errno = error.errno
            raise kept from error
        return path

    def _set_aside(self, paths: Sequence[Path], why: str, then: str) -> None:
        set_aside(self.path, paths, why, then)

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
        now, before = environment(), self.environment
        earlier = before.pop("earlier", [])
        if before and before != now:
            earlier.append(before)
        if earlier:
            now["earlier"] = earlier
        self._write(_ENVIRONMENT, sealed_json(now, _ENVIRONMENT))


class _Damaged(StoreError):
    """The store's `config.json` cannot be used."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} {why}")
        self.why = why
