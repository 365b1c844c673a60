"""Inputs in containers of any kind are those of a model that takes one tensor."""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from odd_twins import SAMPLES, of_two_inputs
from undertow.objective import Objective, over_tensors, taken

TWO = of_two_inputs()
(ONE, OTHER), TARGETS = TWO.odd_data


class Pair(NamedTuple):
    one: Tensor
    other: Tensor


class Items(Dataset[Any]):
    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([((ONE[i], OTHER[i]), TARGETS[i]) for i in range(SAMPLES)])


def named(**more: Any) -> dict[str, Any]:
    return {"one": ONE, "other": OTHER, **more}


FORMS: dict[str, Any] = {
    "a tuple": ((ONE, OTHER), TARGETS),
    "a list in a batch": [[[ONE, OTHER], TARGETS]],
    "batches": [((ONE[:7], OTHER[:7]), TARGETS[:7]), ((ONE[7:], OTHER[7:]), TARGETS[7:])],
    "a named tuple": (Pair(ONE, OTHER), TARGETS),
    "three tensors": (ONE, OTHER, TARGETS),
    "a loader of three": DataLoader(TensorDataset(ONE, OTHER, TARGETS), batch_size=5),
    "a dictionary": (named(), TARGETS),
    "a dictionary with labels": named(labels=TARGETS),
    "batches with labels": [named(labels=TARGETS)],
    "another mapping": [UserDict(named(labels=TARGETS))],
    "a dataset of pairs": Items(lambda i: (Pair(ONE[i], OTHER[i]), TARGETS[i])),
    "a dataset of dictionaries": Items(
        lambda i: {"one": ONE[i], "other": OTHER[i], "labels": TARGETS[i]}
    ),
    "a stream": Stream(),
}


@pytest.mark.parametrize("microbatch", [None, 5])
@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_inputs_makes_no_difference(form: str, microbatch: int | None) -> None:
    objective = Objective(TWO.odd, TWO.loss, FORMS[form], microbatch=microbatch)
    plain = Objective(TWO.plain, TWO.loss, TWO.data)
    torch.testing.assert_close(objective.value(), plain.value())
    torch.testing.assert_close(objective.gradient(), plain.gradient())
    torch.testing.assert_close(objective.predictions(), plain.predictions())
    assert objective.num_samples == SAMPLES


class Open(nn.Module):
    """Takes more than it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3).double()

    def forward(self, one: Tensor, other: Tensor | None = None) -> Tensor:
        return self.layer(one)


class Graph:
    """Holds tensors, as graphs of public libraries do, and is iterated over by its fields."""

    def __init__(self) -> None:
        self.x, self.y = ONE, TARGETS

    def to(self, device: Any) -> Graph:
        return self


REFUSED: dict[str, tuple[Any, str]] = {
    "weights or inputs": ((ONE, OTHER, TARGETS), "3 parts.*is open"),
    "a graph": ([Graph()], "got a Graph"),
    "a graph in a batch": ([(Graph(), TARGETS)], "got a Graph"),
    "a graph in a tuple": ([((Graph(),), TARGETS)], "got a Graph"),
    "arrays": (((ONE, OTHER.numpy()), TARGETS), r"inputs\[1\].*got a ndarray"),
    "strings": (((ONE, ["a"] * SAMPLES), TARGETS), "a list of 12 str, one a sample"),
    "lists of numbers": (((ONE, [1] * SAMPLES), TARGETS), "a list of 12 int, one a sample"),
    "no tensor": ((("a",), TARGETS), "must hold a tensor, got a tuple of 1"),
    "targets in a dictionary": ([(ONE, {"y": TARGETS})], "one tensor.*a dict of y"),
    "targets in a tuple": ([(ONE, (TARGETS, TARGETS))], "one tensor.*a tuple of 2"),
    "one number for targets": ((ONE, TARGETS[0]), r"targets.*a tensor of shape \[\]"),
    "a packed sequence": ((pack_sequence([ONE, ONE[:1]]), TARGETS[:2]), "pack inside the model"),
    "packed in a tuple": (((pack_sequence([ONE, ONE[:1]]),), TARGETS[:2]), "pack inside"),
    "nested tensors": (
        (torch.nested.as_nested_tensor([ONE, ONE[:1]], layout=torch.jagged), TARGETS[:2]),
        "padded one and a mask",
    ),
    "unequal numbers": (((ONE, OTHER[:5]), TARGETS), r"12 inputs\[0\] and 5 inputs\[1\] and 12"),
    "no values": ((ONE.to("meta"), TARGETS), "meta device"),
    "not finite": (((ONE, math.nan * OTHER), TARGETS), r"inputs\[1\].*hold NaN"),
    "no labels": ([named()], "dictionary of one, other: the targets must be under 'labels'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_cut_into_samples_is_refused_in_a_line(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        Objective(Open(), TWO.loss, data).value()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 200
    assert "tensor([" not in said


def test_what_is_no_tensor_goes_with_every_microbatch() -> None:
    for more in (None, "mode", 2.0, (1, 2), True):
        objective = Objective(Open(), TWO.loss, ((ONE, more), TARGETS), microbatch=5)
        plain = Objective(objective.model, TWO.loss, (ONE, TARGETS))
        torch.testing.assert_close(objective.value(), plain.value())


TREES = st.recursive(
    st.integers(1, 3).map(lambda width: torch.arange(4 * width).reshape(4, width))
    | st.none()
    | st.text(max_size=2),
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.tuples(parts, parts)
        | st.dictionaries(st.text(max_size=2), parts, max_size=3)
    ),
)


@given(TREES, st.sampled_from([slice(1, 3), slice(3, 4), torch.tensor([2, 0])]))
def test_samples_are_taken_from_every_tensor_and_nothing_else(tree: Any, chosen: Any) -> None:
    def check(part: Any, found: Any) -> None:
        if isinstance(part, Tensor):
            assert torch.equal(found, part[chosen])
        elif isinstance(part, dict):
            assert list(part) == list(found)
            for name in part:
                check(part[name], found[name])
        elif isinstance(part, tuple | list):
            assert type(part) is type(found)
            for one, other in zip(part, found, strict=True):
                check(one, other)
        else:
            assert found == part

    check(tree, taken(tree, chosen))
    assert over_tensors(lambda _: 0, tree) == over_tensors(lambda _: 0, taken(tree, chosen))
