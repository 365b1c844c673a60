"""A document for programs: its data as one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from undertow.lab._document import Document


def as_json(document: Document) -> str:
    """The document's data as one JSON object in one line; NaN and infinities are null.

    Raises:
        TypeError: a value that JSON cannot hold.
    """
    return json.dumps(without_nan(document.data), allow_nan=False)


def without_nan(value: Any) -> Any:
    """The value with null where JSON has no number: for NaN and infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
