"""The page of what is supported names tests that there are, and is a page of the site."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "supported.md"


def rows() -> list[list[str]]:
    """The cells of every row of its tables, but for headings and rules."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [row for row in cells if row[0] != "what" and not set(row[0]) <= {"-"}]


@functools.cache
def functions_of(path: Path) -> set[str]:
    """The functions of a file of tests, and those of its classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_each_row_names_a_test_that_there_is(row: list[str]) -> None:
    what, how, tests = row
    assert what
    assert how
    named = re.findall(r"`([^`]+)`", tests)
    assert named
    assert tests == ", ".join(f"`{name}`" for name in named)
    for name in named:
        path, _, test = name.partition("::")
        assert re.fullmatch(r"tests(/\w+)*/test_\w+\.py", path), name
        assert (ROOT / path).is_file(), name
        assert not test or (test.startswith("test_") and test in functions_of(ROOT / path)), name


def test_no_row_is_there_twice() -> None:
    kinds = [row[0] for row in rows()]
    assert len(kinds) == len(set(kinds))


def test_the_page_is_in_the_sites_navigation() -> None:
    _, nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")
    assert re.search(r"^  - .*: supported\.md$", nav, re.MULTILINE)
    assert "docs/supported.md" in (ROOT / "README.md").read_text(encoding="utf-8")
