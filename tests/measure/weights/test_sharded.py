"""Weights that are spread over processes are measured whole."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from undertow import ranks
from undertow.measure import displacement
from undertow.objective import Objective


@pytest.fixture
def mesh() -> Iterator[dist.DeviceMesh]:
    """One process, which is a group by itself."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def network() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Conv1d(8, 4, 1), nn.Linear(5, 5))
    net[3].weight = nn.Parameter(net[3].weight.detach() + torch.eye(5))
    return net


def sharded(net: nn.Module, mesh: dist.DeviceMesh) -> nn.Module:
    spread = copy.deepcopy(net)
    for module in spread.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            whole = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
            setattr(module, name, nn.Parameter(whole))
    return spread


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_weights_of_a_sharded_model_are_gathered(mesh: dist.DeviceMesh) -> None:
    net = network()
    spread = sharded(net, mesh)
    assert isinstance(spread[0].weight, DTensor)  # type: ignore[index]
    for given in (spread, spread.state_dict()):
        assert ranks(given).table.equals(ranks(net).table)
    moved = copy.deepcopy(net)
    with torch.no_grad():
        moved[0].weight.mul_(1.5)  # type: ignore[index]
    assert displacement(spread, moved) == displacement(net, moved)
    assert isinstance(spread[0].weight, DTensor)  # type: ignore[index]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tied_weights_stay_one(mesh: dist.DeviceMesh) -> None:
    spread = sharded(network(), mesh)
    spread[3].weight = nn.Parameter(spread[3].weight.detach())  # type: ignore[index,union-attr]
    twice = nn.ModuleList([spread[3], nn.Linear(5, 5)])  # type: ignore[index]
    twice[1].weight = twice[0].weight
    found = ranks(twice)
    assert len(found.table) == 1
    assert "same tensor" in found.notes[0]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_an_objective_of_sharded_parameters_is_refused(mesh: dist.DeviceMesh) -> None:
    data = torch.randn(4, 6), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"0\.weight is a DTensor.*plain copy"):
        Objective(sharded(nn.Sequential(nn.Linear(6, 3)), mesh), nn.CrossEntropyLoss(), data)
