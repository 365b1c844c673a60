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


def found_in(values: list[Any], *fields: str) -> dict[str, str]:
    """What is unlike among trials called 0, 1, ... that give these values."""
    schemas = {
        str(i): pl.DataFrame({"trial": ["t"], "x": [v]}).schema for i, v in enumerate(values)
    }
    kinds = {trial: repr(schema).encode() for trial, schema in schemas.items()}
    return unlike(kinds, {kinds[trial]: schemas[trial] for trial in kinds}, {"trial", *fields})


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
    found = found_in([value for value, _ in marked])
    assert set(found) == {str(i) for i, (_, is_odd) in enumerate(marked) if is_odd}


def test_of_as_many_the_first_is_right_and_the_message_says_both() -> None:
    found = found_in([[0.5], "text"])
    assert found == {
        "1": "record column 'x' holds text, that of other trials lists of numbers; give one kind of"
        " value per column"
    }


@pytest.mark.parametrize("values", [[], [1], [1, "text"]])
def test_what_the_trials_themselves_hold_may_be_of_any_kind(values: list[Any]) -> None:
    assert found_in(values, "x") == {}
