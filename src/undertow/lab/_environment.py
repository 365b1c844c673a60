"""The software and the machine that ran a study."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from typing import Any

_PACKAGES = ("undertow", "torch", "numpy", "scipy", "polars")


def environment() -> dict[str, Any]:
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
