"""Knobs and their bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest

from undertow.lab import ASCENDING, Knobs


@dataclass(frozen=True)
class Rates(Knobs):
    lrs: Annotated[tuple[float, ...], ASCENDING] = (0.1, 0.2)


@pytest.mark.parametrize("lrs", [(0.2, 0.1), (0.1, 0.1)])
def test_what_must_ascend_may_not_fall_nor_stay(lrs: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="lrs must be ascending, got"):
        Rates(lrs)
    assert Rates((0.1,)).lrs == (0.1,)
