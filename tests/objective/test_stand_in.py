"""What is run in a module's place computes what the module computes, and follows it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from module_zoo import Siamese
from undertow.objective import Objective

x, y = torch.randn(9, 4), torch.arange(9) % 3


def objective_of(net: nn.Module) -> Objective:
    return Objective(net, nn.CrossEntropyLoss(), (x, y), microbatch=5)


@pytest.mark.parametrize("tied", [False, True])
def test_a_shared_block_has_the_gradient_of_all_its_uses(tied: bool) -> None:
    net = Siamese(tied=tied)
    parameters = list(net.parameters())
    objective = objective_of(net)
    for _ in range(2):
        slopes = torch.autograd.grad(functional.cross_entropy(net(x), y), parameters)
        torch.testing.assert_close(objective.gradient(), torch.cat([g.flatten() for g in slopes]))
        assert list(net.parameters()) == parameters or all(
            now is then for now, then in zip(net.parameters(), parameters, strict=True)
        )


def test_a_table_of_bounded_norms_is_what_its_forward_makes_of_it() -> None:
    net = nn.Sequential(nn.Embedding(7, 4, max_norm=0.5), nn.Flatten(), nn.Linear(20, 3))
    inputs = torch.randint(7, (9, 5))
    objective = Objective(net, nn.CrossEntropyLoss(), (inputs, y), microbatch=2)
    norms = net[0].weight.detach().norm(dim=1, keepdim=True)
    renormalised = net[0].weight.detach() * (0.5 / norms).clamp(max=1)
    rows = functional.embedding(inputs, renormalised).flatten(1)
    right = functional.cross_entropy(net[2](rows), y).detach()
    found = [objective.value() for _ in range(3)]
    torch.testing.assert_close(found, [right] * 3, rtol=1e-5, atol=1e-6)


class Readied(nn.Module):
    """Hangs hooks on its layers when it is first used; one of them is good for one call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.ready = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.layer.register_forward_hook(lambda module, args, output: 2 * output)
            self.ready = True
        return self.head(torch.tanh(self.layer(x)))


def test_hooks_that_come_and_go_in_forward_do_so_in_each_call() -> None:
    for used in (False, True):
        net = Readied()
        if used:
            net(x)
        once: list[Any] = []

        def first_only(module: nn.Module, args: Any, output: Tensor, once: Any = once) -> Tensor:
            once[0].remove()
            return output + 1

        once.append(net.layer.register_forward_hook(first_only))
        objective = objective_of(net)
        found = [objective.value() for _ in range(3)]
        assert len(net.layer._forward_hooks) == 1 + used
        right = functional.cross_entropy(net(x), y).detach()
        torch.testing.assert_close(found, [right] * 3)


class Random(nn.Module):
    def __init__(self, noise: Callable[[Tensor], Tensor], own: torch.Generator | None) -> None:
        super().__init__()
        self.layer, self.noise, self.own = nn.Linear(4, 3), noise, own

    def forward(self, x: Tensor) -> Tensor:
        if self.own is not None:
            return self.layer(x) + torch.randn(x.shape[0], 3, generator=self.own)
        return self.noise(self.layer(x))


NOISES: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout without its mode": functional.dropout,
    "gumbel": functional.gumbel_softmax,
    "Python's": lambda x: x * random.random(),
    "NumPy's": lambda x: x * float(np.random.rand()),  # noqa: NPY002
}


@pytest.mark.parametrize("name", NOISES)
def test_a_model_that_is_random_in_eval_mode_is_refused(name: str) -> None:
    """In one batch too, and whatever is asked for first; a generator of its own may draw."""
    random.seed(0)  # two draws of one number may be within a hundredth of each other
    np.random.seed(0)  # noqa: NPY002
    for ask in (Objective.value, Objective.gradient):
        objective = Objective(Random(NOISES[name], None), nn.CrossEntropyLoss(), (x, y))
        for _ in range(2):
            with pytest.raises(ValueError, match="random in eval mode"):
                ask(objective)
    own = Random(NOISES[name], torch.Generator().manual_seed(1))
    objective = Objective(own, nn.CrossEntropyLoss(), (x, y))
    assert objective.value() == objective.value()


class Halving(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        self.weight.data.mul_(0.5)  # of which its version does not tell
        return super().forward(input)


def test_what_forward_writes_to_is_as_it_was_for_the_next_microbatch() -> None:
    net = Halving(4, 3)
    right = functional.cross_entropy(functional.linear(x, 0.5 * net.weight, net.bias), y)
    assert torch.isclose(objective_of(net).value(), right.detach())


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "values": lambda net: net[0].weight.data.mul_(2),
    "a parameter": lambda net: setattr(net[0], "weight", nn.Parameter(torch.ones(4, 4))),
    "a module": lambda net: net.__setitem__(1, nn.Sigmoid()),
    "an option": lambda net: setattr(net[3], "negative_slope", 0.7),
    "one more": lambda net: net.append(nn.Linear(3, 3)),
    "a hook": lambda net: net[0].register_forward_hook(lambda m, a, output: output + 1),
    "a buffer": lambda net: net[4].running_mean[0].add_(1),
    "a tensor beside": lambda net: net.shift.add_(1),
    "a list": lambda net: net.shifts.append(torch.ones(4)),
}


class Shifted(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3), nn.LeakyReLU(0.2), nn.BatchNorm1d(3)
        )
        self.shift, self.shifts = torch.zeros(4), [torch.zeros(4)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.shift + sum(self.shifts))


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_module_are_followed(change: str) -> None:
    net = Shifted().eval()
    objective = objective_of(net)
    before = objective.value()
    CHANGES[change](net)
    right = functional.cross_entropy(net(x), y).detach()
    assert not torch.isclose(before, right)
    torch.testing.assert_close(objective.value(), right)


def test_modes_play_no_part() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    objective = objective_of(net)
    found = []
    for training in (True, False):
        net.train(training)
        found.append(objective.value())
    assert found[0] == found[1]


class Drawing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.own = nn.Linear(4, 3), torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        random.random()
        np.random.rand()  # noqa: NPY002
        return self.linear(x) + torch.rand(1, generator=self.own)


class Noisy(Dataset[Any]):
    def __len__(self) -> int:
        return len(x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return x[index] + random.random() + np.random.rand(), y[index]  # noqa: NPY002


@pytest.mark.parametrize("data", [(x, y), Noisy()], ids=["tensors", "dataset"])
def test_random_states_are_left_as_found(data: Any) -> None:
    net = Drawing()

    def states() -> list[Any]:
        torchs = torch.get_rng_state().tolist(), net.own.get_state().tolist()
        return [random.getstate(), str(np.random.get_state()), *torchs]  # noqa: NPY002

    before = states()
    objective = Objective(net, nn.CrossEntropyLoss(), data)
    assert objective.value() == objective.value()
    objective.gradient()
    assert states() == before


def test_scripted_modules_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(4, 3))
    net = nn.Linear(4, 3)
    net.beside = [scripted]  # type: ignore[assignment]  # no part of the model, but run by it
    with pytest.raises(TypeError, match="beside the model's own is TorchScript"):
        objective_of(net).value()


@pytest.mark.parametrize("where", ["mode", "parameters"])
@pytest.mark.parametrize("method", ["value", "gradient", "hvp", "ggnvp"])
def test_inference_mode_and_its_tensors_are_taken(where: str, method: str) -> None:
    def call(objective: Objective) -> Tensor:
        block = (torch.ones(1, objective.num_params),) if "vp" in method else ()
        found: Tensor = getattr(objective, method)(*block)
        return found

    net = nn.Sequential(nn.Linear(4, 3))
    right = call(objective_of(net))
    with torch.inference_mode():
        if where == "mode":
            found = call(Objective(net, nn.CrossEntropyLoss(), (x.clone(), y.clone())))
        else:
            other = nn.Sequential(nn.Linear(4, 3))
            other.load_state_dict(net.state_dict())
    if where == "parameters":
        found = call(objective_of(other))
    torch.testing.assert_close(found.clone(), right)
