"""How much memory a graph keeps alive, for tensors of all kinds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from odd_twins import draw
from undertow.objective._graphs import graph_bytes


def test_saved_tensors_are_counted_once_and_parameters_not_at_all() -> None:
    leaf = draw(0, 50).requires_grad_()
    kept: list[Tensor] = []

    def build() -> None:
        kept.append((leaf.sin() * leaf).exp())

    # sin(leaf), and exp's own result.
    assert graph_bytes(build, [leaf])[0] == 2 * 50 * 8


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_tensors_are_counted_by_what_they_store(layout: torch.layout) -> None:
    leaf, matrix = draw(0, 40, 3).requires_grad_(), torch.eye(40, dtype=torch.float64)
    sparse = matrix.to_sparse(layout=layout)
    kept: list[Tensor] = []
    size, _ = graph_bytes(lambda: kept.append(sparse @ leaf), [leaf])
    # Indices and values, of the matrix and perhaps of its transpose; dense it would be 40 times it.
    assert 40 * 8 * 2 <= size <= 40 * 8 * 6


def test_where_hooks_are_not_allowed_all_that_is_computed_counts() -> None:
    leaf = draw(0, 50).requires_grad_()
    kept: list[Tensor] = []

    def build() -> None:
        kept.append(torch.func.vmap(torch.func.grad(lambda x: (x * leaf).sin().sum()))(draw(1, 4)))

    size, slow = graph_bytes(build, [leaf])
    assert size >= 4 * 50 * 8
    assert not slow
