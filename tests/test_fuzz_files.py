"""Damaged files end in a result or in one line that names them; `tests/slow` draws thousands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from damaged_files import DAMAGES, FILES, TABLES, Damage, read_checkpoint, read_data

few = settings(max_examples=60, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.parametrize("kind", FILES)
@few
@given(damage=DAMAGES)
def test_checkpoints(kind: str, damage: Damage, tmp_path: Path) -> None:
    assert read_checkpoint(kind, damage, tmp_path) in ("read", "refused")


@pytest.mark.parametrize("kind", TABLES)
@few
@given(damage=DAMAGES)
def test_data(kind: str, damage: Damage, tmp_path: Path) -> None:
    assert read_data(kind, damage, tmp_path) in ("read", "refused")
