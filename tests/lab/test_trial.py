"""A trial's identity: content only, the same everywhere, and never shared by different contents."""

from __future__ import annotations

import enum
import math
import subprocess
import sys
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow import lab
from undertow.lab._trial import trial_columns


class Rule(enum.Enum):
    SGD = 1
    ADAM = 2


@dataclass(frozen=True)
class Optimizer:
    rule: Rule = Rule.SGD
    lr: float = 0.1


@dataclass(frozen=True)
class Trial:
    value: Any = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    label: str = field(default="", compare=False)


def trial_class(names: list[str]) -> type:
    made = make_dataclass("Made", [(name, int) for name in names], frozen=True)
    made.__module__ = __name__
    return made


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(values)
def test_equal_content_has_equal_identity(value: Any) -> None:
    assert lab.trial_hash(Trial(value)) == lab.trial_hash(Trial(value))


@given(st.dictionaries(st.text(max_size=3), scalars, min_size=2, max_size=5))
def test_order_of_dictionary_keys_does_not_matter(value: dict[str, Any]) -> None:
    other = dict(reversed(value.items()))
    assert lab.trial_hash(Trial(value)) == lab.trial_hash(Trial(other))


def test_order_of_fields_does_not_matter() -> None:
    one, other = trial_class(["a", "b"])(a=1, b=2), trial_class(["b", "a"])(a=1, b=2)
    assert lab.trial_hash(one) == lab.trial_hash(other)


def test_code_may_move_and_results_are_still_found() -> None:
    """A class in another module, or renamed under the same kind, has the same identity."""
    here, there = trial_class(["a"]), trial_class(["a"])
    there.__module__ = "somewhere.else"
    assert lab.trial_hash(here(1)) == lab.trial_hash(there(1))
    there.__name__ = "Renamed"
    assert lab.trial_hash(here(1)) != lab.trial_hash(there(1))
    assert lab.trial_hash(here(1), "study/kind") == lab.trial_hash(there(1), "study/kind")
    assert lab.trial_hash(here(1), "study/kind") != lab.trial_hash(here(1), "study/other")


def test_a_label_is_no_part_of_identity() -> None:
    assert lab.trial_hash(Trial(1, label="x")) == lab.trial_hash(Trial(1, label="y"))


def test_different_contents_never_share_an_identity() -> None:
    contents = [
        None, True, 1, 1.0, "1", "", [], {}, [1], ["1"], [[1]], {"a": 1}, {"mapping": {"a": 1}},
        math.nan, "NaN", math.inf, -math.inf,
        Rule.SGD, Rule.ADAM, "SGD", Optimizer(), Optimizer(lr=0.2),
    ]  # fmt: skip
    assert len({lab.trial_hash(Trial(value)) for value in contents}) == len(contents)


def test_identity_is_the_same_in_another_process() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import toy_study; from undertow import lab;"
        "print(lab.trial_hash(toy_study.Walk(3, pause=0.25)), end='')"
    )
    folder = str(Path(__file__).parent)
    import toy_study

    elsewhere = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert elsewhere.stdout == lab.trial_hash(toy_study.Walk(3, pause=0.25))


@pytest.mark.parametrize(
    ("value", "field_name"), [({1, 2}, "value"), ({"a": [0, Path("x")]}, r"value\.a\[1\]")]
)
def test_what_has_no_identity_is_named(value: Any, field_name: str) -> None:
    with pytest.raises(TypeError, match=field_name):
        lab.trial_hash(Trial(value))


def test_only_frozen_dataclasses_are_trials() -> None:
    thawed = make_dataclass("Thawed", [("a", int)])
    for trial in (thawed(1), {"a": 1}, Trial):
        with pytest.raises(TypeError, match="frozen dataclass"):
            lab.trial_hash(trial)


def test_columns_are_the_leaves() -> None:
    columns = trial_columns(Trial({"widths": (8, 16), "mixed": (1, "a"), "rates": (1, 0.5)}))
    assert columns == {
        "value.widths": [8, 16],
        "value.mixed": '[1, "a"]',
        "value.rates": [1.0, 0.5],
        "optimizer.rule": "SGD",
        "optimizer.lr": 0.1,
        "label": "",
    }
