"""Knobs: bounds in annotations, words from bounds, nested knobs by flat names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from undertow.lab import (
    ASCENDING,
    DISTINCT,
    Count,
    Knobs,
    Seeds,
    Share,
    above,
    at_least,
    between,
    comments,
    one_of,
    some,
    up_to,
)


@dataclass(frozen=True)
class Source:
    data: str = "digits"
    size: int | None = None

    def __post_init__(self) -> None:
        if self.size == 0:
            raise ValueError("size must be at least 1, got 0")


@dataclass(frozen=True)
class Made(Knobs):
    source: Source = Source()
    count: Count = 3
    maybe: Annotated[int | None, at_least(2)] = None
    share: Share = 0.5
    rates: Annotated[tuple[float, ...], above(0), some(2), DISTINCT] = (0.1, 0.2)
    level: Annotated[float, between(1, 2), up_to(1.8)] = 1.5
    name: Annotated[str, one_of("a", "b")] = "a"
    best: float = 0.1
    seeds: Seeds = 2

    def rules(self) -> Mapping[str, bool]:
        return {f"best must be one of rates, got {self.best}": self.best in self.rates}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"maybe": 1}, "maybe must be at least 2, got 1"),
        ({"share": 1.0}, "share must be between 0 and 1, got 1.0"),
        ({"rates": (0.1, -1.0)}, r"rates must be above 0, got \(0.1, -1.0\)"),
        ({"rates": (0.1,)}, r"rates must be at least 2 values, got \(0.1,\)"),
        ({"rates": (0.1, 0.1)}, "rates must be values without one twice"),
        ({"level": 2.0}, "level must be between 1 and 2"),
        ({"level": 1.9}, "level must be at most 1.8"),
        ({"name": "c"}, "name must be one of a, b, got c"),
        ({"best": 0.3}, "best must be one of rates, got 0.3"),
        ({"seeds": 1}, "seeds must be at least 2"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_what_it_must_be(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Made(**given)


def test_nothing_given_is_within_bounds() -> None:
    assert Made(maybe=None).maybe is None


def test_nested_knobs_are_set_by_their_own_names() -> None:
    made = Made().with_values({"data": "other", "count": 4})
    assert (made.source, made.count) == (Source("other"), 4)
    assert made.flat()["data"] == "other"
    assert "source" not in made.flat()
    assert Made().with_values({}) == Made()


def test_setting_all_flat_values_gives_the_same_knobs() -> None:
    made = Made(source=Source("x", 3), count=7, rates=(0.1, 0.4, 0.2))
    assert Made().with_values(made.flat()) == made


def test_an_unknown_knob_is_answered_with_those_alike() -> None:
    with pytest.raises(ValueError, match="no knob 'coun'; it has count"):
        Made().with_values({"coun": 1})
    with pytest.raises(ValueError, match="size must be at least 1"):
        Made().with_values({"size": 0})


def test_comments_beside_and_above_a_field_are_its_words() -> None:
    @dataclass(frozen=True)
    class Said:
        # Above it,
        # over two lines.
        above: int = 1
        beside: int = 2  # beside it
        both: tuple[int, ...] = (  # not a "#" in text
            1,
        )
        nothing: str = "# no comment"

    assert comments(Said) == {
        "above": "Above it, over two lines.",
        "beside": "beside it",
        "both": 'not a "#" in text',
    }
    assert comments(int) == {}


@dataclass(frozen=True)
class Rates(Knobs):
    lrs: Annotated[tuple[float, ...], ASCENDING] = (0.1, 0.2)


@pytest.mark.parametrize("lrs", [(0.2, 0.1), (0.1, 0.1)])
def test_what_must_ascend_may_not_fall_nor_stay(lrs: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="lrs must be ascending, got"):
        Rates(lrs)
    assert Rates((0.1,)).lrs == (0.1,)


@dataclass(frozen=True)
class Within(Knobs):
    """Bounds that are not outermost."""

    several: tuple[Count, ...] = (1,)
    perhaps: Count | None = None


def test_bounds_hold_of_items_and_of_what_may_be_none() -> None:
    assert Within(several=(1, 2), perhaps=3).perhaps == 3
    with pytest.raises(ValueError, match=r"several must be at least 1, got \(2, 0\)"):
        Within(several=(2, 0))
    with pytest.raises(ValueError, match="perhaps must be at least 1, got 0"):
        Within(perhaps=0)


def test_what_cannot_be_compared_is_out_of_bounds() -> None:
    with pytest.raises(ValueError, match="perhaps must be at least 1, got few"):
        Within(perhaps="few")


def test_two_knobs_of_one_name_are_refused() -> None:
    @dataclass(frozen=True)
    class Twice(Knobs):
        one: Source = Source()
        other: Source = Source()

    with pytest.raises(TypeError, match="names of their own, got 'data' in one and in other"):
        Twice()

    @dataclass(frozen=True)
    class Hidden(Knobs):
        data: str = "digits"
        source: Source = Source()

    with pytest.raises(TypeError, match="names of their own, got 'data' in data and in source"):
        Hidden()
