"""Which way to multiply is taken, and which are tried."""

from __future__ import annotations

import pytest
import torch
from dense_curvature import draw
from product_cases import MODES
from torch import Tensor

from undertow.objective import _autotuning


def test_a_faster_way_that_is_wrong_in_any_direction_is_not_taken() -> None:
    class Wrong:
        kind, build_seconds = "hessian", 0.0

        def free(self) -> None: ...

        def product(self, vectors: Tensor, mode: str) -> Tensor:
            if mode == "loop":
                return sum((vectors * 1.0 for _ in range(2000)), torch.zeros_like(vectors)) / 2000
            found = vectors.clone()
            found[-1] += mode == "batched"
            return found

    for kept in (True, False):
        mode, _ = _autotuning.fastest_mode(Wrong(), draw(0, 6, 50), kept=kept)  # type: ignore[arg-type]
        assert mode == "forward"


@pytest.mark.parametrize("build_seconds", [1e9, 0.0])
def test_forward_mode_is_tried_only_where_it_may_be_faster(build_seconds: float) -> None:
    tried: list[str] = []

    class Kept:
        kind = "hessian"

        def product(self, vectors: Tensor, mode: str) -> Tensor:
            tried.append(mode)
            return vectors * 1.0

    part = Kept()
    part.build_seconds = build_seconds  # type: ignore[attr-defined]
    block = draw(0, 1, 50)
    _, found = _autotuning.fastest_mode(part, block, kept=True)  # type: ignore[arg-type]
    assert ("forward" in tried) == (build_seconds == 0.0)
    assert found is not None
    assert torch.equal(found, block)  # need not be computed again


@pytest.mark.parametrize("kept", [True, False])
def test_large_products_are_not_tried_in_other_ways(
    kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: set[str] = set()

    class Large:
        kind, build_seconds = "hessian", 0.0

        def free(self) -> None: ...

        def product(self, vectors: Tensor, mode: str) -> Tensor:
            tried.add(mode)
            return vectors * 1.0

    monkeypatch.setattr(_autotuning, "_LARGE_SECONDS", 0.0)
    _autotuning.fastest_mode(Large(), draw(0, 6, 50), kept=kept)  # type: ignore[arg-type]
    assert tried == ({"loop"} if kept else set(MODES))
