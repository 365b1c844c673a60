"""What every result of a job does with its document: text, a page, an object for JSON."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from os import PathLike
from typing import TYPE_CHECKING, Any

from undertow import lab

if TYPE_CHECKING:
    from pathlib import Path


class Printed(ABC):
    """A result that is said by its document."""

    @abstractmethod
    def document(self) -> lab.Document:
        """What it says."""

    def text(self) -> str:
        """The document in 80 columns."""
        return lab.as_text(self.document())

    def write_html(self, path: str | PathLike[str]) -> Path:
        """Write the page, with what is drawn on it, as one file that needs no network."""
        return lab.write_page(self.document(), path)

    def as_json(self) -> dict[str, Any]:
        """The whole as one JSON object can hold it, but for what only a page shows."""
        content: dict[str, Any] = json.loads(lab.as_json(self.document()))
        return content
