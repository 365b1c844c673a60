"""Checkpoints of every kind that is read, and one clear line for each that is not."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from undertow import apply


class Payload:
    """Something that only unpickling could bring back."""


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {f"layers.{i}.weight": torch.randn(5, 4) for i in range(3)} | {"bias": torch.randn(5)}


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> Path:
    weight_map = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        shard = f"model-{number}.safetensors"
        save_file({name: tensor}, folder / shard)
        weight_map[name] = shard
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def test_every_container_gives_the_same_tensors(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    ordered = dict(sorted(tensors.items()))
    folder, shards = tmp_path / "whole", tmp_path / "shards"
    folder.mkdir()
    shards.mkdir()
    save_file(ordered, folder / "model.safetensors")
    index = write_shards(shards, ordered)
    torch.save(ordered, tmp_path / "plain.pt")
    torch.save({"epoch": 3, "state_dict": ordered, "optimizer": {}}, tmp_path / "training.ckpt")
    torch.save(ordered, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    places = [folder, folder / "model.safetensors", shards, index]
    places += [tmp_path / name for name in ("plain.pt", "training.ckpt", "old.pth")]
    for place in places:
        assert same(dict(sorted(apply.read_checkpoint(place).items())), ordered), place
        assert same(dict(sorted(apply.read_checkpoint(str(place)).items())), ordered), place


def test_a_missing_shard_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    index = write_shards(tmp_path, tensors)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-1\.safetensors of them is not in"):
        apply.read_checkpoint(index)


def test_a_tensor_that_the_index_promises_must_be_there(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    index = write_shards(tmp_path, tensors)
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = "model-0.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="promises 'ghost', which no shard holds"):
        apply.read_checkpoint(index)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    file = tmp_path / "pickle.pt"
    with file.open("wb") as opened:
        pickle.dump({"weight": Payload()}, opened)
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for name in ("pickle.pt", "module.pth"):
        with pytest.raises(ValueError, match=r"save model\.state_dict\(\)"):
            apply.read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("kept", [7, 100, 400])
def test_a_file_that_was_cut_off(tmp_path: Path, tensors: dict[str, Tensor], kept: int) -> None:
    save_file(tensors, tmp_path / "whole.safetensors")
    torch.save(tensors, tmp_path / "whole.pt")
    for suffix, said in ((".safetensors", "fetch it again"), (".pt", "cut off|run code")):
        content = (tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(content[:kept])
        with pytest.raises(ValueError, match=said):
            apply.read_checkpoint(tmp_path / f"cut{suffix}")


def test_what_is_no_checkpoint_is_said_in_a_line(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "folder").mkdir()
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "bad.index.json").write_text("{}")
    cases = {
        "list.pt": "holds a list, not a state dict",
        "empty.pt": "holds no tensors by name; its entries are 'epoch'",
        "index": "needs a 'weight_map'",
        "model.gguf": "GGUF weights are quantised",
        "folder": r"holds no \.safetensors",
        ".": r"holds 2 checkpoints \(empty\.pt, list\.pt",
    }
    for name, said in cases.items():
        with pytest.raises(ValueError, match=said):
            apply.read_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        apply.read_checkpoint(tmp_path / "nothing.pt")


def test_of_two_shards_with_one_name_the_index_decides(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    index = write_shards(tmp_path, tensors)
    stale = {"bias": tensors["bias"], "layers.0.weight": torch.zeros(5, 4)}
    save_file(stale, tmp_path / json.loads(index.read_text())["weight_map"]["bias"])
    assert same(apply.read_checkpoint(index), tensors)


def test_weights_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    matrix = torch.randn(3, 3)
    torch.save({1: matrix, "1": matrix}, tmp_path / "names.pt")
    torch.save({"weights": {"w": matrix}, "step": torch.tensor(3)}, tmp_path / "nested.pt")
    (tmp_path / "bad.index.json").write_text('{"weight_map": {"w": 3}}')
    for name, said in (
        ("names.pt", "two tensors of one name"),
        ("nested.pt", "it has 'weights': save the one"),
        ("bad.index.json", "from names to files"),
    ):
        with pytest.raises(ValueError, match=said):
            apply.read_checkpoint(tmp_path / name)
