"""A digest with everything that a store keeps, checked before anything parses it.

The digest (SHA-256) is of the name and of all other bytes, so that one flipped bit, a cut, and the
content of another name are noticed. It stands inside the file, which is thus written in one step
and stays what it was for other readers: in Parquet between the last column and the footer, where
readers follow offsets and never look; in JSON as the last member of the object.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from undertow.lab._files import Unreadable, json_bytes

_MAGIC = b"undertow"
_KIND = 8  # bytes
_DIGEST = 32
_SLOT = len(_MAGIC) + _KIND + _DIGEST
_PARQUET_END = 8  # the footer's length, and PAR1
_JSON_START, _JSON_END = b'  "digest": "', b'"\n}\n'

DIFFERS = "does not match its digest"


def seal_parquet(content: bytes, name: str, kind: str) -> bytes:
    """A Parquet file with its digest. Files with the same text `kind` have the same `kind_of`."""
    cut = len(content) - _PARQUET_END - _footer_length(content)
    kind_digest = hashlib.blake2b(kind.encode(), digest_size=_KIND).digest()
    head = content[:cut] + _MAGIC + kind_digest
    tail = content[cut:]
    return head + _digest(name, head, tail) + tail


def check_parquet(content: bytes, name: str) -> None:
    """See that a Parquet file is the one that was sealed under this name.

    Raises:
        Unreadable: it is not, by as little as one bit.
    """
    start = _slot(content)
    end = start + _SLOT
    view = memoryview(content)
    if start < 0 or view[end - _DIGEST : end] != _digest(name, view[: end - _DIGEST], view[end:]):
        raise Unreadable(DIFFERS if content.strip(b"\0") else "is empty")
    if view[start : start + len(_MAGIC)] != _MAGIC:
        raise Unreadable(DIFFERS)


def kind_of(content: bytes) -> bytes:
    """What kind a sealed Parquet file is of."""
    start = _slot(content) + len(_MAGIC)
    return content[start : start + _KIND]


def sealed_json(value: Mapping[str, Any], name: str) -> bytes:
    """A JSON object, indented, with its digest as the last member, `digest`.

    Raises:
        TypeError: a value that JSON cannot hold.
        ValueError: it has a member of that name already.
    """
    if "digest" in value:
        raise ValueError(f"{name}: its member 'digest' is the store's own; choose another name")
    text = json_bytes({**value, "digest": ""})
    head = text[: -len(_JSON_END)]
    return head + _digest(name, head, _JSON_END).hex().encode() + _JSON_END


def open_json(content: bytes, name: str) -> dict[str, Any]:
    """The object that was sealed under this name, without its digest.

    Raises:
        Unreadable: it is not that, by as little as one bit.
    """
    cut = len(content) - len(_JSON_END) - 2 * _DIGEST
    head, digest, end = content[: max(cut, 0)], content[max(cut, 0) : -len(_JSON_END)], content[-4:]
    if not head.endswith(_JSON_START):
        raise Unreadable("has no digest" if content.strip(b"\0") else "is empty")
    if digest != _digest(name, head, end).hex().encode():
        raise Unreadable(DIFFERS)
    value = json.loads(content)
    del value["digest"]
    return value


def _digest(name: str, head: bytes | memoryview, tail: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(name.encode(errors="surrogateescape"))
    digest.update(head)
    digest.update(tail)
    return digest.digest()


def _footer_length(content: bytes) -> int:
    return int.from_bytes(content[-_PARQUET_END:-4], "little")


def _slot(content: bytes) -> int:
    return len(content) - _PARQUET_END - _footer_length(content) - _SLOT
