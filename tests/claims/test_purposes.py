"""One seed gives each purpose numbers of its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from undertow import claims

SOURCES = sorted(Path(claims.__file__).parent.rglob("*.py"))


def test_no_two_purposes_or_seeds_share_their_numbers() -> None:
    drawn = torch.stack(
        [
            torch.randn(4_000, generator=claims.stream(seed, purpose))
            for seed in range(4)
            for purpose in (0, 1, 2, 16)
        ]
    )
    apart = drawn.corrcoef() - torch.eye(len(drawn))
    assert apart.abs().max() < 5 / 4_000**0.5


def test_pytorch_counts_by_the_lowest_32_bits_of_a_seed() -> None:
    """Why a purpose cannot be told by adding to a seed."""
    first, second = (
        torch.rand(8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 2**40 + 3)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_claim_makes_a_stream_by_arithmetic_on_a_seed(path: Path) -> None:
    """Seed + 1 is the next seed's stream, 2^40 + seed is the seed's own."""
    made = {
        call.lineno
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and not ast.unparse(call.func).startswith("predict.")  # NumPy counts by the whole seed
        for name, value in (
            [(ast.unparse(call.func).rpartition(".")[2], own) for own in call.args]
            + [(own.arg, own.value) for own in call.keywords]
        )
        if name in ("manual_seed", "seed") and isinstance(value, ast.BinOp)
    }
    assert not made, f"lines {sorted(made)}: take claims.stream(seed, purpose)"
