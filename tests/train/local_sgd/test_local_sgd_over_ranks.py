"""LocalSGD over real gloo processes: against DistributedDataParallel and averages by hand."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import launch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from undertow.predict import local_drift_multiplier, sync_rounds
from undertow.train import LocalSGD, Outer
from undertow.train.local_sgd import _flat
from undertow.train.local_sgd._flat import Flat

pytestmark = pytest.mark.slow  # processes


class Net(nn.Module):
    """Tied weights, batch norm, a parameter in half precision and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.Linear(6, 6)
        self.third = nn.Linear(6, 6)
        self.third.weight = self.second.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.scales = nn.Parameter(torch.ones(6, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(x)))
        return self.third(torch.relu(self.second(hidden))) * self.scales.float()


def _plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))


def _batches(rank: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(rank + 1)
    for _ in range(steps):
        yield torch.randn(8, 4, generator=draws), torch.randint(3, (8,), generator=draws)


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    each: Callable[[], object] = lambda: None,
) -> list[float]:
    losses = []
    for x, y in batches:
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        each()
        losses.append(loss.item())
    return losses


def _values(model: nn.Module) -> np.ndarray:
    return nn.utils.parameters_to_vector(p.float() for p in model.parameters()).detach().numpy()


# -- parallel SGD, and averages by hand


def _beside_ddp(rank: int) -> tuple[list[float], list[float]]:
    ours, theirs = _plain(), nn.parallel.DistributedDataParallel(_plain())
    first, second = (torch.optim.SGD(m.parameters(), 0.5) for m in (ours, theirs))
    with LocalSGD(ours, first, 1):
        losses = _train(ours, first, _batches(rank, 12))
    return losses, _train(theirs, second, _batches(rank, 12))


def test_averaging_at_every_step_has_the_losses_of_data_parallel_training() -> None:
    for ours, theirs in launch(_beside_ddp, 2):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6)


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, param in model.named_parameters():
        for key, value in optimizer.state[param].items():
            found[f"{name}.{key}"] = value.clone()
    return found


def _all_of_it(rank: int) -> dict[str, Any]:
    _flat._SLICE_BYTES = 64  # many slices, none of which ends where a tensor does
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    local = LocalSGD(model, optimizer, 99, average=("parameters", "optimizer", "buffers"))
    storages = [p.data_ptr() for p in model.parameters()]
    with torch.no_grad():
        model.unused.add_(rank)  # no gradient ever reaches it
    _train(model, optimizer, _batches(rank, 3))
    before = _snapshot(model, optimizer)
    local.average()
    return {
        "before": before,
        "after": _snapshot(model, optimizer),
        "kept": storages == [p.data_ptr() for p in model.parameters()],
        "bytes": local.bytes_reduced,
        "sent": local.bytes_sent,
        "distance": local.report().distance,
    }


def test_everything_asked_for_is_averaged_and_nothing_moved() -> None:
    ranks = launch(_all_of_it, 3)
    for name, after in ranks[0]["after"].items():
        all_before = torch.stack([rank["before"][name] for rank in ranks])
        if after.is_floating_point():
            mean = all_before.double().mean(dim=0).to(after.dtype)
        else:
            mean = all_before.amax(dim=0)
        torch.testing.assert_close(after, mean, rtol=1e-6, atol=1e-7)
        for rank in ranks:
            assert torch.equal(rank["after"][name], after), name
    model = Net()
    numbers = sum(p.numel() for p in model.parameters())
    moments = 2 * 4 * (numbers - 3)  # the unused one has none
    assert ranks[0]["bytes"] == 4 * numbers + moments + 4 * 12 + 8 * 1  # norms and their count
    for rank in ranks:
        assert rank["kept"]
        assert rank["sent"] == pytest.approx(4 / 3 * rank["bytes"])
        names = [name for name, _ in model.named_parameters()]
        moved, size = (
            math.sqrt(sum(float(value(n).double().square().sum()) for n in names))
            for value in (
                lambda n, rank=rank: rank["before"][n].float() - rank["after"][n].float(),
                lambda n, rank=rank: rank["before"][n],
            )
        )
        assert rank["distance"] == pytest.approx(moved / size, rel=0.01)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(0, 2**20))
def test_a_flat_buffer_gives_back_what_it_took(sizes: list[int], large: int) -> None:
    draws = torch.Generator().manual_seed(large)
    shapes = [(size, 2) for size in sizes] + [(large,), ()]
    tensors = [torch.randn(shape, generator=draws) for shape in shapes]
    tensors.append(torch.randn(2, 3, 4, 5, generator=draws).to(memory_format=torch.channels_last))
    saved = [tensor.clone() for tensor in tensors]
    flat = Flat(tensors)
    flat.fill(tensors)
    assert sum(len(part) for part in flat.slices()) == sum(t.numel() for t in tensors)
    assert torch.equal(flat.buffer, torch.cat([t.reshape(-1) for t in tensors]))
    flat.buffer.add_(1).mul_(2)
    moved, norm = flat.distance(tensors, 2)
    flat.empty(tensors, 2)
    for tensor, value in zip(tensors, saved, strict=True):
        torch.testing.assert_close(tensor, value + 1)
    assert moved == pytest.approx(sum(t.numel() for t in tensors), rel=1e-4)
    assert norm == pytest.approx(sum(float(t.square().sum()) for t in saved), rel=1e-4)
    assert flat.finite()
    flat.buffer[len(flat.buffer) // 2] = math.nan
    assert not flat.finite()


# -- rounds, outer steps, the rest of a loop


def _by_the_quadratic_rule(rank: int) -> tuple[Any, list[int]]:
    model = torch.compile(_plain(), backend="eager")
    first, *rest = model.parameters()
    groups = [{"params": [first], "lr": 0.02}, {"params": rest}]
    optimizer = torch.optim.SGD(groups, lr=0.4, momentum=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    ends: list[int] = []
    with LocalSGD(model, optimizer, "qsr", alpha=0.3, base=2, total_steps=30) as local:

        def each() -> None:
            schedule.step()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if not local.step_in_round:
                ends.append(local.steps)

        _train(model, optimizer, _batches(rank, 30), each)
    return local.report(0.5), ends


def test_the_quadratic_rule_reads_the_largest_rate_at_the_start_of_a_round() -> None:
    rates = [0.2 * (1 + math.cos(math.pi * step / 30)) for step in range(30)]
    expected = sync_rounds(rates, alpha=0.3, base=2)
    ends = np.cumsum(expected.periods).tolist()
    for report, found in launch(_by_the_quadratic_rule, 2):
        assert found == ends
        assert report.share == pytest.approx(expected.share)
        assert f"{len(ends)} rounds in 30 steps" in repr(report)
        drift = [
            local_drift_multiplier(rates[start], 0.5, num_workers=2, period=int(period))
            for start, period in zip(expected.starts, expected.periods, strict=True)
        ]
        mean = np.average(drift, weights=expected.periods)
        assert report.as_dict()["drift_multiplier"] == pytest.approx(mean, rel=1e-3)


def _outer_rounds(rank: int, steps: int, workers: int) -> np.ndarray:
    model = _plain()
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    with LocalSGD(model, optimizer, 4, outer=Outer(0.7, 0.9, True)):
        _train(model, optimizer, _batches(rank, steps))
    return _values(model)


def _outer_by_hand(num_workers: int, rounds: int) -> np.ndarray:
    model = _plain()
    outer = torch.optim.SGD(model.parameters(), 0.7, momentum=0.9, nesterov=True)
    data = [list(_batches(rank, 4 * rounds)) for rank in range(num_workers)]
    for number in range(rounds):
        ends = []
        for rank in range(num_workers):
            worker = copy.deepcopy(model)
            inner = torch.optim.SGD(worker.parameters(), 0.3)
            _train(worker, inner, data[rank][4 * number : 4 * number + 4])
            ends.append(list(worker.parameters()))
        for param, *finals in zip(model.parameters(), *ends, strict=True):
            param.grad = param.detach() - torch.stack([p.detach() for p in finals]).mean(0)
        outer.step()
    return _values(model)


def test_outer_steps_are_those_of_an_optimizer_on_the_averaged_difference() -> None:
    for found in launch(_outer_rounds, 2, 12, 2):
        np.testing.assert_allclose(found, _outer_by_hand(2, 3), rtol=1e-4, atol=1e-6)


def test_one_worker_needs_no_process_group() -> None:
    np.testing.assert_allclose(_outer_rounds(0, 12, 1), _outer_by_hand(1, 3), rtol=1e-4, atol=1e-6)
    alone, wrapped = _plain(), _plain()
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.3)
    with LocalSGD(wrapped, optimizer, 4) as local:
        _train(wrapped, optimizer, _batches(0, 6))
    _train(alone, torch.optim.SGD(alone.parameters(), 0.3), _batches(0, 6))
    assert np.array_equal(_values(alone), _values(wrapped))
    assert local.report().bytes_sent == 0
    assert "1 worker, 2 rounds in 6 steps" in repr(local.report())
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks


def _with_a_scaler(rank: int) -> tuple[int, np.ndarray, int]:
    model = _plain()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with LocalSGD(model, optimizer, 4) as local:
        for step, (x, y) in enumerate(_batches(rank, 10)):
            loss = cross_entropy(model(x), y) * (math.inf if rank == step == 1 else 1)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return local.steps, _values(model), local.rounds


def test_a_step_that_a_scaler_skips_does_not_count_and_keeps_ranks_together() -> None:
    ranks = launch(_with_a_scaler, 2)
    assert [steps for steps, *_ in ranks] == [10, 9]
    assert [rounds for *_, rounds in ranks] == [3, 3]
    assert np.array_equal(ranks[0][1], ranks[1][1])


def _sparse(rank: int) -> np.ndarray:
    torch.manual_seed(0)
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SparseAdam(list(table.parameters()), 0.1)
    with LocalSGD(table, optimizer, 2, average=("parameters", "optimizer")):
        for step in range(4):
            optimizer.zero_grad()
            table(torch.tensor([rank, rank + step])).square().sum().backward()
            optimizer.step()
    return _values(table)


def test_sparse_gradients_are_no_hindrance() -> None:
    first, second = launch(_sparse, 2)
    assert np.array_equal(first, second)


# -- resuming


def _interrupted(rank: int, stop: int | None) -> tuple[np.ndarray, dict[str, Any]]:
    model = _plain()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    local = LocalSGD(model, optimizer, 4, outer=Outer(0.7, 0.9, True))
    batches = list(_batches(rank, 11))
    _train(model, optimizer, batches[:stop])
    if stop is not None:
        saved = io.BytesIO()
        states = [part.state_dict() for part in (model, optimizer, local)]
        torch.save(states, saved)
        local.close()
        saved.seek(0)
        model = _plain()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        local = LocalSGD(model, optimizer, 4, outer=Outer(0.7, 0.9, True))
        for part, state in zip((model, optimizer, local), torch.load(saved), strict=True):
            part.load_state_dict(state)
        _train(model, optimizer, batches[stop:])
    local.finish()
    return _values(model), local.report().as_dict()


def test_a_run_that_is_resumed_in_the_middle_of_a_round_is_the_same_run() -> None:
    whole, resumed = launch(_interrupted, 2, None), launch(_interrupted, 2, 6)
    for (values, report), (others, other_report) in zip(whole, resumed, strict=True):
        assert np.array_equal(values, others)
        assert report == other_report


def test_a_state_of_another_number_of_workers_is_refused() -> None:
    model = _plain()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    local = LocalSGD(model, optimizer, 4)
    state = local.state_dict() | {"num_workers": 4}
    with pytest.raises(ValueError, match="is of 4 workers and the group has 1"):
        local.load_state_dict(state)


# -- batch norm, shards


def _statistics(rank: int) -> dict[str, Tensor]:
    model = Net()
    model.train(rank == 0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with LocalSGD(model, optimizer, 4) as local:
        ran = local.reestimate(_batches(rank, 2 + rank), batches=5)
    assert ran == 5
    assert model.training == (rank == 0)
    assert model.norm.momentum == 0.1
    return dict(model.named_buffers())


def test_statistics_are_the_means_over_the_batches_of_all_workers() -> None:
    model = Net()
    model.norm.momentum = None
    for rank in range(2):
        for x, _ in _batches(rank, 2 + rank):
            model(x)
    for found in launch(_statistics, 2):
        torch.testing.assert_close(found, dict(model.named_buffers()), check_device=False)


def _sharded(rank: int) -> list[np.ndarray]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("worker", "shard"))
    model = fully_shard(_plain(), mesh=mesh["shard"])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with pytest.raises(ValueError, match="weight is sharded over ranks"):
        LocalSGD(model, optimizer, 2)
    group = mesh["worker"].get_group()
    with LocalSGD(model, optimizer, 2, group=group, average=("optimizer",)):
        _train(model, optimizer, _batches(rank // 2, 6))
    return [p.full_tensor().detach().numpy() for p in model.parameters()]  # type: ignore[attr-defined]


def _whole(rank: int) -> list[np.ndarray]:
    model = _plain()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with LocalSGD(model, optimizer, 2, average=("optimizer",)):
        _train(model, optimizer, _batches(rank, 6))
    return [p.detach().numpy() for p in model.parameters()]


def test_shards_are_averaged_over_the_ranks_that_hold_the_same() -> None:
    expected = launch(_whole, 2)[0]
    for found in launch(_sharded, 4):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
