"""A key means what it does where it stands: sections, units, and names that are only near."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from torch.optim import AdamW

from undertow import apply

ADAMW = {"optimizer": "adamw", "lr": 1e-3}
OLMO: dict[str, Any] = {
    "optimizer": {"name": "adamw", "learning_rate": 3e-4, "weight_decay": 0.1},
    "scheduler": {"name": "cosine_with_warmup", "units": "tokens", "t_warmup": 10_000_000},
    "global_train_batch_size": 512,
    "max_duration": "2e12T",
}


@pytest.mark.parametrize("unit", ["tokens", "samples", "epochs"])
def test_what_is_counted_in_tokens_or_samples_stays(unit: str) -> None:
    source = {**OLMO, "scheduler": {**OLMO["scheduler"], "units": unit}}
    moved = apply.rescale(source, to_batch=1024).hyper
    assert moved["scheduler"] == source["scheduler"]
    assert moved["max_duration"] == "2e12T"
    assert moved["global_train_batch_size"] == 1024
    source["scheduler"]["units"] = "steps"
    assert apply.rescale(source, to_batch=1024).hyper["scheduler"]["t_warmup"] == 5_000_000


@pytest.mark.parametrize("key", ["lr", "learning_rate", "peak_lr", "max_lr"])
def test_the_rate_of_a_schedule_moves_with_the_optimizers(key: str) -> None:
    source = {**ADAMW, "batch_size": 32, "lr_scheduler": {"name": "inverse_sqrt", key: 1e-3}}
    moved = apply.rescale(source, to_batch=128).hyper
    assert moved["lr"] == moved["lr_scheduler"][key] == pytest.approx(2e-3)


@pytest.mark.parametrize(
    "section", ["loader_cfg", "train_loader_config", "task", "common", "dataloaders_cfg"]
)
def test_a_batch_is_found_in_whatever_section_it_stands(section: str) -> None:
    beside = {"val_loader_cfg": {"batch_size": 8}, "eval": {"batch_size": 4}}
    source = {**ADAMW, section: {"batch_size": 32}, **beside}
    found = apply.rescale(source, to_batch=128)
    assert found.hyper[section] == {"batch_size": 128}
    assert {name: found.hyper[name] for name in beside} == beside
    assert apply.rescale(found.hyper, to_batch=128).hyper == found.hyper


def test_a_batch_of_another_section_does_not_go_before_the_known_ones() -> None:
    source = {**ADAMW, "batch_size": 32, "teacher": {"batch_size": 7}}
    found = apply.rescale(source, to_batch=64)
    assert found.hyper["teacher"] == {"batch_size": 7}
    assert "teacher.batch_size" in found.unread


def test_a_configuration_without_a_batch_is_told_when_it_has_been_moved() -> None:
    first = apply.rescale({**ADAMW, "steps": 1000}, from_batch=32, to_batch=128)
    assert first.hyper["batch_size"] == 128
    again = json.loads(json.dumps(first.hyper))
    assert apply.rescale(again, from_batch=32, to_batch=128).hyper == again
    bare = apply.rescale({"lr": 1e-3}, from_batch=32, to_batch=128, optimizer="adamw")
    assert "batch_size" not in bare.hyper  # arguments of an optimizer, which reads no such key
    assert any("a second call" in note for note in bare.notes)


@pytest.mark.parametrize(
    ("devices", "copies", "together"), [(64, 16, 4), (8, 8, 1), (16, None, 2), (None, 4, 1)]
)
def test_copies_of_the_model_are_the_workers(
    devices: int | None, copies: int | None, together: int
) -> None:
    workers = copies or (devices or 0) // together
    source: dict[str, Any] = {**ADAMW, "micro_batch_size": 2, "global_batch_size": 2 * workers}
    source |= {"tensor_model_parallel_size": together}
    source |= {"world_size": devices} if devices else {}
    source |= {"data_parallel_size": copies} if copies else {}
    moved = apply.rescale(source, to_batch=4 * workers).hyper
    assert moved["global_batch_size"] == 4 * workers
    wider = apply.rescale(source, to_batch=2, to_workers=2 * workers).hyper
    assert wider.get("data_parallel_size", 2 * workers) == 2 * workers
    assert wider.get("world_size", 2 * workers * together) == 2 * workers * together


def test_copies_and_devices_may_contradict_each_other() -> None:
    source = {**ADAMW, "micro_batch_size": 2, "world_size": 64, "data_parallel_size": 16}
    with pytest.raises(ValueError, match="data_parallel_size = 16 is not 64 devices"):
        apply.rescale(source, to_batch=64)


def test_the_batch_in_a_models_section_is_moved() -> None:
    source = {
        "trainer": {"devices": 8, "num_nodes": 2, "accumulate_grad_batches": 1},
        "model": {
            "micro_batch_size": 4,
            "global_batch_size": 256,
            "optim": {"name": "fused_adam", "lr": 2e-4, "weight_decay": 0.01},
        },
    }
    moved = apply.rescale(source, to_batch=1024).hyper
    assert moved["model"]["global_batch_size"] == 1024
    assert moved["model"]["micro_batch_size"] == 4
    assert moved["trainer"] == source["trainer"]
    assert moved["model"]["optim"]["weight_decay"] == pytest.approx(0.02)  # apex's is decoupled


@pytest.mark.parametrize("named", [[0, 1], [2, 3], "0,1"])
def test_devices_that_are_named_become_a_number_of_them(named: Any) -> None:
    source = {
        "trainer": {"devices": named},
        "data": {"batch_size": 16},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
    }
    assert apply.rescale(source, to_batch=64).hyper["trainer"]["devices"] == named
    assert apply.rescale(source, to_batch=16, to_workers=4).hyper["trainer"]["devices"] == 4


@pytest.mark.parametrize("switch", ["scale_lr", "auto_scale_lr", "find_lr", "use_cosine_lr"])
def test_switches_are_no_rates(switch: str) -> None:
    source = {**ADAMW, "batch_size": 32, switch: False}
    assert apply.rescale(source, to_batch=64).hyper[switch] is False


@pytest.mark.parametrize("switch", ["scale_lr", "auto_scale_lr"])
def test_a_program_that_scales_the_rate_itself_is_refused(switch: str) -> None:
    with pytest.raises(ValueError, match="would scale the learning rate again"):
        apply.rescale({**ADAMW, "batch_size": 32, switch: True}, to_batch=64)


@pytest.mark.parametrize(
    "key",
    [
        *("val_batch_size", "per_device_eval_batch_size", "test_batch_size", "eval_iters"),
        *("patch_size", "alphas", "seq_lengths", "block_sizes", "beta", "num_layers", "lr_decay"),
    ],
)
def test_ordinary_keys_are_not_taken_for_misspelt_ones(key: str) -> None:
    source = {**ADAMW, "batch_size": 32, key: 4}
    assert apply.rescale(source, to_batch=64).hyper[key] == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [("beta", (0.9, 0.99)), ("wieght_decay", 0.1), ("momentm", 0.9), ("warmup_stps", 10)],
)
def test_misspelt_keys_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{key} is no key that is known; did you mean"):
        apply.rescale({**ADAMW, "batch_size": 32, key: value}, to_batch=64)


def test_keras_names_the_average_of_rmsprop_rho() -> None:
    source = {"optimizer": "rmsprop", "lr": 1e-3, "rho": 0.9, "batch_size": 32}
    assert apply.rescale(source, to_batch=64).hyper["rho"] == pytest.approx(0.81)


def test_devices_are_said_to_be_unknown_where_the_batch_is_that_of_one() -> None:
    source = {**ADAMW, "training": {"local_batch_size": 8}}
    assert any("how many devices" in note for note in apply.rescale(source, to_batch=16).notes)


@pytest.mark.parametrize(
    "beside",
    [
        {"optimizer": {"type": "AdamW", "lr": 1e-3, "groups": [{"params": "head", "lr": 1e-2}]}},
        {"optimizer": "adamw", "lr": 1e-3, "encoder": {"lr": 1e-5}},
        {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.04, "weight_decay_end": 0.4},
    ],
)
def test_rates_and_decays_that_are_not_read_are_pointed_out(beside: dict[str, Any]) -> None:
    found = apply.rescale({**beside, "batch_size": 32}, to_batch=64)
    assert found.hyper["batch_size"] == 64  # and no key is added that only some programs read
    assert "gradient_accumulation_steps" not in found.hyper
    assert any("not read; where it is a rate or a decay" in note for note in found.notes)


def test_steps_of_environments_are_none_of_the_optimizer() -> None:
    source = {**ADAMW, "batch_size": 64, "n_steps": 2048, "n_envs": 8}
    assert apply.rescale(source, to_batch=128).hyper["n_steps"] == 2048


def test_the_two_bounds_of_adafactor_stay() -> None:
    source = {"optimizer": "adafactor", "lr": 1e-3, "eps": [1e-30, 1e-3], "batch_size": 32}
    found = apply.rescale(source, to_batch=128)
    assert found.hyper["eps"] == [1e-30, 1e-3]
    assert "eps" in found.unread


def test_the_arguments_of_a_partial_take_no_batch() -> None:
    found = apply.rescale(partial(AdamW, lr=1e-3), from_batch=32, to_batch=64)
    assert set(found.hyper.keywords) <= {"lr", "betas", "eps", "weight_decay"}
    assert not vars(found.hyper)
    assert any("a second call" in note for note in found.notes)
