"""Which weight is which: the same under every wrapper's names, and never a guess between two."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from undertow import apply

WRAPPERS = (
    *("", "_orig_mod.", "module.", "module._orig_mod.", "0.auto_model.", "model."),
    *("base_model.model.", "_fsdp_wrapped_module.", "model._checkpoint_wrapped_module."),
)


def state() -> dict[str, Tensor]:
    return {"layers.0.weight": torch.randn(5, 4), "layers.1.weight": torch.randn(5, 4),
            "head.weight": torch.randn(3, 5)}  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs"), [*itertools.product(WRAPPERS, WRAPPERS)])
def test_wrappers_change_no_weight(ours: str, theirs: str) -> None:
    weights = state()
    here = {ours + name: value for name, value in weights.items()}
    there = {theirs + name: 2 * value for name, value in weights.items()}
    found = apply.inspect(here, against=there)
    assert found.table["name"].to_list() == list(here)
    assert found.table["change"].to_list() == pytest.approx([0.5] * 3)
    assert found.notes or ours == theirs


def test_what_is_beside_the_part_is_named() -> None:
    there = {f"transformer.{name}": value for name, value in state().items()}
    found = apply.inspect(state(), against=there | {"lm_head.weight": torch.randn(9, 4)})
    assert len(found.table) == 3
    assert "only in against: lm_head.weight" in found.notes


def test_two_parts_that_match_as_well_are_not_chosen_between() -> None:
    both = {
        f"{part}.{name}": value
        for part in ("student", "teacher")
        for name, value in state().items()
    }
    with pytest.raises(ValueError, match=r"'student\.' and 'teacher\.'"):
        apply.inspect(state(), against=both)


def test_other_weights_are_no_partners() -> None:
    one, other = torch.randn(3, 3), torch.randn(3, 3)
    for here, there in ((("a.weight",), ("b.weight",)), (("x.0.w", "x.1.w"), ("y.0.w", "y.1.w"))):
        with pytest.raises(ValueError, match="shares no matrix"):
            apply.inspect(dict.fromkeys(here, one), against=dict.fromkeys(there, other))


def test_aliases_of_a_header_are_names_of_the_tensor(tmp_path: Path) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embed"].weight
    save_model(model, str(tmp_path / "tied.safetensors"))
    assert set(apply.read_checkpoint(tmp_path / "tied.safetensors")) == set(model.state_dict())
    apart = {"embed.weight": torch.randn(6, 4), "head.weight": torch.randn(6, 4)}
    found = apply.inspect(tmp_path / "tied.safetensors", against=apart)
    assert found.table["name"].to_list() == ["embed.weight", "head.weight"]
