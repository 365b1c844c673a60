"""Which records do not go with the others: by what most trials give, whatever the order."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.lab._kinds import unlike

KINDS: dict[str, Any] = {
    "a number": st.sampled_from([1, 0.5, True]),
    "text": st.text(),
    "numbers": st.lists(st.floats(), min_size=1),
    "texts": st.lists(st.text(), min_size=1),
    "lists": st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1),
}
NEUTRAL: dict[str, list[Any]] = {
    "a number": [None],
    "text": [None],
    "numbers": [None, []],
    "texts": [None, []],
    "lists": [None, [], [[]]],
}


def frames(values: list[Any]) -> dict[str, pl.DataFrame]:
    return {str(i): pl.DataFrame({"trial": ["t"], "x": [v]}) for i, v in enumerate(values)}


def named(values: list[Any], fields: set[str]) -> dict[str, str]:
    """What `unlike` says of trials of which each has a frame with one of the values."""
    found = frames(values)
    kinds = {trial: repr(frame.schema).encode() for trial, frame in found.items()}
    schemas = {kinds[trial]: frame.schema for trial, frame in found.items()}
    return unlike(kinds, schemas, fields)


@given(st.data(), st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(KINDS)))
def test_the_few_that_are_unlike_are_named_and_no_others(
    data: st.DataObject, usual: str, odd: str
) -> None:
    most = data.draw(st.lists(KINDS[usual], min_size=2, max_size=5))
    few = data.draw(st.lists(KINDS[odd], max_size=len(most) - 1))
    empty = data.draw(st.lists(st.sampled_from(NEUTRAL[usual]), max_size=3))
    marked = data.draw(
        st.permutations([(v, False) for v in most + empty] + [(v, odd != usual) for v in few])
    )
    found = named([value for value, _ in marked], {"trial"})
    assert set(found) == {str(i) for i, (_, is_odd) in enumerate(marked) if is_odd}


def test_of_as_many_the_first_is_right_and_the_message_says_both() -> None:
    found = named([[0.5], "text"], {"trial"})
    assert found == {
        "1": "record column 'x' holds text, that of other trials lists of numbers; give one kind of"
        " value per column"
    }


@pytest.mark.parametrize("values", [[], [1], [1, "text"]])
def test_what_the_trials_themselves_hold_may_be_of_any_kind(values: list[Any]) -> None:
    assert named(values, {"trial", "x"}) == {}
