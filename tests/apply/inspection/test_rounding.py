"""Rounding is not change: pure rounding has no rank, and a change keeps its own beneath it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from undertow import apply


def change(rows: int, cols: int, rank: int, size: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator)
    return size * left @ torch.randn(rank, cols, generator=generator)


def base(rows: int, cols: int, seed: int = 1) -> Tensor:
    return 0.03 * torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(192, 192), (300, 64)], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 8])
def test_a_merged_change_has_its_own_rank(
    kind: torch.dtype, shape: tuple[int, int], rank: int
) -> None:
    start = base(*shape).to(kind)
    for size in (1e-3, 3e-3, 1e-2):
        tuned = (start.float() + change(*shape, rank, size)).to(kind)
        found = apply.inspect({"w": tuned}, against={"w": start})
        assert found.table["threshold_rank"][0] == rank
        assert found.table["rank_at_1"][0] == rank
        true = change(*shape, rank, size).norm() / start.float().norm()
        assert found.table["change"][0] == pytest.approx(float(true), rel=0.1)


def test_a_change_that_is_finer_than_most_spacings_has_no_echo() -> None:
    start = base(400, 300).bfloat16()
    for size in (1e-4, 3e-4, 1e-3):
        tuned = (start.float() + change(400, 300, 1, size)).bfloat16()
        found = apply.inspect({"w": tuned}, against={"w": start})
        assert found.table["threshold_rank"][0] == 1


@pytest.mark.parametrize("seed", range(12))
def test_pure_rounding_has_no_rank(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, cols = [(16, 16), (100, 30), (150, 150), (8, 300)][seed % 4]
    spread = torch.exp(torch.randn(rows, 1, generator=generator) * (seed % 3))
    weight = torch.randn(rows, cols, generator=generator) * spread
    pairs = {
        "bfloat16 of float32": (weight.bfloat16(), weight),
        "float16 of float32": (weight.half(), weight),
        "two formats": (weight.half(), weight.bfloat16()),
        "stored in float32": (weight.bfloat16().float(), weight),
        "float32 of float64": (weight, weight.double() * (1 + 1e-9)),
        "two roundings": ((weight * (1 + 1e-3)).bfloat16(), weight.bfloat16()),
    }
    for kind, (one, other) in pairs.items():
        for tuned, start in ((one, other), (other, one)):
            found = apply.inspect({"w": tuned}, against={"w": start})
            assert found.table["threshold_rank"][0] == 0, kind
            assert found.table["change"][0] == 0, kind
            assert "nothing stands above the rounding" in repr(found), kind


def test_a_full_change_in_float32_is_not_taken_for_rounding() -> None:
    start = base(60, 60)
    tuned = start + 1e-5 * torch.randn(60, 60)
    found = apply.inspect({"w": tuned}, against={"w": start})
    exact = torch.linalg.matrix_rank((tuned.double() - start.double()), rtol=1e-4)
    assert found.table["threshold_rank"][0] == pytest.approx(int(exact), abs=1)
    assert found.table["frobenius_norm"][0] == pytest.approx(float((tuned - start).norm()))


def test_constants_and_whole_numbers_are_no_coarse_format() -> None:
    start = torch.ones(40, 40)
    tuned = start + change(40, 40, 3, 1e-5)
    assert apply.inspect({"w": tuned}, against={"w": start}).table["rank_at_1"][0] == 3


def test_rows_that_are_the_same_were_not_rounded() -> None:
    """A vocabulary of which three words changed: their change is not lost among the others."""
    start = base(4000, 32).bfloat16()
    tuned = start.clone()
    tuned[:3] += 0.003 * torch.randn(3, 32).bfloat16()
    found = apply.inspect({"w": tuned}, against={"w": start})
    assert found.table["threshold_rank"][0] == 3


def test_identical_weights_say_so() -> None:
    state = {"a": base(5, 4), "b": base(4, 4)}
    found = apply.inspect(state, against={k: v.clone() for k, v in state.items()})
    assert "hold the same values in all of them" in found.text()
    other = state | {"b": base(4, 4, seed=3)}
    said = repr(apply.inspect(other, against=state))
    assert "1 of them are the same in both.\nThe other 1 changed" in said
    # A page of no change draws nothing.
    assert "Spectra" not in [section.heading for section in found.document().sections]
