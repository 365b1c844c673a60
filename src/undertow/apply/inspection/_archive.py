"""Zip archives of `torch.save`: where each record lies, checked before anything is inflated."""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

# Of the directory at the end; 80,000 records take about this much.
_DIRECTORY_BYTES = 2**23
# What all compressed records may inflate to, beyond the size of the file.
_SPARE_BYTES = 2**26
_CHECKED_AT_ONCE = 2**24  # bytes
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class ArchiveError(ValueError):
    """A zip archive that is damaged, or inflates to more than it should."""


@dataclass(eq=False)
class Archive:
    """The records of one archive, by their names below its only folder."""

    mapped: mmap.mmap
    records: dict[str, zipfile.ZipInfo]
    _inflated: dict[str, bytearray] = field(default_factory=dict)

    def holds(self, name: str) -> bool:
        """Whether there is such a record."""
        return name in self.records

    def size(self, name: str) -> int:
        """Bytes of a record when inflated."""
        return self._record(name).file_size

    def text(self, name: str) -> str:
        """A short record as text; empty where there is none."""
        if name not in self.records or self.size(name) > 64:
            return ""
        return self.read(name).decode("ascii", "replace").strip()

    def read(self, name: str) -> bytes:
        """A record whole, held against its checksum where it has one.

        Raises:
            ArchiveError: there is none, or it is damaged.
        """
        self.check(name)
        source, offset, size = self.place(name)
        return bytes(source[offset : offset + size])

    def check(self, name: str) -> None:
        """Hold a record against its checksum where it has one.

        Raises:
            ArchiveError: there is none, or it is damaged.
        """
        source, offset, size = self.place(name)
        expected = self._record(name).CRC
        if not expected:  # torch writes 0 where it was told to compute none
            return
        found = 0
        with memoryview(source) as view:
            for start in range(offset, offset + size, _CHECKED_AT_ONCE):
                found = zlib.crc32(
                    view[start : min(start + _CHECKED_AT_ONCE, offset + size)], found
                )
        if found != expected:
            raise ArchiveError(f"its record {name} is damaged")

    def place(self, name: str) -> tuple[mmap.mmap | bytearray, int, int]:
        """Where the bytes of a record lie: in what, from where, and how many.

        Raises:
            ArchiveError: there is none, or it is damaged.
        """
        record = self._record(name)
        start = record.header_offset
        header = self.mapped[start : start + _LOCAL_HEADER.size]
        if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise ArchiveError(f"its record {name} is damaged")
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        offset = start + _LOCAL_HEADER.size + name_length + extra_length
        if offset + record.compress_size > len(self.mapped):
            raise ArchiveError(f"its record {name} is cut off")
        if record.compress_type == zipfile.ZIP_STORED:
            return self.mapped, offset, record.file_size
        if name not in self._inflated:
            packed = self.mapped[offset : offset + record.compress_size]
            self._inflated[name] = _inflate(packed, record.file_size, name)
        return self._inflated[name], 0, record.file_size

    def _record(self, name: str) -> zipfile.ZipInfo:
        if name not in self.records:
            raise ArchiveError(f"it has no record {name}")
        return self.records[name]


def open_archive(file: Path, mapped: mmap.mmap) -> Archive:
    """The directory of an archive, if what its records hold fits the file.

    Raises:
        ArchiveError: the archive is cut off or damaged, names a record twice, or would inflate to
            more than the file and 64 MiB.
    """
    if _directory_bytes(mapped) > _DIRECTORY_BYTES:
        raise ArchiveError("its directory is larger than any of torch's")
    try:
        with zipfile.ZipFile(file) as opened:
            found = opened.infolist()
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError) as error:
        raise ArchiveError("its zip archive has no directory at the end") from error
    folder = next((i.filename[:-8] for i in found if i.filename.endswith("data.pkl")), None)
    if folder is None:
        raise ArchiveError("it is a zip archive without torch's data.pkl")
    records: dict[str, zipfile.ZipInfo] = {}
    inflated = stored = 0
    for record in found:
        if record.flag_bits & 1 or record.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise ArchiveError("its records are encrypted, or packed in a way that torch has not")
        if record.compress_type == zipfile.ZIP_STORED:
            stored += record.file_size
            if record.file_size != record.compress_size:
                raise ArchiveError(f"its record {record.filename[:60]} is damaged")
        else:
            inflated += record.file_size
        name = record.filename.removeprefix(folder)
        if name in records:
            raise ArchiveError(f"it holds {name[:60]} twice")
        records[name] = record
    if stored > len(mapped) or inflated > len(mapped) + _SPARE_BYTES:
        raise ArchiveError(f"it would inflate to {stored + inflated:,} bytes, which no model does")
    return Archive(mapped, records)


def _directory_bytes(mapped: mmap.mmap) -> int:
    """The directory's size as the end of the archive gives it, in 32 bits or in 64."""
    end = mapped.rfind(b"PK\x05\x06", max(0, len(mapped) - 2**16 - 22))
    if end < 0 or end + 22 > len(mapped):
        raise ArchiveError("its zip archive has no directory at the end")
    size = int.from_bytes(mapped[end + 12 : end + 16], "little")
    locator = mapped[max(0, end - 20) : end]
    if locator[:4] == b"PK\x06\x07":
        at = int.from_bytes(locator[8:16], "little")
        if at + 48 <= len(mapped):
            size = max(size, int.from_bytes(mapped[at + 40 : at + 48], "little"))
    return 0 if size == 2**32 - 1 else size


def _inflate(packed: bytes, size: int, name: str) -> bytearray:
    stream = zlib.decompressobj(-15)
    try:
        content = bytearray(stream.decompress(packed, size + 1))
    except zlib.error as error:
        raise ArchiveError(f"its record {name} is damaged") from error
    if len(content) != size:
        raise ArchiveError(f"its record {name} does not hold what it says")
    return content
