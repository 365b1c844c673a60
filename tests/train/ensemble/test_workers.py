"""Workers inside an ensemble against a plain PyTorch loop of Local SGD, and the laws they obey."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from toy_runs import (
    CLASSES,
    FEATURES,
    assert_tensors_equal,
    draw,
    inputs,
    labels,
    numbers,
    torch_optimizer,
)

from undertow.models import conv_net, mlp
from undertow.predict import sync_rounds
from undertow.train import Ensemble, Member, Outer, Rounds, Workers, rules
from undertow.train.ensemble._feeds import lane_generators, worker_rows
from undertow.train.ensemble._sampling import BatchStream, spawn_generators
from undertow.train.rules import Rule
from undertow.train.schedules import Cosine

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures("global_rng_untouched")]
PATHS = ("fused", "vmap", "loop")
PER_WORKER = ("own", "split", "by_class", ("dirichlet", 0.3))
MANY, LOCAL = 48, 4  # samples, and a batch that divides the share of 1, 2, 3 and 4 workers
ALL: Any = ("parameters", "optimizer", "buffers")


def small(generator: torch.Generator) -> nn.Sequential:
    return mlp((FEATURES, 6, CLASSES), generator=generator)


def normed(generator: torch.Generator) -> nn.Sequential:
    return mlp((FEATURES, 6, CLASSES), batch_norm=True, generator=generator)


@functools.cache
def many() -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(1)
    return draw(0, MANY, FEATURES), torch.randint(CLASSES, (MANY,), generator=own)


def make(members: Sequence[Member], path: str = "fused", **options: Any) -> Ensemble:
    model, loss = options.pop("model", small), options.pop("loss", functional.cross_entropy)
    data = options.pop("data", (inputs(), labels()))
    given = {"batch_size": 5, "dtype": torch.float64} | options
    return Ensemble(model, loss, data, members, path=path, **given)  # type: ignore[arg-type]


def assert_equal(found: Ensemble, wanted: Ensemble) -> None:
    """To the last bit."""
    expected = wanted.parameters() | wanted.buffers()
    for name, value in (found.parameters() | found.buffers()).items():
        assert torch.equal(value, expected[name]), name


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-8, atol=1e-10, msg=name)


# ---- against a loop by hand


def local_sgd(member: Member, rule: Rule, steps: int) -> nn.Module:
    """The mean over a member's workers of a plain loop, each with an optimizer of its own."""
    x, y = many()
    workers = member.workers
    assert workers is not None
    generators = lane_generators(member, 1)
    with torch.random.fork_rng(devices=[]):
        centre = normed(generators[0][0]).double().train()
    nets = [copy.deepcopy(centre) for _ in range(workers.num)]
    optimizers = [torch_optimizer(rule, net, member) for net in nets]
    outer = workers.outer or Outer()
    stepper = torch.optim.SGD(
        centre.parameters(), outer.lr, outer.momentum, nesterov=outer.nesterov
    )
    if workers.data == "shared":
        whole = BatchStream(member.order, MANY, LOCAL * workers.num, generators[0][1])
        batches = [whole.take(LOCAL * workers.num).split(LOCAL) for _ in range(steps)]
    else:
        rows = [every(own) for own in worker_rows(member, None, y)]
        streams = [
            BatchStream(member.order, len(own), LOCAL, lane[1], own)
            for own, lane in zip(rows, generators, strict=True)
        ]
        batches = [tuple(stream.take(LOCAL) for stream in streams) for _ in range(steps)]
    end = 0
    for step, indices in enumerate(batches):
        factor = float(member.schedule(np.array([step]))[0]) if member.schedule else 1.0
        if step == end:
            end += workers.length(step, member.lr * factor)
        for net, optimizer, index in zip(nets, optimizers, indices, strict=True):
            optimizer.param_groups[0]["lr"] = member.lr * factor
            optimizer.zero_grad()
            functional.cross_entropy(net(x[index]), y[index]).backward()
            optimizer.step()
        if step + 1 == end:
            synchronise(workers, centre, nets, optimizers, stepper)
    return averaged(copy.deepcopy(centre), nets)


def every(rows: Tensor | None) -> Tensor:
    return torch.arange(MANY) if rows is None else rows


@torch.no_grad()
def averaged(into: nn.Module, nets: Sequence[nn.Module]) -> nn.Module:
    for own, *others in zip(
        into.state_dict().values(), *(net.state_dict().values() for net in nets), strict=True
    ):
        mean = torch.stack(others).double().mean(0)
        own.copy_(mean if own.is_floating_point() else others[0])
    return into


@torch.no_grad()
def synchronise(
    workers: Workers,
    centre: nn.Module,
    nets: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    stepper: torch.optim.Optimizer,
) -> None:
    mean = averaged(copy.deepcopy(centre), nets)
    for start, end in zip(centre.parameters(), mean.parameters(), strict=True):
        start.grad = start - end
    stepper.step()
    for net in nets:
        for own, new in zip(net.parameters(), centre.parameters(), strict=True):
            own.copy_(new)
        if "buffers" in workers.average:
            for own, new in zip(net.buffers(), mean.buffers(), strict=True):
                own.copy_(new)
    if "optimizer" in workers.average:
        states = [list(own.state.values()) for own in optimizers]
        for parts in zip(*states, strict=True):
            for name, value in parts[0].items():
                if isinstance(value, Tensor):
                    new = torch.stack([part[name] for part in parts]).mean(0)
                    for part in parts:
                        part[name].copy_(new)


QSR = Rounds("qsr", alpha=0.15, base=2, warmup_steps=5, peak_lr=0.08)
CREWS = (
    Workers(1, 2, outer=Outer(0.5)),
    Workers(2, 3),
    Workers(3, 1, outer=Outer(0.7, 0.9, nesterov=True), data="split"),
    Workers(4, QSR, ALL, Outer(1.1, 0.5), "by_class"),
    Workers(3, 3, ("parameters", "optimizer"), None, ("dirichlet", 0.3)),
    Workers(2, 5, ("parameters", "buffers"), None, "shared"),
)


def crews() -> list[Member]:
    """Members that differ in all that may differ, workers among it."""
    orders: Any = ("epochs", "cyclic", "replacement")
    return [
        Member(
            seed=7 + place,
            lr=0.05 + 0.01 * place,
            weight_decay=0.1 * (place % 3),
            momentum=0.2 * (place % 4),
            schedule=Cosine(200, warmup=5) if place % 2 else None,
            order=orders[place % 3],
            beta2=0.95,
            eps=1e-2,
            workers=own,
        )
        for place, own in enumerate(CREWS)
    ]


@functools.cache
def by_hand(name: str, steps: int) -> list[nn.Module]:
    return [local_sgd(member, getattr(rules, name), steps) for member in crews()]


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rule", [rules.sgd, rules.momentum, rules.adam], ids=repr)
def test_every_kind_of_worker_is_the_plain_loop(rule: Rule, path: str) -> None:
    steps = 131 if rule is rules.sgd else 43  # beyond the folding of scales, and amid rounds
    ensemble = make(crews(), path, model=normed, data=many(), batch_size=LOCAL, rule=rule)
    ensemble.train(steps)
    expected = by_hand(rule.name, steps)
    assert_tensors_equal(ensemble.parameters() | ensemble.buffers(), expected, rtol=1e-7)
    assert ensemble.rounds_taken[:3] == [steps // 2, steps // 3, steps]
    assert not any(ensemble.diverged)


def test_a_convolutional_network_by_vmap_and_by_loop() -> None:
    images = draw(5, MANY, 1, 6, 6)

    def build(generator: torch.Generator) -> nn.Module:
        return conv_net((1, 6, 6), (3, 4), CLASSES, batch_norm=True, generator=generator)

    members = [Member(1, 0.05, workers=Workers(2, 3, ALL)), Member(2, 0.05)]
    found = [
        make(members, path, model=build, data=(images, many()[1]), batch_size=LOCAL).train(8)
        for path in ("vmap", "loop")
    ]
    assert_close(*(own.parameters() | own.buffers() for own in found))


# ---- one worker, and large batches


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("order", ["epochs", "cyclic", "replacement", "full"])
def test_one_worker_is_the_plain_member_to_the_last_bit(path: str, order: Any) -> None:
    rule = rules.svag(rules.momentum, 2)
    plain = Member(3, 0.1, 0.05, 0.5, order=order)
    alone = make([plain], path, rule=rule).train(9)
    for data in ("shared", *PER_WORKER):
        worker = replace(plain, workers=Workers(1, 2, ALL, data=data))  # type: ignore[arg-type]
        ensemble = make([worker], path, rule=rule).train(9)
        assert_equal(ensemble, alone)
        assert ensemble.rounds_taken == [4]
    assert alone.rounds_taken == [0]


def test_one_worker_with_an_outer_step_is_another_thing() -> None:
    plain = Member(3, 0.1)
    looking_ahead = replace(plain, workers=Workers(1, 2, outer=Outer(0.5)))
    found, alone = make([looking_ahead]).train(2), make([plain]).train(2)
    start = make([plain]).parameters()
    for name, value in found.parameters().items():
        torch.testing.assert_close(value, (start[name] + alone.parameters()[name]) / 2)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("order", ["epochs", "cyclic", "replacement", "full"])
@pytest.mark.parametrize(
    "rule",
    [rules.sgd, rules.momentum, rules.svag(rules.label_noise(rules.sgd, std=0.5), 2)],
    ids=repr,
)
def test_rounds_of_one_step_on_a_shared_batch_are_large_batches(
    path: str, order: Any, rule: Rule
) -> None:
    """The rest of an epoch, 2 of 22, is shared too, and label noise is that of the large batch."""
    plain = Member(3, 0.1, 0.05, 0.5, order=order, schedule=Cosine(40))
    crew = replace(plain, workers=Workers(2, 1, ("parameters", "optimizer"), data="shared"))
    options: Any = {"rule": rule, "loss": nn.MSELoss(), "data": (inputs(), numbers())}
    large = make([plain], path, batch_size=10, **options).train(12)
    found = make([crew], path, **options).train(12)
    assert_close(found.parameters(), large.parameters())
    longer = replace(crew, workers=Workers(2, 2, data="shared"))
    apart = make([longer], path, **options).train(12).parameters()
    name = next(iter(apart))
    assert not torch.allclose(apart[name], large.parameters()[name], rtol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_buffers_stay_each_workers_own_unless_they_are_averaged(path: str) -> None:
    """Which their mean over workers does not show, as running statistics are linear."""
    members = [Member(1, 0.1, workers=Workers(3, 2)), Member(1, 0.1, workers=Workers(3, 2, ALL))]
    ensemble = make(members, path, model=normed, data=many(), batch_size=LOCAL).train(4)
    for member, alike in ((0, False), (1, True)):
        first, second = (dict(ensemble.module(member, worker=k).named_buffers()) for k in (0, 1))
        for name, value in first.items():
            assert torch.equal(value, second[name]) == (alike or not value.is_floating_point())
        mean = dict(ensemble.module(member).named_buffers())
        assert int(mean["2.num_batches_tracked"]) == 4


# ---- independence


@pytest.mark.parametrize("path", PATHS)
def test_a_member_does_not_depend_on_its_neighbours(path: str) -> None:
    options: Any = {"data": many(), "batch_size": LOCAL, "rule": rules.momentum}
    together = make(crews(), path, **options).train(9)
    for place, member in enumerate(crews()):
        alone = make([member], path, **options).train(9)
        assert alone.rounds_taken == [together.rounds_taken[place]]
        own = {name: value[place : place + 1] for name, value in together.parameters().items()}
        assert_close(own, alone.parameters())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rule", [rules.sgd, rules.adam], ids=repr)
@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=5))
def test_training_in_pieces_is_training_at_once(path: str, rule: Rule, cuts: list[int]) -> None:
    """To the last bit, wherever in a round the pieces end, and whether or not they are read."""
    options: Any = {"data": many(), "batch_size": LOCAL, "rule": rule, "model": normed}
    pieces = make(crews(), path, **options)
    for step in sorted(cuts):
        pieces.train(step - pieces.steps_taken)
        pieces.parameters()
        pieces.evaluate(*many())
        pieces.module(3, worker=2)
    whole = make(crews(), path, **options).train(9)
    pieces.train(9 - pieces.steps_taken)
    assert_equal(pieces, whole)
    assert pieces.rounds_taken == whole.rounds_taken


def workers_of(ensemble: Ensemble, member: int, count: int) -> list[Tensor]:
    return [
        nn.utils.parameters_to_vector(ensemble.module(member, worker=k).parameters()).detach()
        for k in range(count)
    ]


@pytest.mark.parametrize("path", PATHS)
def test_what_is_read_is_the_mean_over_workers(path: str) -> None:
    ensemble = make([Member(3, 0.1), Member(3, 0.1, workers=Workers(3, 4))], path)
    for step in ensemble.read_at((0, 3, 4, 6)):
        own = workers_of(ensemble, 1, 3)
        mean = nn.utils.parameters_to_vector(ensemble.module(1).parameters()).detach()
        torch.testing.assert_close(mean, torch.stack(own).mean(0))
        assert torch.equal(own[0], own[1]) == (step in (0, 4))
        if step in (0, 4):
            assert torch.equal(mean, own[0])
        outputs = functional.cross_entropy(ensemble.module(1)(inputs()), labels())
        torch.testing.assert_close(ensemble.evaluate(inputs(), labels()).loss[1], outputs.detach())
    with pytest.raises(ValueError, match="worker must lie between 0 and 2 for member 1, got 3"):
        ensemble.module(1, worker=3)
    with pytest.raises(ValueError, match="between 0 and 0 for member 0"):
        ensemble.module(0, worker=-1)


@pytest.mark.parametrize("path", ["fused", "loop"])
def test_the_first_worker_is_the_plain_member_until_the_first_average(path: str) -> None:
    """In its weights, order, label noise and dropout; and no other worker is."""
    noisy = rules.label_noise(rules.sgd, flip_probability=0.5, num_classes=CLASSES)

    def dropping(generator: torch.Generator) -> nn.Module:
        return nn.Sequential(*small(generator), nn.Dropout(0.5))

    cases: list[dict[str, Any]] = [{"rule": noisy}]
    if path == "loop":
        cases.append({"model": dropping})
    for options in cases:
        for order in ("epochs", "full"):  # a full batch differs in noise or dropout alone
            plain = Member(3, 0.1, order=order)  # type: ignore[arg-type]
            crew = replace(plain, workers=Workers(3, 9))
            ensemble = make([crew, plain], path, **options).train(4)
            alone = nn.utils.parameters_to_vector(ensemble.module(1).parameters()).detach()
            own = workers_of(ensemble, 0, 3)
            torch.testing.assert_close(own[0], alone)
            for other in ((0, 1), (0, 2), (1, 2)):
                assert not torch.allclose(own[other[0]], own[other[1]])


def test_workers_draw_from_their_shards_alone() -> None:
    rows = torch.stack([torch.arange(24), torch.arange(24, 48)])
    crew = Workers(3, 2, data="by_class")
    members = [Member(1, 0.1, workers=crew), Member(2, 0.1)]
    options: Any = {"data": many(), "batch_size": LOCAL, "samples": rows}
    ensemble = make(members, **options)
    shards = ensemble.shards(0)
    assert shards.shape == (3, 8)
    assert torch.equal(shards.flatten().sort().values, torch.arange(24))
    assert torch.equal(ensemble.shards(1), rows[1:])
    kinds = [len(many()[1][own].unique()) for own in shards]
    assert sum(kinds) <= CLASSES + 2
    everything = make([Member(1, 0.1, workers=Workers(2, data="shared"))]).shards(0)
    assert torch.equal(everything, torch.arange(22).repeat(2, 1))
    # The same on those rows alone, as the partition is the seed's.
    data = tuple(part[rows[0]] for part in many())
    assert torch.equal(make(members[:1], data=data, batch_size=LOCAL).shards(0), shards)


# ---- rounds


def test_rounds_of_the_quadratic_rule_are_those_of_the_schedule() -> None:
    steps, schedule = 150, Cosine(150, warmup=20, floor=0.05)
    rates = 0.4 * schedule(np.arange(steps))
    law: Any = {"alpha": 0.3, "base": 2, "warmup_steps": 20}
    expected = sync_rounds(rates, **law)
    rounds = Rounds("qsr", peak_lr=float(rates.max()), total_steps=steps, **law)
    qsr = Member(1, 0.4, schedule=schedule, workers=Workers(2, rounds))
    own = Member(2, 0.1, workers=Workers(2, Rounds(lambda step, lr: 1 + step // 10)))
    ensemble, found, grown = make([qsr, own]), [], []
    for step in ensemble.read_at(range(1, steps + 1)):
        if ensemble.rounds_taken[0] > len(found):
            found.append(step)
        if ensemble.rounds_taken[1] > len(grown):
            grown.append(step)
    assert found == (expected.starts + expected.periods).tolist()
    assert grown[:13] == [*range(1, 11), 12, 14, 16]
    whole = make([qsr, own]).train(steps)
    assert whole.rounds_taken == ensemble.rounds_taken
    assert_equal(whole, ensemble)


# ---- divergence


@pytest.mark.parametrize("path", PATHS)
def test_a_worker_that_diverges_takes_its_member_along_and_no_other(path: str) -> None:
    x, y = inputs(), torch.zeros(22, 1, dtype=torch.float64)
    y[:11] = 1
    y[:5] = 1e200  # a class of its own, on the second worker's shard
    samples = torch.stack([torch.arange(11).repeat(2), torch.arange(11, 22).repeat(2)])
    members = [
        Member(1, 0.1, workers=Workers(2, 1000, data="by_class")),
        Member(2, 0.1, workers=Workers(2, 7, data="split", outer=Outer(0.7, 0.9))),
    ]

    def build(generator: torch.Generator) -> nn.Module:
        return mlp((FEATURES, 6, 1), generator=generator)

    options: Any = {"model": build, "loss": nn.MSELoss(), "data": (x, y), "batch_size": 11}
    ensemble = make(members, path, samples=samples, **options).train(128)
    assert ensemble.diverged_at == [128, None]
    assert all(bool(own.isnan().all()) for own in workers_of(ensemble, 0, 2))
    ensemble.train(13)
    assert ensemble.rounds_taken == [0, 141 // 7]
    assert torch.isnan(ensemble.evaluate(x, y).loss).tolist() == [True, False]
    alone = make(members[1:], path, samples=samples[1:], **options).train(141)
    for name, value in alone.parameters().items():
        torch.testing.assert_close(ensemble.parameters()[name][1:], value)
        assert bool(torch.isnan(ensemble.parameters()[name][0]).all())


# ---- input that is refused


@pytest.mark.parametrize(
    ("words", "error", "settings"),
    [
        ("num must be at least 1, got 0", ValueError, {"num": 0}),
        ("num must be a whole number", TypeError, {"num": 2.0}),
        ("rounds must be at least 1, got 0", ValueError, {"rounds": 0}),
        ("rounds must be a whole number", TypeError, {"rounds": "qsr"}),
        ("average must be a tuple of parameters, optimizer", ValueError, {"average": ("weights",)}),
        ("average must be a tuple", ValueError, {"average": "parameters"}),
        ("average must hold 'parameters'", ValueError, {"average": ("buffers",)}),
        ("outer must be train.Outer or None", TypeError, {"outer": "nesterov"}),
        ("data must be own, shared, split, by_class or", ValueError, {"data": "random"}),
        ("c above 0, got -1", ValueError, {"data": ("dirichlet", -1)}),
    ],
)
def test_workers_that_cannot_be_meant(
    words: str, error: type[Exception], settings: dict[str, Any]
) -> None:
    with pytest.raises(error, match=words):
        Workers(**({"num": 2} | settings))


def refused(words: str, *crew: Workers | None, **options: Any) -> None:
    order = options.pop("order", "epochs")
    members = [Member(1, 0.1, order=order, workers=own) for own in crew]
    steps = options.pop("steps", 0)
    with pytest.raises(ValueError, match=words):
        make(members, **options).train(steps)


def test_data_that_workers_cannot_share() -> None:
    refused("23 workers cannot share 22 samples", Workers(23, data=("dirichlet", 0.1)))
    refused("1 and the 4 samples of each worker's share, got 5", Workers(5, data="split"))
    refused("go through 11 and 22 samples.*batch of 5", Workers(2, data="split"), None)
    refused("'shared' cannot divide epochs of 22", Workers(3, data="shared"))
    refused(
        "data='by_class' of Workers: shards by class need class labels",
        Workers(2, data="by_class"),
        loss=nn.MSELoss(),
        data=(inputs(), numbers()),
    )
    refused("gives all 2 workers the same steps", Workers(2), order="full")
    refused("as many samples a worker, got 11 and 22", Workers(2, data="split"), None, order="full")
    make(
        [
            Member(1, 0.1, order="replacement", workers=Workers(3, data="shared")),
            Member(1, 0.1, order="replacement"),
        ]
    )
    with pytest.raises(TypeError, match=r"workers must be train\.Workers or None, got 4"):
        Member(1, 0.1, workers=4)  # type: ignore[arg-type]


def test_a_rate_of_zero_where_a_round_of_the_quadratic_rule_starts() -> None:
    member = Member(1, 0.1, schedule=Cosine(10), workers=Workers(2, Rounds("qsr", alpha=0.1)))
    ensemble = make([member]).train(10)
    before = ensemble.parameters()
    with pytest.raises(ValueError, match=r"rate is 0.0 .*total_steps"):
        ensemble.train(30)
    assert ensemble.steps_taken == 10
    for name, value in ensemble.parameters().items():
        assert torch.equal(value, before[name])


def test_an_ensemble_says_how_many_workers_it_has() -> None:
    ensemble = make([Member(1, 0.1, workers=Workers(3)), Member(2, 0.1)]).train(2)
    assert "Ensemble of 2 members (4 workers) after 2 steps" in repr(ensemble)
    assert ensemble.rounds_taken == [2, 0]


def test_generators_of_workers_are_all_different() -> None:
    """And those of the first are the member's own."""
    lanes = lane_generators(Member(5, 0.1, workers=Workers(4)), 2)
    states = {tuple(own.get_state().tolist()) for lane in lanes for own in lane}
    assert len(states) == 4 * 6
    for own, plain in zip(lanes[0], spawn_generators(5, 6), strict=True):
        assert torch.equal(own.get_state(), plain.get_state())
