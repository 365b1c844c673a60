"""Every maker's configuration comes back at the new batch, as one that runs."""

from __future__ import annotations

import copy
import json
from argparse import Namespace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apply.rescaling.configs.zoo import (
    CASES,
    Case,
    composer,
    deepspeed,
    fairseq,
    lightning,
    mmengine,
    nanogpt,
    timm,
    torchtune,
    transformers,
)
from undertow import apply, predict


def fields(config: Any) -> Any:
    """A configuration as dictionaries, to compare it."""
    if isinstance(config, dict):
        return {name: fields(value) for name, value in config.items()}
    if isinstance(config, list):
        return [fields(value) for value in config]
    plain = getattr(config, "__dict__", None)
    return fields(plain) if plain and not isinstance(config, type) else config


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=8, deadline=None)
@given(factor=st.sampled_from([0.25, 0.5, 1.5, 2, 3, 4, 8]))
def test_the_run_is_the_one_that_was_asked_for(name: str, factor: float) -> None:
    case: Case = CASES[name]
    source, kept = case.make(), case.make()
    to_batch = round(64 * factor)
    assert case.batch(source) == 64
    found = apply.rescale(source, to_batch=to_batch, **case.more)
    assert fields(source) == fields(kept)  # the input is as it was
    assert type(found.hyper) is type(source)
    assert (found.from_batch, found.to_batch) == (64, to_batch)
    assert case.batch(found.hyper) == to_batch
    if case.steps is not None:
        assert case.steps(found.hyper) == round(case.steps(source) / factor)
    family = predict.FAMILIES[_family(name)]
    assert (family.update == "gradient") == case.linear
    ratio = factor if case.linear else case.rate(found.hyper) / case.rate(source)
    assert case.rate(found.hyper) == pytest.approx(ratio * case.rate(source))
    assert found.groups[0].hyper["lr"] == pytest.approx(case.rate(found.hyper))
    # Nothing moves twice.
    again = apply.rescale(found.hyper, to_batch=to_batch, **case.more)
    assert fields(again.hyper) == fields(found.hyper)
    json.dumps(found.as_json(), allow_nan=False)


def _family(name: str) -> str:
    case = CASES[name]
    return "sgd" if case.linear else "adamw"


@pytest.mark.parametrize("name", CASES)
def test_there_and_back_is_the_configuration_that_was_given(name: str) -> None:
    case = CASES[name]
    source = case.make()
    away = apply.rescale(source, to_batch=256, **case.more).hyper
    back = fields(apply.rescale(away, to_batch=64, **case.more).hyper)

    def check(was: Any, now: Any) -> None:
        if isinstance(was, dict):
            for key in was:
                check(was[key], now[key])
        elif isinstance(was, list | tuple):
            for one, other in zip(was, now, strict=True):
                check(one, other)
        elif isinstance(was, float):
            assert float(now) == pytest.approx(was)
        elif was is not None and not isinstance(was, str):
            assert now == was or 1 / 8 <= now / was <= 8  # parts of one product

    check(fields(source), back)
    assert case.batch(apply.rescale(away, to_batch=64, **case.more).hyper) == 64


@pytest.mark.parametrize("name", CASES)
def test_every_key_is_read_or_named(name: str) -> None:
    found = apply.rescale(CASES[name].make(), to_batch=128, **CASES[name].more)

    def paths(node: Any, lead: str = "") -> list[str]:
        if isinstance(node, list) and node and isinstance(node[0], dict):
            node = dict(enumerate(node))
        if not isinstance(node, dict):
            return [lead]
        return [p for key, value in node.items() for p in paths(value, f"{lead}.{key}".strip("."))]

    said = {*found.read, *found.unread}
    absent = [path for path in paths(fields(CASES[name].make())) if path not in said]
    values = " ".join(found.notes)
    # What is left to the program is named in a note; None is no value.
    plain = fields(CASES[name].make())
    for path in absent:
        value = plain
        for key in path.split(".") if path not in plain else [path]:
            value = value[int(key)] if isinstance(value, list) else value[key]
        assert value is None or path in values or value in ("", -1, 0, 0.0), path
    assert "Keys" in found.text()


def test_transformers_moves_each_key_by_its_rule() -> None:
    new = apply.rescale(transformers(), to_batch=128).hyper
    root = 2**0.5
    assert new == {
        **transformers(),
        "learning_rate": pytest.approx(3e-4 * root),
        "weight_decay": pytest.approx(0.1 * root),
        "adam_beta1": pytest.approx(0.9**2),
        "adam_beta2": pytest.approx(0.95**2),
        "adam_epsilon": pytest.approx(1e-8 / root),
        "gradient_accumulation_steps": 16,
        "max_steps": 512,
        "warmup_steps": 64,
        "lr_scheduler_kwargs": {"min_lr": pytest.approx(3e-5 * root)},
    }
    found = apply.rescale(transformers(), to_batch=128)
    assert "save_steps = 500 (250" in " ".join(found.notes)
    assert "output_dir" in found.unread


def test_defaults_of_training_arguments_have_their_names() -> None:
    def moved(**more: Any) -> dict[str, Any]:
        found = apply.rescale({"learning_rate": 1e-3, **more}, from_batch=8, to_batch=32)
        assert isinstance(found.hyper, dict)
        return found.hyper

    adam = moved(optim="paged_adamw_32bit", weight_decay=0.1)
    assert set(adam) == {
        *("optim", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
    }
    assert adam["weight_decay"] == pytest.approx(0.2)
    # RMSprop there reads none of Adam's fields.
    assert moved(optim="rmsprop", adam_beta2=0.5)["adam_beta2"] == 0.5
    unnamed = apply.rescale({"learning_rate": 1e-3, "per_device_train_batch_size": 8}, to_batch=32)
    assert "the optimizer is not named: adamw" in " ".join(unnamed.notes)
    # A ratio of the run, and -1 for "not given", are none of steps.
    rest = moved(optim="adamw_torch", max_steps=-1, warmup_steps=0.1)
    assert (rest["max_steps"], rest["warmup_steps"]) == (-1, 0.1)


def test_lightning_writes_accumulation_and_leaves_counts_of_epochs() -> None:
    found = apply.rescale(lightning(), to_batch=128)
    new = found.hyper
    assert new["optimizer"]["init_args"] == {
        "lr": pytest.approx(0.2),
        "momentum": 0.9,
        "nesterov": True,
    }
    assert new["trainer"] == {"devices": 2, "accumulate_grad_batches": 4, "max_steps": 512}
    assert new["data"] == lightning()["data"]
    assert new["model"] == lightning()["model"]
    assert new["lr_scheduler"]["init_args"]["step_size"] == 30
    assert "step_size in the schedule may count epochs" in " ".join(found.notes)
    stepwise = lightning()
    stepwise["lr_scheduler"] |= {"interval": "step"}
    new = apply.rescale(stepwise, to_batch=128).hyper
    assert new["lr_scheduler"]["init_args"]["step_size"] == 15
    inside = {"model": {"init_args": {"lr": 1e-3}}, "data": {"batch_size": 8}}
    moved = apply.rescale(inside, to_batch=32, optimizer="adam").hyper
    assert moved["model"]["init_args"]["lr"] == pytest.approx(2e-3)
    assert moved["data"] == {"batch_size": 32}


def test_lightnings_devices_are_counted() -> None:
    config: dict[str, Any] = {
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
        "data": {"batch_size": 16},
    }
    for trainer, batch in (
        ({"devices": [0, 1], "num_nodes": 3}, 96),
        ({"devices": "4"}, 64),
        ({"devices": "0,2"}, 32),
        ({"devices": "auto", "accumulate_grad_batches": 2}, 32),
    ):
        found = apply.rescale({**config, "trainer": trainer}, to_batch=2 * batch)
        assert found.from_batch == batch
        said = " ".join(found.notes)
        assert ("how many devices" in said) == (trainer["devices"] == "auto")


def test_nanogpt_moves_all_its_clocks_and_rates() -> None:
    found = apply.rescale(nanogpt(), to_batch=256)
    assert found.hyper == {
        **nanogpt(),
        "gradient_accumulation_steps": 64,
        "learning_rate": pytest.approx(12e-4),
        "min_lr": pytest.approx(12e-5),
        "max_iters": 256,
        "lr_decay_iters": 256,
        "warmup_iters": 16,
        "beta1": pytest.approx(0.9**4),
        "beta2": pytest.approx(0.95**4),
        "weight_decay": pytest.approx(0.2),
    }
    assert "eps' = 5e-09 has no key" in " ".join(found.notes)
    tokens = apply.rescale(nanogpt(), to_batch="262144 tokens")
    assert tokens.hyper == found.hyper
    bare = {name: v for name, v in nanogpt().items() if name != "gradient_accumulation_steps"}
    with pytest.raises(ValueError, match="takes 40 then: give it"):
        apply.rescale(bare, to_batch=256)


def test_deepspeeds_adam_is_adamw_and_its_schedule_follows() -> None:
    new = apply.rescale(deepspeed(), to_batch=256).hyper
    assert new["train_batch_size"] == 256
    assert new["gradient_accumulation_steps"] == 32
    assert new["optimizer"]["params"]["weight_decay"] == pytest.approx(0.2)
    assert new["scheduler"]["params"] == {
        "warmup_min_lr": 0,
        "warmup_max_lr": pytest.approx(2e-4),
        "warmup_num_steps": 16,
        "total_num_steps": 256,
    }
    for decoupled, decay in ((False, 0.1), (True, 0.2)):
        told = deepspeed()
        told["optimizer"]["params"]["adam_w_mode"] = decoupled
        new = apply.rescale(told, to_batch=256).hyper["optimizer"]["params"]
        assert new["weight_decay"] == pytest.approx(decay)
        assert new["adam_w_mode"] is decoupled
    left = {"train_batch_size": "auto", "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}
    with pytest.raises(ValueError, match=r"optimizer\.params\.lr is left to the program"):
        apply.rescale(left, from_batch=8, to_batch=16)


def test_composers_durations_and_decays_are_its_own() -> None:
    new = apply.rescale(composer(), to_batch=256).hyper
    assert (new["max_duration"], new["scheduler"]["t_warmup"]) == ("256ba", "16ba")
    assert new["optimizer"]["lr"] == pytest.approx(12e-4)
    # Its decay is one of a step, not of lr x weight_decay: k times as much in 1 / k as many.
    assert new["optimizer"]["weight_decay"] == pytest.approx(4e-4)
    epochs = apply.rescale({**composer(), "max_duration": "3ep"}, to_batch=256).hyper
    assert epochs["max_duration"] == "3ep"


def test_timm_takes_its_rate_from_the_batch_where_none_is_given() -> None:
    for opt, exponent in (("lamb", 0.5), ("adamw", 0.5), ("sgd", 1.0)):
        config = timm()
        config.opt, config.lr = opt, None
        found = apply.rescale(config, to_batch=256)
        old = 0.1 * (64 / 256) ** exponent
        assert {c.name: c.old for c in found.groups[0].changes}["lr"] == pytest.approx(old)
        assert found.hyper.lr == pytest.approx(found.groups[0].hyper["lr"])
        assert found.hyper.min_lr == pytest.approx(1e-5 * found.hyper.lr / old)
        assert found.hyper.model_ema_decay == pytest.approx(0.9998**4)
    unknown = timm()
    unknown.lr = unknown.world_size = None
    with pytest.raises(ValueError, match="say world_size"):
        apply.rescale(unknown, to_batch=256)


def test_mmengine_scales_by_itself_only_where_it_is_told() -> None:
    new = apply.rescale(mmengine(), to_batch=128).hyper
    assert [part.get("end") for part in new["param_scheduler"]] == [32, None]
    assert new["param_scheduler"][1]["milestones"] == [8, 11]
    assert new["val_dataloader"] == {"batch_size": 1}
    with pytest.raises(ValueError, match=r"auto_scale_lr\.enable is on"):
        apply.rescale({**mmengine(), "auto_scale_lr": {"enable": True}}, to_batch=128)


def test_values_come_back_in_the_form_that_they_had() -> None:
    new = apply.rescale(fairseq(), to_batch=256).hyper
    assert new["optimization"]["update_freq"] == [8]
    assert new["optimizer"]["adam_betas"].startswith("(0.656")
    assert new["optimizer"]["adam_eps"] == pytest.approx(5e-9)
    assert isinstance(apply.rescale(torchtune(), to_batch=128).hyper["optimizer"]["betas"], list)
    moved = apply.rescale(partial(torch.optim.SGD, lr=0.1), from_batch=8, to_batch=16).hyper
    assert moved.keywords == {"lr": pytest.approx(0.2)}
    kept = {"lr": {"value": 0.1, "desc": None}, "opt": {"value": "sgd"}, "bs": {"value": 8}}
    assert apply.rescale(kept, to_batch=16).hyper["lr"]["value"] == pytest.approx(0.2)


def test_a_batch_in_tokens_stays_one() -> None:
    config = {
        "optimizer": "adamw",
        "max_lr": 6e-4,
        "min_lr": 6e-5,
        "total_batch_size": 524288,
        "micro_batch_size": 16,
        "sequence_length": 1024,
        "max_steps": 19072,
    }
    for to_batch in (2**20, "1Mi tokens", "1024 sequences"):
        new = apply.rescale(config, to_batch=to_batch).hyper
        assert (new["total_batch_size"], new["micro_batch_size"]) == (2**20, 16)
        assert new["max_steps"] == 9536
    either = {**config, "total_batch_size": 32768}
    assert apply.rescale(either, to_batch=65536).hyper["max_steps"] == 9536
    with pytest.raises(ValueError, match="may be in tokens or in sequences"):
        apply.rescale(either, to_batch="65536 tokens")


def test_milestones_of_epochs_stay() -> None:
    config = {"optimizer": "SGD", "lr": 0.1, "batch_size": 128, "milestones": [60, 120]}
    epochs = apply.rescale({**config, "epochs": 200}, to_batch=512)
    assert epochs.hyper["milestones"] == [60, 120]
    assert "taken to count epochs" in " ".join(epochs.notes)
    assert apply.rescale({**config, "steps": 200}, to_batch=512).hyper["milestones"] == [15, 30]


def test_memory_bounds_a_devices_batch() -> None:
    def parts(to_batch: int) -> tuple[int, int]:
        config = {**transformers(), "world_size": 1}
        new = apply.rescale(config, to_batch=to_batch).hyper
        return new["per_device_train_batch_size"], new["gradient_accumulation_steps"]

    assert parts(128) == (4, 32)
    assert parts(6) == (3, 2)  # the largest up to 4 that divides it
    assert parts(2) == (2, 1)
    common = {"optim": "sgd", "learning_rate": 0.1, "batch_size": 8}
    assert apply.rescale(common, to_batch=64).hyper == {
        "optim": "sgd",
        "learning_rate": pytest.approx(0.8),
        "batch_size": 64,
    }
    closed = Namespace(opt="sgd", lr=0.1, batch_size=8)  # no flag for accumulation
    assert vars(apply.rescale(closed, to_batch=64).hyper) == {
        "opt": "sgd",
        "lr": pytest.approx(0.8),
        "batch_size": 64,
    }
    alone = {"optimizer": "sgd", "lr": 0.1, "batch_size": 8}
    assert apply.rescale(alone, to_batch=64).hyper["batch_size"] == 64


def test_workers_are_counted_once() -> None:
    fields_ = {"learning_rate": 1e-3, "per_device_train_batch_size": 8}
    moved: dict[str, Any] = {"to_batch": 8, "to_workers": 8}
    found = apply.rescale(fields_, from_workers=4, **moved)
    assert found.groups[0].factor == 2
    assert found.hyper["per_device_train_batch_size"] == 8
    assert "start it on 8 workers" in " ".join(found.notes)
    with pytest.raises(ValueError, match="counts its workers"):
        apply.rescale({**fields_, "world_size": 4}, from_workers=4, **moved)
    written = apply.rescale({**fields_, "world_size": 4}, **moved).hyper
    assert (written["world_size"], written["per_device_train_batch_size"]) == (8, 8)


def test_a_second_call_with_the_old_batch_moves_nothing_or_is_refused() -> None:
    config = {"optimizer": "sgd", "lr": 0.1, "batch_size": 32}
    moved = apply.rescale(config, from_batch=32, to_batch=48).hyper
    assert apply.rescale(moved, from_batch=32, to_batch=48).hyper == moved
    down = apply.rescale(config, from_batch=32, to_batch=8).hyper
    with pytest.raises(ValueError, match="8 samples a step on one device, got 32"):
        apply.rescale(down, from_batch=32, to_batch=8)


def test_an_optimizer_without_a_rule_keeps_its_rate() -> None:
    config = {"optimizer": "adagrad", "lr": 0.1, "weight_decay": 0.1, "batch_size": 8, "steps": 100}
    found = apply.rescale(config, to_batch=16)
    assert found.hyper == {**config, "batch_size": 16, "steps": 50}
    assert "no rule is known for the rate" in " ".join(found.notes)
    muon = {"optimizer": "muon", "lr": 0.02, "adam_lr": 3e-4, "batch_size": 8}
    both = apply.rescale(muon, to_batch=16)
    assert both.hyper["adam_lr"] == 3e-4
    assert "adam_lr is of another optimizer" in " ".join(both.notes)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no optimizer": ({}, "optimizer must name the update rule"),
    "misspelt": ({"optimizer": "adamww"}, "did you mean adamw"),
    "no number": ({"optimizer": "adamw", "lr": "high"}, "lr must be a number, got 'high'"),
    "a comma": ({"optimizer": "adamw", "lr": "0,1"}, "lr must be a number, got '0,1'"),
    "no rate": ({"optimizer": "adamw", "lr": None}, "hyper must hold lr"),
    "infinite": ({"optimizer": "adamw", "lr": float("inf")}, "lr must be"),
    "two rates": ({"optimizer": "adamw", "learning_rate": 0.2}, "both are the learning rate"),
    "two optimizers": ({"optimizer": "sgd", "optim": "adamw"}, "they are two optimizers"),
    "momentum of adam": ({"optimizer": "adam", "momentum": 0.9}, "momentum = 0.9 contradicts"),
    "betas of sgd": ({"optimizer": "sgd", "betas": [0.9, 0.99]}, "contradicts the optimizer: sgd"),
    "betas twice": ({"optimizer": "adam", "betas": [0.9, 0.9], "beta1": 0.8}, "give one of them"),
    "two batches": ({"optimizer": "sgd", "train_batch_size": 64}, "both are the batch"),
    "two runs": ({"optimizer": "sgd", "steps": 10, "max_steps": 20}, "both are the steps"),
    "a batch of none": ({"optimizer": "sgd", "batch_size": 0}, "batch_size must be a whole number"),
    "a key misspelt": ({"optimizer": "adamw", "weigth_decay": 0.1}, "did you mean weight_decay"),
    "half a step": ({"optimizer": "sgd", "max_steps": 10.5}, "max_steps must be a whole number"),
    "a product": (
        {"optimizer": "sgd", "train_batch_size": 64, "micro_batch_size": 5},
        "the configuration contradicts itself",
    ),
    "nodes": (
        {"optimizer": "sgd", "world_size": 8, "devices": 2, "num_nodes": 2},
        "the configuration contradicts itself",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_itself_is_refused_in_a_line(name: str) -> None:
    more, said = REFUSED[name]
    config = {"lr": 0.1, "batch_size": 32, **more}
    if name == "a product":
        del config["batch_size"]
    kept = copy.deepcopy(config)
    with pytest.raises(ValueError, match=said) as caught:
        apply.rescale(config, to_batch=128)
    assert "\n" not in str(caught.value)
    assert config == kept


def test_arguments_that_contradict_the_configuration_are_refused() -> None:
    config = {"optimizer": "sgd", "lr": 0.1, "batch_size": 32}
    with pytest.raises(ValueError, match="they are two optimizers"):
        apply.rescale(config, to_batch=64, optimizer="adamw")
    with pytest.raises(ValueError, match="from_workers = 4"):
        apply.rescale(config, from_batch=128, to_batch=256)
    counted = {**config, "world_size": 2}
    with pytest.raises(ValueError, match="says 64 samples a step, got 32"):
        apply.rescale(counted, from_batch=32, to_batch=256)
    with pytest.raises(ValueError, match="near it are 32 and 34"):
        apply.rescale(counted, to_batch=33)
    for other in (3, "adamw", [config], None, torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=f"got {type(other).__name__}"):
            apply.rescale(other, from_batch=8, to_batch=16)
    with pytest.raises(TypeError, match="optimizer must be a name or a class, got object"):
        apply.rescale({**config, "optimizer": object()}, to_batch=64)
    # Arguments of a program that has every optimizer's flags say nothing of the one it takes.
    every = Namespace(optimizer="adamw", lr=0.1, momentum=0.9, batch_size=32)
    assert apply.rescale(every, to_batch=64).hyper.momentum == 0.9


def test_omegaconf_comes_back_as_omegaconf() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create(torchtune())
    found = apply.rescale(config, to_batch=128)
    assert type(found.hyper) is type(config)
    assert found.hyper.gradient_accumulation_steps == 64
    assert apply.rescale(found.hyper, to_batch=128).hyper == found.hyper
    omegaconf.OmegaConf.set_readonly(config, True)
    with pytest.raises(TypeError, match="cannot be written"):
        apply.rescale(config, to_batch=128)


def test_real_training_arguments_come_back_as_they_are(tmp_path: Any) -> None:
    transformers_ = pytest.importorskip("transformers")
    source = transformers_.TrainingArguments(
        str(tmp_path),
        learning_rate=3e-4,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
        max_steps=1000,
        use_cpu=True,
        report_to=[],
    )
    found = apply.rescale(source, to_batch=128)
    assert type(found.hyper) is type(source)
    assert found.hyper.gradient_accumulation_steps == 16
    assert (found.hyper.max_steps, source.max_steps) == (250, 1000)
    again = apply.rescale(found.hyper, to_batch=128).hyper
    assert again.to_dict() == found.hyper.to_dict()
