"""What an ensemble promises of its members: independence, reproducibility, and no trace left."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_runs import BATCH, CLASSES, FEATURES, SAMPLES, inputs, labels, members, numbers

from undertow.models import mlp
from undertow.train import Ensemble, Evaluation, Member, rules
from undertow.train.schedules import Constant

PATHS = ("fused", "vmap", "loop")
pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def small(generator: torch.Generator) -> nn.Sequential:
    return mlp((FEATURES, 6, CLASSES), activation="tanh", generator=generator)


def normed(generator: torch.Generator) -> nn.Sequential:
    return mlp((FEATURES, 6, CLASSES), batch_norm=True, generator=generator)


def dropping(generator: torch.Generator) -> nn.Sequential:
    layers = list(mlp((FEATURES, 8, CLASSES), generator=generator))
    return nn.Sequential(*layers[:3], nn.Dropout(0.5), *layers[3:])


def make(
    build: object = small,
    own_members: list[Member] | None = None,
    *,
    path: str = "fused",
    dtype: torch.dtype = torch.float64,
    batch_size: int = BATCH,
    rule: rules.Rule = rules.sgd,
) -> Ensemble:
    return Ensemble(
        build,
        functional.cross_entropy,
        (inputs(), labels()),
        own_members or members(),
        batch_size=batch_size,
        path=path,
        dtype=dtype,
        rule=rule,
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rule", [rules.sgd, rules.momentum, rules.adam, rules.adamw], ids=repr)
def test_a_member_alone_is_the_member_among_others(path: str, rule: rules.Rule) -> None:
    together = make(path=path, rule=rule).train(30).parameters()
    for e, member in enumerate(members()):
        alone = make(own_members=[member], path=path, rule=rule).train(30).parameters()
        for name, value in alone.items():
            torch.testing.assert_close(value[0], together[name][e], rtol=1e-10, atol=1e-12)


def test_dropout_is_the_members_own() -> None:
    together = make(dropping, path="auto").train(20)
    assert together.path == "loop"
    for e, member in reversed(list(enumerate(members()))):
        alone = make(dropping, [member], path="loop").train(7).train(13)
        for name, value in alone.parameters().items():
            assert torch.equal(value[0], together.parameters()[name][e])
    twins = make(dropping, [Member(1, 0.1), Member(1, 0.1), Member(2, 0.1)], path="loop").train(5)
    weight = twins.parameters()["1.weight"]
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])


def test_dropout_drops_in_training_only() -> None:
    ensemble = make(dropping, path="loop").train(3)
    assert torch.equal(ensemble.predict(inputs()), ensemble.predict(inputs()))
    plain = ensemble.module(1).eval()
    torch.testing.assert_close(ensemble.predict(inputs())[1], plain(inputs()).detach())


class Noisy(nn.Linear):
    """Draws random numbers in eval mode, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x))


def test_a_forward_pass_that_always_draws_leaves_the_global_state() -> None:
    ensemble = make(lambda generator: Noisy(FEATURES, CLASSES), path="loop").train(3)
    assert torch.equal(ensemble.predict(inputs()), ensemble.predict(inputs()))


@pytest.mark.parametrize("path", ["auto", *PATHS])
@pytest.mark.parametrize("build", [small, normed])
def test_the_module_passed_in_is_left_as_it_was(path: str, build: object) -> None:
    module = build(torch.Generator()).eval()
    for param in module.parameters():
        param.grad = torch.ones_like(param)
    before = copy.deepcopy(module.state_dict())
    ensemble = make(module, path=path, batch_size=11).train(5)
    ensemble.evaluate(inputs(), labels())
    assert not any(part.training for part in module.modules())
    for name, value in module.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert all(bool((param.grad == 1).all()) for param in module.parameters())


def test_all_members_start_from_the_weights_of_a_module() -> None:
    module = small(torch.Generator().manual_seed(3))
    params = make(module).parameters()
    for name, param in module.named_parameters():
        assert all(torch.equal(own, param.double()) for own in params[name])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("build", [small, normed])
def test_members_start_from_modules_of_their_own(
    path: str, build: Callable[..., nn.Module]
) -> None:
    modules = [build(torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    before = copy.deepcopy(modules[0].state_dict())
    own = [Member(seed, 0.2) for seed in (1, 2, 1)]  # whose data come in one order, or in two
    together = make(modules, own, path=path).train(12).parameters()
    for e, (module, member) in enumerate(zip(modules, own, strict=True)):
        alone = make(module, [member], path=path).train(12).parameters()
        for name, param in alone.items():
            torch.testing.assert_close(together[name][e], param[0], rtol=1e-9, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in modules[0].state_dict().items())


def test_a_module_that_a_function_hands_out_again_and_again_is_left_as_it_was() -> None:
    module = small(torch.Generator().manual_seed(3)).eval()
    before = copy.deepcopy(module.state_dict())
    make(lambda generator: module).train(3)
    assert not module.training
    for name, value in module.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "build", [small, lambda generator: nn.Linear(FEATURES, CLASSES)], ids=["own", "global"]
)
def test_the_seed_alone_decides_the_initial_weights(build: object) -> None:
    """Whether the network is drawn from the generator or from PyTorch's global state."""
    some = make(build, [Member(seed, 0.1) for seed in (1, 2, 3)], path="loop").parameters()
    others = make(build, [Member(seed, 0.5) for seed in (7, 3, 1, 3)], path="loop").parameters()
    for name, value in some.items():
        assert torch.equal(value[0], others[name][2])
        assert torch.equal(value[2], others[name][1])
        assert torch.equal(value[2], others[name][3])
        assert not torch.equal(value[0], value[1])


def test_seeds_decide_the_order_of_the_data() -> None:
    module = small(torch.Generator().manual_seed(3))
    own = [Member(1, 0.1), Member(2, 0.1), Member(1, 0.1)]
    weight = make(module, own).train(3).parameters()["1.weight"]
    torch.testing.assert_close(weight[0], weight[2], rtol=1e-12, atol=0)
    assert float((weight[0] - weight[1]).abs().max()) > 1e-4


@pytest.mark.parametrize("path", ["auto", *PATHS])
def test_training_inside_no_grad(path: str) -> None:
    expected = make(path=path).train(5).parameters()
    with torch.no_grad():
        found = make(path=path).train(5).parameters()
    for name, value in expected.items():
        torch.testing.assert_close(value, found[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("path", PATHS)
def test_a_module_of_ones_own(path: str) -> None:
    ensemble = make(normed, path=path, batch_size=11).train(5)
    module = ensemble.module(1)
    before = ensemble.parameters()
    own = dict([*module.named_parameters(), *module.named_buffers()])
    for name, value in (ensemble.parameters() | ensemble.buffers()).items():
        assert torch.equal(own[name], value[1])
    assert module.training
    assert set(own) == set(normed(torch.Generator()).state_dict())
    functional.cross_entropy(module(inputs()), labels()).backward()
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    for name, value in ensemble.parameters().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("path", ["auto", *PATHS])
def test_results_are_copies(path: str) -> None:
    ensemble = make(normed, path=path, batch_size=11)
    for _ in range(2):
        for tensors in (ensemble.parameters, ensemble.buffers):
            before = {name: value.clone() for name, value in tensors().items()}
            for value in tensors().values():
                value.zero_()
            for name, value in tensors().items():
                assert torch.equal(value, before[name])
        ensemble.train(2)


def test_evaluation_is_the_mean_over_samples_in_eval_mode() -> None:
    ensemble = make(normed, batch_size=11).train(10)
    outputs = ensemble.predict(inputs())
    found = ensemble.evaluate(inputs(), labels())
    assert outputs.shape == (3, SAMPLES, CLASSES)
    assert outputs.dtype == torch.float64
    assert found.loss.shape == found.accuracy.shape == (3,)
    assert found.num_samples == SAMPLES
    for e in range(3):
        own = ensemble.module(e).eval()(inputs()).detach()
        torch.testing.assert_close(outputs[e], own)
        torch.testing.assert_close(found.loss[e], functional.cross_entropy(own, labels()))
        assert float(found.accuracy[e]) == pytest.approx(
            float((own.argmax(1) == labels()).double().mean())
        )
    assert ensemble.evaluate(inputs().float(), labels().int()).loss.equal(
        ensemble.evaluate(inputs().float().double(), labels()).loss
    )


def test_ignored_labels_count_in_neither_loss_nor_accuracy() -> None:
    ensemble = Ensemble(
        small, nn.CrossEntropyLoss(ignore_index=1), (inputs(), labels()), members(), batch_size=11
    ).train(20)
    kept = labels() != 1
    found = ensemble.evaluate(inputs(), labels())
    expected = ensemble.evaluate(inputs()[kept], labels()[kept])
    torch.testing.assert_close(found.loss, expected.loss)
    assert torch.equal(found.accuracy, expected.accuracy)


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    own = [Member(np.int64(3), 0.1)]
    found = make(own_members=own, batch_size=np.int32(5)).train(np.int64(3))
    expected = make(own_members=[Member(3, 0.1)]).train(3)
    for name, value in expected.parameters().items():
        assert torch.equal(value, found.parameters()[name])


def test_an_evaluation_reads_as_a_sentence() -> None:
    classified = Evaluation(torch.tensor([1.0, 3.0]), torch.tensor([0.5, float("nan")]), 7)
    assert repr(classified) == "2 members on 7 samples: mean loss 2, accuracy 0.5"
    fitted = Evaluation(torch.tensor([1.0]), torch.tensor([float("nan")]), 7)
    assert repr(fitted) == "1 members on 7 samples: mean loss 1"


def test_accuracy_needs_class_labels() -> None:
    ensemble = Ensemble(
        small,
        nn.MSELoss(),
        (inputs(), numbers()),
        members(),
        batch_size=BATCH,
        path="fused",
    ).train(2)
    found = ensemble.evaluate(inputs(), numbers())
    assert bool(torch.isnan(found.accuracy).all())
    assert bool(torch.isfinite(found.loss).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", PATHS)
def test_everything_is_of_the_type_asked_for(path: str, dtype: torch.dtype) -> None:
    ensemble = make(normed, path=path, dtype=dtype, batch_size=11).train(3)
    for name, value in (ensemble.parameters() | ensemble.buffers()).items():
        assert value.dtype == (torch.int64 if name.endswith("num_batches_tracked") else dtype)
    assert ensemble.predict(inputs()).dtype == dtype
    assert ensemble.evaluate(inputs(), labels()).loss.dtype == dtype


def test_schedules_see_every_step_once() -> None:
    seen: list[int] = []

    def schedule(steps: np.ndarray) -> np.ndarray:
        seen.extend(steps.tolist())
        return np.ones(len(steps))

    make(own_members=[Member(1, 0.1, schedule=schedule)]).train(5).train(0).train(130)
    assert seen == list(range(135))


def test_a_constant_schedule_is_none() -> None:
    own = [Member(1, 0.1), Member(1, 0.1, schedule=Constant())]
    weight = make(own_members=own).train(20).parameters()["1.weight"]
    torch.testing.assert_close(weight[0], weight[1], rtol=1e-12, atol=0)


def test_an_ensemble_says_what_it_is() -> None:
    text = repr(make().train(3))
    assert text == (
        "Ensemble of 3 members after 3 steps of sgd at batch size 5 (fused path, 0 diverged)"
    )
    assert re.match("Ensemble of 3 members after 0 steps", repr(make(path="auto")))
    assert make(own_members=members("full")).batch_size == SAMPLES
