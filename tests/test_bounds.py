"""The declared ranges of dependencies: each has a lower end, and the pinned release lies in it."""

from __future__ import annotations

from packaging.version import Version

import bounds

PYPROJECT = bounds.ROOT / "pyproject.toml"


def test_what_is_pinned_lies_within_what_is_declared() -> None:
    lines = (bounds.ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    for lowest in bounds.lower_bounds(PYPROJECT):
        name, version = lowest.split("==")
        assert Version(version) <= Version(pinned[name]), name


def test_each_python_that_is_tried_is_declared() -> None:
    declared = PYPROJECT.read_text()
    for version in bounds.PYTHONS:
        assert f"Programming Language :: Python :: {version}" in declared
