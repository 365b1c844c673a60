"""Streams of batch indices: what each order promises, and that a stream is its seed's alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from undertow.train.ensemble._sampling import (
    ORDERS,
    BatchStream,
    Order,
    batch_sizes,
    spawn_generators,
)

orders = pytest.mark.parametrize("order", ORDERS)


def stream(order: Order, samples: int, batch_size: int, seed: int = 0) -> BatchStream:
    size = samples if order == "full" else batch_size
    return BatchStream(order, samples, size, torch.Generator().manual_seed(seed))


@given(samples=st.integers(1, 40), epochs=st.integers(1, 4), data=st.data())
@settings(max_examples=40, deadline=None)
def test_an_epoch_visits_every_sample_once(samples: int, epochs: int, data: st.DataObject) -> None:
    batch_size = data.draw(st.integers(1, samples))
    for order in ("epochs", "cyclic", "full"):
        own = stream(order, samples, batch_size)
        sizes = batch_sizes(
            order, samples, own.batch_size, 0, epochs * -(-samples // own.batch_size)
        )
        assert sum(sizes) == epochs * samples
        for epoch in torch.cat([own.take(size) for size in sizes]).split(samples):
            assert torch.equal(epoch.sort().values, torch.arange(samples))


def test_epochs_shuffle_afresh_and_cycles_keep_their_order() -> None:
    first, second, third = stream("epochs", 50, 7).take(150).split(50)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    first, second, third = stream("cyclic", 50, 7).take(150).split(50)
    assert torch.equal(first, second)
    assert torch.equal(second, third)
    assert not torch.equal(first, torch.arange(50))
    assert torch.equal(stream("full", 5, 5).take(10), torch.arange(5).repeat(2))


def test_draws_with_replacement_are_uniform_and_independent() -> None:
    taken = stream("replacement", 20, 8, seed=1).take(40_000)
    singles = torch.bincount(taken, minlength=20)
    pairs = torch.bincount(taken[:-1] * 20 + taken[1:], minlength=400)
    assert stats.chisquare(singles.numpy()).pvalue > 0.01
    assert stats.chisquare(pairs.numpy()).pvalue > 0.01


def test_shuffles_are_uniform() -> None:
    taken = stream("epochs", 6, 2, seed=1).take(6 * 6000).view(-1, 6)
    for position in taken.T:
        assert stats.chisquare(torch.bincount(position, minlength=6).numpy()).pvalue > 1e-3


@orders
@given(counts=st.lists(st.integers(0, 300), max_size=12))
@settings(max_examples=25, deadline=None)
def test_a_stream_does_not_depend_on_how_it_is_taken(order: Order, counts: list[int]) -> None:
    whole = stream(order, 13, 3).take(sum(counts))
    own = stream(order, 13, 3)
    pieces = [own.take(count) for count in counts]
    assert [len(piece) for piece in pieces] == counts
    assert torch.equal(torch.cat([whole[:0], *pieces]), whole)
    assert bool(((whole >= 0) & (whole < 13)).all())
    assert whole.dtype == torch.int64


@pytest.mark.parametrize("order", ["epochs", "cyclic", "replacement"])
def test_seeds_give_their_own_streams(order: Order) -> None:
    streams = [stream(order, 30, 4, seed).take(60) for seed in (0, 1, 0)]
    assert torch.equal(streams[0], streams[2])
    assert not torch.equal(streams[0], streams[1])


@given(
    samples=st.integers(1, 30), first=st.integers(0, 50), count=st.integers(0, 20), data=st.data()
)
@settings(max_examples=50, deadline=None)
def test_batch_sizes_follow_the_step_number(
    samples: int, first: int, count: int, data: st.DataObject
) -> None:
    batch_size = data.draw(st.integers(1, samples))
    whole = batch_sizes("epochs", samples, batch_size, 0, first + count)
    assert batch_sizes("epochs", samples, batch_size, first, count) == whole[first:]
    assert all(1 <= size <= batch_size for size in whole)
    assert batch_sizes("replacement", samples, batch_size, first, count) == [batch_size] * count


def test_the_last_batch_of_an_epoch_is_the_rest() -> None:
    assert batch_sizes("epochs", 10, 4, 0, 7) == [4, 4, 2, 4, 4, 2, 4]
    assert batch_sizes("cyclic", 10, 5, 3, 2) == [5, 5]
    assert batch_sizes("full", 10, 10, 0, 2) == [10, 10]


def test_generators_of_a_seed_are_distinct_and_reproducible() -> None:
    numbers = {
        seed: [torch.rand(1, generator=own).item() for own in spawn_generators(seed, 3)]
        for seed in (0, 1, 2**64, 2**64 + 1)
    }
    assert len({value for values in numbers.values() for value in values}) == 12
    for seed, values in numbers.items():
        more = [torch.rand(1, generator=own).item() for own in spawn_generators(seed, 5)]
        assert more[:3] == values
