"""What goes wrong on one rank is said in one line on every rank, and nothing is averaged."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks import launch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from undertow.train import LocalSGD, Outer, WorkerLost
from undertow.train.local_sgd import _team

pytestmark = pytest.mark.slow  # processes


def _net(seed: int = 0, width: int = 5) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))


def _sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr)


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, number: int, rank: int) -> None:
    draws = torch.Generator().manual_seed(rank)
    for _ in range(number):
        optimizer.zero_grad()
        x = torch.randn(4, 3, generator=draws)
        cross_entropy(model(x), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()


def _weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def _same_line(answers: list[Any], kind: type[Exception], *words: str) -> None:
    """Every rank raised `kind`, with all these words, and no more than a line."""
    for answer in answers:
        assert type(answer) is kind, answer
        text = str(answer)
        assert "\n" not in text
        for word in words:
            assert word in text


# -- without processes


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"period": 0}, ValueError, "period must be at least 1, got 0"),
        ({"period": 1.5}, TypeError, "period must be a whole number"),
        ({"period": "qsr"}, ValueError, "alpha must be given"),
        ({"timeout": 0}, ValueError, "timeout must be seconds above 0, got 0"),
        ({"average": "optimizer"}, ValueError, "average must hold names out of parameters"),
        ({"average": ("state",)}, ValueError, "average must hold names out of parameters"),
        ({"outer": 0.7}, TypeError, "outer must be a train.Outer, got 0.7"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], kind: type[Exception], words: str) -> None:
    model = _net()
    optimizer = _sgd(model)
    with pytest.raises(kind, match=words):
        LocalSGD(model, optimizer, **arguments)
    assert not optimizer._optimizer_step_post_hooks


def test_models_and_optimizers_that_do_not_belong_together() -> None:
    model = _net()
    with pytest.raises(ValueError, match="optimizer has 4 parameters that model does not have"):
        LocalSGD(model, _sgd(_net()))
    with pytest.raises(TypeError, match="optimizer must be a torch"):
        LocalSGD(model, model)  # type: ignore[arg-type]
    lazy = nn.LazyLinear(3)
    with pytest.raises(TypeError, match="holds no numbers yet"):
        LocalSGD(lazy, torch.optim.SGD(lazy.parameters(), 0.1))


def test_a_rate_of_zero_has_no_quadratic_rule() -> None:
    model = _net()
    optimizer = _sgd(model)
    LocalSGD(model, optimizer, "qsr", alpha=0.1)
    _steps(model, optimizer, 1, 0)
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(ValueError, match=r"learning rate is 0\.0 at the start of the round"):
        _steps(model, optimizer, 1, 0)


def test_a_number_that_is_not_finite_on_one_worker() -> None:
    model = _net()
    optimizer = _sgd(model, 1.0)
    LocalSGD(model, optimizer, 2, outer=Outer(0.5))
    with torch.no_grad():
        model[0].bias[1] = float("inf")
    with pytest.raises(FloatingPointError, match=r"parameter 0\.bias is no finite number any more"):
        _steps(model, optimizer, 2, 0)
    with pytest.raises(RuntimeError, match=r"rebuild\(\) goes on"):
        _steps(model, optimizer, 1, 0)


# -- at the start


def _start(rank: int, case: str) -> object:
    model, arguments, lr = _net(), {"period": 2}, 0.1
    if rank == 1:
        model = {"values": _net(1), "shapes": _net(0, 6)}.get(case, model)
        arguments = {"period": {"period": 3, "bad": 0}.get(case, 2)}
        lr = 0.2 if case == "lr" else lr
    if case == "wrapped":
        return LocalSGD(nn.parallel.DistributedDataParallel(model), _sgd(model))
    if case == "absent":
        if rank == 1:
            time.sleep(3)
            return WorkerLost("rank 1 did not come to the start")
        return LocalSGD(model, _sgd(model), timeout=0.5)
    if case == "sync":
        model = _net(rank)
        LocalSGD(model, _sgd(model), sync=True)
        return _weights(model)
    LocalSGD(model, _sgd(model, lr), **arguments)
    return None


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("values", ValueError, ("rank 1 differs from rank 0 in 0.weight and 3 more", "sync=True")),
        (
            "shapes",
            ValueError,
            ("rank 1 has 0.weight = (6, 3) of float32 where rank 0 has (5, 3)",),
        ),
        ("period", ValueError, ("rank 1 has period = 3 where rank 0 has 2",)),
        ("lr", ValueError, ("rank 1 has lr of group 0 = 0.2 where rank 0 has 0.1",)),
        ("bad", ValueError, ("period must be at least 1, got 0",)),
        ("wrapped", ValueError, ("is DistributedDataParallel over ranks 0, 1 and 2",)),
        ("absent", WorkerLost, ("rank 1 did not come to the start",)),
    ],
)
def test_ranks_that_differ_at_the_start(
    case: str, kind: type[Exception], words: tuple[str, ...]
) -> None:
    _same_line(launch(_start, 3, case, errors=True), kind, *words)


def test_ranks_may_start_from_the_values_of_the_first() -> None:
    for found in launch(_start, 2, "sync"):
        assert torch.equal(found, _weights(_net(0)))


# -- in the run

TIMEOUT = 3.0


def _end(rank: int, how: str) -> object:
    """Rank 1 comes to a bad end in its second round; what each rank hears."""
    model = _net()
    optimizer = _sgd(model)
    period: Callable[[int, float], int] | int = 2
    if how == "apart":
        period = lambda step, lr: 2 + (step == 2 and rank == 1)  # noqa: E731
    local = LocalSGD(model, optimizer, period, timeout=TIMEOUT)
    before = _weights(model)
    try:
        with local:
            _steps(model, optimizer, 3, rank)
            if rank == 1:
                _come_to_an_end(how, model)
            before = _weights(model)
            _steps(model, optimizer, 0 if (rank, how) == (1, "short") else 5, rank + 9)
    except Exception as error:
        if how == "apart" or rank == 1:
            return error
        assert torch.isfinite(_weights(model)).all()
        assert not torch.equal(_weights(model), before)  # its own step, kept
        return error
    return None


def _come_to_an_end(how: str, model: nn.Module) -> None:
    if how == "dead":
        os._exit(1)
    if how == "killed in the call":
        _team.reduce_ = lambda flats, group: os.kill(os.getpid(), signal.SIGKILL)
    if how == "paused":
        time.sleep(2 * TIMEOUT)
    if how == "error":
        raise KeyError("no more data")
    if how == "nan":
        with torch.no_grad():
            model[2].weight[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("dead", WorkerLost, ("rank 1 did not come to the average after step 4 within 3 s",)),
        ("killed in the call", WorkerLost, ("rank 1 did not come to the average after step 4",)),
        ("paused", WorkerLost, ("rank 1", "the average after step 4", "3 s")),
        ("error", WorkerLost, ("rank 1 stopped after step 3 (KeyError: 'no more data')",)),
        ("nan", FloatingPointError, ("rank 1: parameter", "is no finite number")),
        ("apart", ValueError, ("rank 1 comes after step 5, in a round of 3 from lr 0.1",)),
        ("short", WorkerLost, ("rank 1 ended the loop after step 3", "ranks 0 and 2 went on")),
    ],
)
def test_a_rank_that_comes_to_a_bad_end(
    how: str, kind: type[Exception], words: tuple[str, ...]
) -> None:
    answers = launch(_end, 3, how, errors=True)
    if how in ("dead", "killed in the call"):
        assert answers.pop(1) is None
    elif how == "error":
        assert isinstance(answers.pop(1), KeyError)
    _same_line(answers, kind, *words)


def _goes_on(rank: int, how: str) -> object:
    model = _net()
    optimizer = _sgd(model)
    with LocalSGD(model, optimizer, 2, outer=Outer(0.7, 0.9), timeout=TIMEOUT) as local:
        _steps(model, optimizer, 3, rank)
        if rank == 1:
            _come_to_an_end(how, model)
        try:
            _steps(model, optimizer, 1, rank + 9)
        except (WorkerLost, FloatingPointError) as lost:
            if rank == 1:
                return str(lost)
            local.rebuild()
        assert local.num_workers == 2
        assert local.rounds == 2
        _steps(model, optimizer, 3, rank + 19)
    return _weights(model), local.rounds, local.report().bytes_sent


def _without_a_farewell_of_its_own(rank: int, case: str) -> object:
    model = _net(0, 6 if (rank, case) == (1, "shapes") else 5)
    optimizer = _sgd(model)
    local = LocalSGD(model, optimizer, 2)
    _steps(model, optimizer, 5, rank)
    local.finish()
    return local.rounds


def test_the_first_process_does_not_take_the_store_with_it() -> None:
    assert launch(_without_a_farewell_of_its_own, 3, "", first_holds=True) == [3, 3, 3]
    answers = launch(_without_a_farewell_of_its_own, 3, "shapes", errors=True, first_holds=True)
    _same_line(answers, ValueError, "rank 1 has 0.weight = (6, 3)")


def test_one_optimizer_has_one_local_sgd() -> None:
    model = _net()
    optimizer = _sgd(model)
    first = LocalSGD(model, optimizer, 2)
    with pytest.raises(ValueError, match=r"averaged by another LocalSGD already"):
        LocalSGD(model, optimizer, 2)
    first.close()
    LocalSGD(model, optimizer, 2).close()


@pytest.mark.parametrize("how", ["dead", "killed in the call", "paused", "nan"])
def test_those_who_are_left_go_on(how: str) -> None:
    first, lost, second = launch(_goes_on, 3, how)
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]
    size = 4 * len(_weights(_net()))
    assert first[1:] == (4, pytest.approx(size * (4 / 3 + 3)))
    if how == "paused":
        assert "more than 3 s after ranks 0 and 2, which went on without it" in lost
