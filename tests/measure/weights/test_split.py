"""W_T = f W_0 + G_T: exact for SGD, with the ranks and norms of both parts."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from undertow import predict
from undertow.measure import ranks, split_init, split_matrices
from undertow.models import mlp


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(weight)
    return made


def test_what_sgd_learned_is_the_decayed_sum_of_its_steps() -> None:
    lr, weight_decay, steps = 0.1, 0.05, 40
    net = mlp((5, 12, 3)).double()
    start = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, weight_decay=weight_decay)
    x, y = draw(0, 30, 5), torch.arange(30) % 3
    sums = {"1.weight": torch.zeros(12, 5).double(), "3.weight": torch.zeros(3, 12).double()}
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(net(x), y).backward()
        for name, total in sums.items():
            total *= 1 - lr * weight_decay
            total -= lr * net.get_parameter(name).grad  # type: ignore[operator]
        optimizer.step()
    factor = predict.decay_factor(lr, weight_decay, steps)
    found = split_init(net, start.state_dict(), decay_factor=factor)
    for name, total in sums.items():
        torch.testing.assert_close(found.learned[name], total, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.residue[name], factor * start.get_parameter(name).detach())
    assert found.table["decay_factor"].to_list() == [factor] * 2


def test_parts_add_up_and_their_ranks_are_counted_against_the_whole() -> None:
    initial = draw(1, 9, 14)
    learned = draw(2, 9, 2) @ draw(3, 2, 14)
    final = math.exp(-1.5) * initial + learned
    found = split_init(layer(final), layer(initial), 1.5, threshold=0.05)
    row = found.table.row(0, named=True)
    norm = float(final.norm())
    torch.testing.assert_close(found.learned["weight"], learned)
    assert row["learned_rank"] == 2
    survivors = torch.linalg.svdvals(math.exp(-1.5) * initial)
    assert row["surviving_rank"] == int((survivors > 0.05 * norm).sum())
    assert row["surviving_rank"] == predict.surviving_rank(
        torch.linalg.svdvals(initial).numpy(), 1.5, final_norm=norm, threshold=0.05
    )
    assert row["rank"] == ranks(layer(final), 0.05).table["threshold_rank"][0]
    assert row["forecast_rank"] == max(row["surviving_rank"], 2)
    assert row["norm"] == pytest.approx(norm)
    # ||W||^2 = ||f W_0||^2 + ||G||^2 + 2 <f W_0, G>
    squares = row["residue_norm"] ** 2 + row["learned_norm"] ** 2
    cross = 2 * row["cosine"] * row["residue_norm"] * row["learned_norm"]
    assert squares + cross == pytest.approx(norm**2)
    assert row["learned_stable_rank"] <= 2 + 1e-9
    torch.testing.assert_close(found.residue_spectra["weight"], survivors)
    expected = torch.linalg.svdvals(learned)
    torch.testing.assert_close(found.learned_spectra["weight"], expected, rtol=1e-6, atol=1e-12)


def test_a_stack_of_matrices_is_split_as_each_of_them_is() -> None:
    initial = draw(1, 3, 9, 14)
    factors = torch.tensor([1.0, 0.3, 0.02], dtype=torch.float64)
    final = factors[:, None, None] * initial + draw(2, 3, 9, 2) @ draw(3, 3, 2, 14)
    found = split_matrices(final, initial, factors)
    for e, factor in enumerate(factors.tolist()):
        one = split_init(layer(final[e]), layer(initial[e]), decay_factor=factor, threshold=0.05)
        row = one.table.row(0, named=True)
        for name in ("rank", "surviving_rank", "learned_rank"):
            assert int(getattr(found.ranks(0.05), name)[e]) == row[name]
        assert float(found.norm[e]) == pytest.approx(row["norm"])
        torch.testing.assert_close(found.residue_spectra[e], one.residue_spectra["weight"])
    assert found.ranks(0.05).learned_rank.tolist() == [2, 2, 2]
    assert "3 matrices" in repr(found)
    assert "initial residue" in repr(found.ranks())


def test_a_stack_that_cannot_be_split_is_refused() -> None:
    stack = draw(1, 3, 4, 5)
    with pytest.raises(ValueError, match=r"initial must have the shape of final, \(3, 4, 5\)"):
        split_matrices(stack, stack[0], 1.0)
    with pytest.raises(ValueError, match=r"decay_factor must lie in \[0, 1\], got 1\.5"):
        split_matrices(stack, stack, 1.5)
    with pytest.raises(ValueError, match="threshold must be >= 0, got -1"):
        split_matrices(stack, stack, 1.0).ranks(-1)


def test_the_rank_that_is_kept_is_relative_to_each_matrix_s_own_norm() -> None:
    start = torch.diag(torch.tensor([1.0, 0.5, 0.01, 0.01], dtype=torch.float64))
    ended = torch.diag(torch.tensor([3.0, 0.1, 1.0, 1.0], dtype=torch.float64))
    found = split_matrices(torch.stack([start * 7, ended]), torch.stack([start, start]), 1.0)
    assert found.kept(0.1).tolist() == [1.0, 1.5]
    assert found.kept(1e-3).tolist() == [1.0, 1.0]


def test_nothing_learned_and_everything_forgotten() -> None:
    net = mlp((5, 6, 3))
    same = split_init(net, net, 0.0)
    assert same.table["learned_norm"].to_list() == [0, 0]
    assert same.table["cosine"].to_list() == [0, 0]
    assert same.table["rank"].to_list() == same.table["surviving_rank"].to_list()
    gone = split_init(net, net, math.inf)
    assert gone.table["residue_norm"].to_list() == [0, 0]
    assert gone.table["learned_rank"].to_list() == gone.table["rank"].to_list()
    assert "initial residue" in repr(gone)


def test_each_matrix_may_decay_in_its_own_way() -> None:
    net = mlp((5, 6, 3))
    found = split_init(net, net, {"1.weight": 1.0, "3.weight": 0.0})
    assert found.table["decay_factor"].to_list() == pytest.approx([math.exp(-1), 1])
    with pytest.raises(ValueError, match=r"no entry for 3\.weight"):
        split_init(net, net, {"1.weight": 1.0})
    only = split_init(net, net, {"1.weight": 1.0}, include=["1.weight"])
    assert only.table["name"].to_list() == ["1.weight"]


def test_bad_arguments_are_refused() -> None:
    net = mlp((5, 6, 3))
    with pytest.raises(ValueError, match="either"):
        split_init(net, net)
    with pytest.raises(ValueError, match="either"):
        split_init(net, net, 1.0, decay_factor=0.5)
    with pytest.raises(ValueError, match="decay_exponent must be >= 0"):
        split_init(net, net, math.nan)
    with pytest.raises(ValueError, match="decay_factor must lie"):
        split_init(net, net, decay_factor=1.5)
    with pytest.raises(ValueError, match=r"initial must hold 1\.weight of shape \(6, 5\)"):
        split_init(net, mlp((5, 7, 3)), 1.0)
    with pytest.raises(TypeError):
        split_init(net, [1], 1.0)  # type: ignore[arg-type]


def test_a_state_dict_that_was_not_copied_is_refused() -> None:
    net = mlp((5, 6, 3))
    alias, copied = net.state_dict(), copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    with pytest.raises(ValueError, match=r"initial shares its memory with model.*deepcopy"):
        split_init(net, alias, 0.5)
    assert split_init(net, copied, 0.5).table["rank"].min() > 0


@pytest.mark.parametrize("tied", ["trained", "initial"])
def test_weights_may_be_tied_on_one_side_only(tied: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

    one, other = Tied(), {name: value.clone() for name, value in Tied().state_dict().items()}
    trained, initial = (one, other) if tied == "trained" else (other, one)
    found = split_init(trained, initial, 0.3)
    start = (other if tied == "trained" else one.state_dict())["embedding.weight"]
    expected = math.exp(-0.3) * start.double()
    for residue in found.residue.values():
        torch.testing.assert_close(residue, expected)
    assert len(found.residue) == (1 if tied == "trained" else 2)
