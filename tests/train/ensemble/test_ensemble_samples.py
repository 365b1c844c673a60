"""Members on rows of their own: each does what it would on those rows alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_runs import BATCH, CLASSES, FEATURES, SAMPLES, STEPS, inputs, labels, members, numbers

from undertow.train import Ensemble, rules
from undertow.train.rules import Rule

pytestmark = pytest.mark.fast
PATHS = ("fused", "vmap", "loop")
# The first member's rows repeat, as in a bootstrap; the others share some.
SAMPLE = torch.stack(
    [
        torch.randint(SAMPLES, (13,), generator=torch.Generator().manual_seed(1)),
        torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(2))[:13],
        torch.arange(13),
    ]
)
RULES = {
    "sgd": rules.sgd,
    "adam": rules.adam,
    "svag": rules.svag(rules.momentum, 3),
    "label noise": rules.label_noise(rules.sgd, flip_probability=0.4, num_classes=CLASSES),
}


def network(generator: torch.Generator) -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, CLASSES)
    )


def trained(
    data: tuple[Tensor, Tensor], places: slice | list[int] = slice(None), **options: Any
) -> Ensemble:
    order = options.pop("order", "epochs")
    own = members(order)
    kept = own[places] if isinstance(places, slice) else [own[place] for place in places]
    settings = {"batch_size": BATCH, "dtype": torch.float64} | options
    ensemble = Ensemble(network, functional.cross_entropy, data, kept, **settings)
    return ensemble.train(STEPS)


def gathered(places: list[int]) -> list[tuple[Tensor, Tensor]]:
    return [(inputs()[SAMPLE[place]], labels()[SAMPLE[place]]) for place in places]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_member_does_what_it_would_on_its_rows_alone(path: str, rule: Rule) -> None:
    found = trained((inputs(), labels()), samples=SAMPLE, path=path, rule=rule)
    tensors = found.parameters() | found.buffers()
    for place, data in enumerate(gathered([0, 1, 2])):
        alone = trained(data, [place], path=path, rule=rule)
        for name, value in (alone.parameters() | alone.buffers()).items():
            if path == "loop":
                assert torch.equal(tensors[name][place], value[0]), name
            else:
                torch.testing.assert_close(tensors[name][place], value[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("order", ["epochs", "replacement", "cyclic", "full"])
def test_it_does_so_in_every_order_of_the_data(order: str) -> None:
    found = trained((inputs(), labels()), samples=SAMPLE, path="loop", order=order)
    for place, data in enumerate(gathered([0, 1, 2])):
        alone = trained(data, [place], path="loop", order=order)
        for name, value in alone.parameters().items():
            assert torch.equal(found.parameters()[name][place], value[0]), name


@pytest.mark.parametrize("path", PATHS)
def test_neither_neighbours_nor_rows_that_it_does_not_see_matter(path: str) -> None:
    found = trained((inputs(), labels()), samples=SAMPLE, path=path)
    more = torch.cat([inputs(), 100 * inputs()]), torch.cat([labels(), labels()])
    alone = trained(more, [1], samples=SAMPLE[1:2].int(), path=path)
    for name, value in alone.parameters().items():
        torch.testing.assert_close(found.parameters()[name][1], value[0], rtol=1e-8, atol=1e-10)


def test_all_rows_in_their_order_are_no_samples() -> None:
    every = torch.arange(SAMPLES).expand(3, -1)
    for path in PATHS:
        plain, given = (trained((inputs(), labels()), path=path, samples=s) for s in (None, every))
        for name, value in plain.parameters().items():
            assert torch.equal(given.parameters()[name], value), (path, name)


def test_each_is_evaluated_on_rows_of_its_own() -> None:
    ensemble = trained((inputs(), labels()), path="fused")
    found = ensemble.evaluate(inputs(), labels(), samples=SAMPLE)
    outputs = ensemble.predict(inputs(), samples=SAMPLE)
    assert found.num_samples == SAMPLE.shape[1]
    assert outputs.shape == (3, 13, CLASSES)
    for place, (own_inputs, own_labels) in enumerate(gathered([0, 1, 2])):
        alone = ensemble.evaluate(own_inputs, own_labels)
        assert torch.equal(found.loss[place], alone.loss[place])
        assert torch.equal(found.accuracy[place], alone.accuracy[place])
        assert torch.equal(outputs[place], ensemble.predict(own_inputs)[place])


def test_targets_that_are_ignored_are_so_by_their_rows() -> None:
    targets = labels().clone()
    targets[::3] = -100
    ensemble = trained((inputs(), labels()), path="fused")
    found = ensemble.evaluate(inputs(), targets, samples=SAMPLE)
    for place in range(3):
        own = inputs()[SAMPLE[place]], targets[SAMPLE[place]]
        assert found.accuracy[place] == ensemble.evaluate(*own).accuracy[place]
        assert found.loss[place] == ensemble.evaluate(*own).loss[place]


def test_a_batch_is_of_the_rows_and_not_of_the_data() -> None:
    with pytest.raises(ValueError, match="between 1 and the 13 samples"):
        trained((inputs(), labels()), samples=SAMPLE, batch_size=14)


@pytest.mark.parametrize(
    ("samples", "kind", "message"),
    [
        (SAMPLE.double(), TypeError, "must be a tensor of whole numbers, .* got torch.float64"),
        (SAMPLE.tolist(), TypeError, "must be a tensor of whole numbers, .* got list"),
        (SAMPLE[:2], ValueError, r"each of the 3 members, \[E, n\], got shape \(2, 13\)"),
        (SAMPLE[0], ValueError, r"got shape \(13,\)"),
        (SAMPLE[:, :0], ValueError, r"got shape \(3, 0\)"),
        (SAMPLE + SAMPLES, ValueError, "between 0 and 21, as the data have 22 rows"),
        (SAMPLE - 1, ValueError, "got -1 to"),
    ],
)
def test_bad_samples_say_what_would_do(samples: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        trained((inputs(), labels()), samples=samples, path="fused")
    ensemble = trained((inputs(), labels()), path="fused")
    with pytest.raises(kind, match=message):
        ensemble.evaluate(inputs(), labels(), samples=samples)


def test_numbers_as_targets_are_gathered_too() -> None:
    found = Ensemble(
        nn.Linear(FEATURES, CLASSES),
        functional.mse_loss,
        (inputs(), numbers()),
        members(),
        batch_size=BATCH,
        samples=SAMPLE,
        path="fused",
        dtype=torch.float64,
    )
    for place in range(3):
        rows = SAMPLE[place]
        alone = found.evaluate(inputs()[rows], numbers()[rows]).loss[place]
        assert found.evaluate(inputs(), numbers(), samples=SAMPLE).loss[place] == alone
