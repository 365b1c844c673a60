"""Checkpoints and data sets with random damage: a result or one line that names the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from damaged_files import DAMAGES, READERS, Damage


@pytest.mark.parametrize("kind", READERS)
def test_every_kind(
    kind: str, tmp_path: Path, scaled: Callable[[int], int], tally: Counter[str]
) -> None:
    @settings(max_examples=scaled(20_000), suppress_health_check=list(HealthCheck))
    @given(damage=DAMAGES)
    def drawn(damage: Damage) -> None:
        tally[READERS[kind](kind, damage, tmp_path)] += 1

    drawn()
