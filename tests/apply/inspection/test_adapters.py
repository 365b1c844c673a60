"""Adapters: the spectrum of scale x B A for every target, as the dense product has it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from undertow import apply

LEAD = "base_model.model."
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 16}
A, B, W = torch.randn(4, 16), torch.randn(32, 4), torch.randn(32, 16)
PAIR = {f"{LEAD}q.lora_A.weight": A, f"{LEAD}q.lora_B.weight": B}


def folder(place: Path, tensors: dict[str, Tensor], config: object = None) -> Path:
    place.mkdir(exist_ok=True)
    save_file(
        {k: v.contiguous().clone() for k, v in tensors.items()}, place / "adapter_model.safetensors"
    )
    if config is not None:
        (place / "adapter_config.json").write_text(json.dumps(config))
    return place


def holds(found: apply.Inspection, change: Tensor, base: Tensor | None = None) -> None:
    row = found.table.row(0, named=True)
    assert (row["rows"], row["cols"]) == tuple(change.shape)
    assert row["threshold_rank"] == int(torch.linalg.matrix_rank(change.double(), rtol=1e-5))
    norm = torch.linalg.matrix_norm(change.double(), 2)
    assert row["spectral_norm"] == pytest.approx(float(norm), rel=1e-5)
    if base is not None:
        assert row["change"] == pytest.approx(float(change.norm() / base.norm()), rel=1e-5)


@pytest.mark.parametrize(
    ("more", "scale"),
    [
        ({}, 4),
        ({"lora_alpha": 2.0}, 0.5),
        ({"use_rslora": True}, 8),
        ({"r": 8, "rank_pattern": {"q": 4}}, 4),
        ({"alpha_pattern": {"^q": 2, "x": 9}}, 0.5),
        ({"alpha_pattern": {"layers.0.q": 2}}, 4),
        ({"r": 1, "rank_pattern": {r"q|k": 4}, "alpha_pattern": {"q": 8}, "use_rslora": True}, 4),
    ],
)
def test_the_scale_is_that_of_the_configuration(
    tmp_path: Path, more: dict[str, Any], scale: float
) -> None:
    place = folder(tmp_path / "ad", PAIR, CONFIG | more)
    save_file({"q.weight": W}, tmp_path / "base.safetensors")
    holds(apply.inspect(place), scale * B @ A)
    for against in (tmp_path / "base.safetensors", {"model.q.weight": W}):
        holds(apply.inspect(place, against=against), scale * B @ A, W)


def test_embeddings_convolutions_and_turned_layers(tmp_path: Path) -> None:
    base = {"e.weight": torch.randn(50, 8), "c.weight": torch.randn(12, 6, 3, 3), "t.weight": W}
    down, up = torch.randn(4, 50), torch.randn(8, 4)
    pair = {f"{LEAD}e.lora_embedding_A": down, f"{LEAD}e.lora_embedding_B": up}
    found = apply.inspect(folder(tmp_path / "e", pair, CONFIG), against=base)
    holds(found, 4 * (up @ down).mT, base["e.weight"])
    down, up = torch.randn(4, 6, 3, 3), torch.randn(12, 4, 1, 1)
    pair = {f"{LEAD}c.lora_A.weight": down, f"{LEAD}c.lora_B.weight": up}
    found = apply.inspect(folder(tmp_path / "c", pair, CONFIG), against=base)
    holds(found, 4 * up.flatten(1) @ down.flatten(1), base["c.weight"])
    pair = {f"{LEAD}t.lora_A.weight": B.mT, f"{LEAD}t.lora_B.weight": A.mT}
    turned = CONFIG | {"fan_in_fan_out": True}
    found = apply.inspect(folder(tmp_path / "t", pair, turned), against=base)
    holds(found, 4 * (A.mT @ B.mT).mT, W)


def test_dora_is_what_it_makes_of_the_weights(tmp_path: Path) -> None:
    magnitude = W.norm(dim=1) * 1.1
    dora = PAIR | {f"{LEAD}q.lora_magnitude_vector": magnitude}
    place = folder(tmp_path / "ad", dora, CONFIG | {"use_dora": True})
    direction = W + 4 * B @ A
    made = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    holds(apply.inspect(place, against={"q.weight": W}), made - W, W)
    alone = apply.inspect(place)
    holds(alone, 4 * B @ A)
    assert any(note.startswith("DoRA") for note in alone.notes)


def test_whole_weights_and_biases_of_an_adapter(tmp_path: Path) -> None:
    head = torch.randn(3, 16)
    more = {f"{LEAD}score.weight": head, f"{LEAD}q.lora_B.bias": torch.randn(32)}
    place = folder(tmp_path / "ad", PAIR | more, CONFIG)
    base = {"q.weight": W, "score.weight": torch.randn(3, 16)}
    found = apply.inspect(place, against=base)
    assert found.table["name"].to_list() == ["q.weight", "score.weight"]
    change = (head - base["score.weight"]).norm() / base["score.weight"].norm()
    assert found.table["change"][1] == pytest.approx(float(change), rel=1e-5)
    assert [note.split(":")[0] for note in found.notes] == [
        *("biases of the adapter are not shown", "replaced as a whole"),
    ]


def test_other_spellings(tmp_path: Path) -> None:
    base = {"down.0.q.weight": W, "down.0.c.weight": torch.randn(12, 6, 3, 3)}
    file = tmp_path / "kohya.safetensors"
    pair = {"lora_unet_down_0_q.lora_down.weight": A, "lora_unet_down_0_q.lora_up.weight": B}
    save_file(pair | {"lora_unet_down_0_q.alpha": torch.tensor(2.0)}, file)
    holds(apply.inspect(file, against=base), 0.5 * B @ A, W)
    save_file(pair, file)
    found = apply.inspect(file)
    holds(found, B @ A)
    assert "scale of 1" in found.notes[0]
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file({"unet.down.0.q.lora_A.weight": A, "unet.down.0.q.lora_B.weight": B}, file)
    holds(apply.inspect(tmp_path / file.name, against=base), B @ A, W)
    down, middle, up = torch.randn(4, 6, 1, 1), torch.randn(4, 4, 3, 3), torch.randn(12, 4, 1, 1)
    name = "lora_unet_down_0_c"
    parts = {"lora_down": down, "lora_mid": middle, "lora_up": up}
    file = tmp_path / "three.safetensors"
    save_file({f"{name}.{key}.weight": value for key, value in parts.items()}, file)
    dense = torch.einsum("or,rsxy,si->oixy", up[..., 0, 0], middle, down[..., 0, 0])
    holds(apply.inspect(file, against=base), dense.flatten(1), base["down.0.c.weight"])


def test_two_adapters_against_each_other(tmp_path: Path) -> None:
    other = {f"{LEAD}q.lora_A.weight": torch.randn(4, 16), f"{LEAD}q.lora_B.weight": B}
    one, two = folder(tmp_path / "1", PAIR, CONFIG), folder(tmp_path / "2", other, CONFIG)
    there = 4 * B @ other[f"{LEAD}q.lora_A.weight"]
    holds(apply.inspect(one, against=two), 4 * B @ A - there, there)
    with pytest.raises(ValueError, match="give the adapter first"):
        apply.inspect({"q.weight": W}, against=one)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        *(({"peft_type": kind}, f"is a {kind} adapter") for kind in ("LOHA", "IA3", "P_TUNING")),
        ({}, "no known kind"),
        ([1], "no known kind"),
        (None, "no adapter_config.json beside it"),
        (CONFIG | {"r": 5}, "has rank 4 at q, and adapter_config.json says 5"),
        (CONFIG | {"lora_alpha": "x"}, "no number as lora_alpha"),
        (CONFIG | {"lora_alpha": None}, "no number as lora_alpha"),
        (CONFIG | {"lora_alpha": math.inf}, "no number as lora_alpha"),
        (CONFIG | {"alpha_pattern": {"(a+)+$": 1}}, "too rich"),
        (CONFIG | {"alpha_pattern": {"(": 1}}, "no pattern in"),
        (CONFIG | {"target_parameters": ["x"]}, "no layer's weight"),
    ],
)
def test_what_is_not_read_is_said_in_a_line(tmp_path: Path, config: object, said: str) -> None:
    place = folder(tmp_path / "ad", PAIR, config)
    with pytest.raises(ValueError, match=said):
        apply.inspect(place)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"x.hada_w1_a": A, "x.hada_w1_b": B}, "LoHa"),
        ({"x.lokr_w1": A, "x.lokr_w2": B}, "LoKr"),
        ({f"{LEAD}q.lora_A.weight": A}, "one half"),
        ({f"{LEAD}q.lora_A.weight": A, f"{LEAD}q.lora_B.weight": B[:, :3]}, "does not fit"),
        (
            {f"{LEAD}q.lora_{p}.{n}.weight": v for n in "xy" for p, v in (("A", A), ("B", B))},
            "several",
        ),
    ],
)
def test_pairs_that_are_none(tmp_path: Path, tensors: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        apply.inspect(folder(tmp_path / "ad", tensors, CONFIG))


def test_a_base_that_the_start_changed_is_not_held_against(tmp_path: Path) -> None:
    place = folder(tmp_path / "ad", PAIR, CONFIG | {"init_lora_weights": "pissa_niter_4"})
    assert "changes the base weights" in apply.inspect(place).notes[0]
    with pytest.raises(ValueError, match="cannot be held against"):
        apply.inspect(place, against={"q.weight": W})


def test_pairs_among_other_weights_are_taken_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    pair = {"q.lora_A.default.weight": A, "q.lora_B.default.weight": B}
    save_file({"q.base_layer.weight": W} | pair, file)
    found = apply.inspect(file)
    assert len(found.table) == 3
    assert "taken as they are stored" in found.notes[0]


def test_what_an_adapter_only_keeps_beside_is_not_called_replaced(tmp_path: Path) -> None:
    beside = {
        f"{LEAD}embed.base_layer.weight": torch.randn(30, 8),
        f"{LEAD}embed.token_adapter.trainable_tokens_delta": torch.randn(3, 8),
    }
    found = apply.inspect(folder(tmp_path / "ad", PAIR | beside, CONFIG))
    assert found.table["name"].to_list() == ["q.weight"]
    assert len(found.notes) == 1
    assert "rows of single tokens are not shown" in found.notes[0]
