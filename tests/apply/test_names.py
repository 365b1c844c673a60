"""Names as results show them: their numbers kept, and in the order of their numbers."""

from __future__ import annotations

import pytest

from undertow.apply._names import natural, ranged, role, share


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((3,), "3"),
        ((0, 1, 2), "0-2"),
        ((2, 3, 7), "2-3,7"),
        ((0, 2, 4, 6), "0-6:2"),
        ((1, 3), "1,3"),
        ((0, 2, 5, 9, 14), "0..14"),
        ((10, 2, 9), "2,9-10"),
    ],
)
def test_several_names_are_one_with_all_their_numbers(numbers: tuple[int, ...], said: str) -> None:
    for form in ("blocks.{}.fc.weight", "experts.up_proj[{}]", "{}.weight"):
        names = [form.format(number) for number in numbers]
        assert ranged(names) == form.format(said)
        assert {role(name) for name in names} == {form.format("*")}


def test_numbers_within_words_are_no_numbers_of_blocks() -> None:
    assert role("block1.conv2d.weight") == "block1.conv2d.weight"
    assert role("b.1.experts.w[2]") == "b.*.experts.w[*]"
    assert ranged(["b.1.w[0]", "b.1.w[1]", "b.2.w[0]", "b.2.w[1]"]) == "b.1-2.w[0-1]"


def test_names_are_sorted_as_people_count() -> None:
    names = ["layers.10.w", "layers.2.w", "embed", "layers.2.b", "9" * 5000]
    assert sorted(names, key=natural)[1:] == ["embed", "layers.2.b", "layers.2.w", "layers.10.w"]


def test_a_share_is_none_or_all_only_of_none_or_all() -> None:
    assert [share(part, 1000) for part in (0, 1, 10, 999, 1000)] == [
        "0%",
        "<1%",
        "1%",
        "99%",
        "100%",
    ]
